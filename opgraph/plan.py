"""Parallelism: into how many parts each axis splits the named dimensions, and over which chips.

The chips of a stage are arranged twice: for attention as ``tp × cp × attention_dp``, for experts
as ``etp × ep``. A *mesh axis* is what one axis of each arrangement has in common, so that one
tensor may be split by the first arrangement and the next by the second: ``tp`` are the chips of
tensor parallelism among which the same experts are, ``tp.ep`` those among which experts differ.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from hardware import Group, Number, SpecError
from hardware.arithmetic import ever, larger, product, smaller
from hardware.errors import nearest, shown
from opgraph.counts import as_count
from opgraph.sizes import Axes, Expression, Sizes, Split

# What each axis splits, by the word of the dimension. Megatron-LM (Shoeybi et al. 2019): heads
# and feed-forward columns by tensor parallelism, and the vocabulary at both ends. Experts:
# DeepSeek-V3 report (2024), section 3.4. Context: Llama 3 report (2024), section 3.3.2, in a
# prefill; split keys in a decode step: Yang et al. (Context Parallelism, arXiv:2411.01783).
SPLITS: dict[str, Split] = {
    "batch": Split(("attention_dp", "dp"), "pad"),
    "seq": Split(("cp",), "pad"),
    "context": Split(("cp",), "share"),
    "heads": Split(("tp",)),
    "kv_heads": Split(("tp",), "replicate"),
    "ffn": Split(("tp",)),
    "vocab": Split(("tp",), "pad"),
    # channels and heads of a recurrence are independent of each other, like those of attention;
    # a group's keys serve several heads, like KV heads (Dao & Gu 2024, section 8.1)
    "inner": Split(("tp",)),
    "ssm_heads": Split(("tp",)),
    "groups": Split(("tp",), "replicate"),
    "experts": Split(("ep",)),
    "expert_ffn": Split(("etp",)),
    # a token's rows are where their experts are: `GroupedEinsum.follows`
    "topk": Split(("ep",), "share"),
    # what goes to the next stage is sent in parts: `Send`
    "model": Split((), "share", spare=("tp",)),
}
# ways to put transfers under what is computed beside them (`overlap`); the first is none
OVERLAPS = ("", "two-batch", "chunked")
# the axes of a stage's chips, as attention sees them
ATTENTION = ("tp", "cp", "attention_dp")
# what each word of `SPLITS` stands for among the mesh axes
_MESH: dict[str, Axes] = {
    **{axis: (axis, f"{axis}.ep") for axis in ATTENTION},
    "etp": ATTENTION,
    "ep": tuple(f"{axis}.ep" for axis in ATTENTION),
    "dp": ("dp",),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a model is spread over chips. Every degree is a whole number ≥ 1 or an array of them.

    A *stage* of the model is on ``tp × cp × attention_dp`` chips; the platform holds *pp* stages,
    and *dp* copies of them all.

    Parameters
    ----------
    tp : tensor parallelism: heads, feed-forward columns and vocabulary split over *tp* chips.
    pp : pipeline parallelism: layers split over *pp* stages.
    ep : expert parallelism: experts split over *ep* of a stage's chips, and each expert's columns
        over the others of them.
    dp : data parallelism: *dp* copies of the model, each with its part of the batch.
    cp : context parallelism: a prompt's tokens split over *cp* chips; in decode the KV cache.
    attention_dp : copies of all but the experts within a stage, each with its part of the batch;
        if not given, as many as *ep* needs.
    sp : sequence parallelism: what tensor parallelism leaves whole is split by tokens, so that
        all-reduces become reduce-scatters and all-gathers (Korthikanti et al. 2022).
    microbatches : parts of the batch that follow each other through the stages; *pp* if not given.
    interleave : pieces of the model on each stage's chips, in turn (Narayanan et al. 2021).
    layers : layers of each stage (of each piece, if interleaved); equal if not given.
    redundant_experts : further copies of the most popular experts.
    overlap : how transfers are put under what is computed beside them: ``"two-batch"`` (each
        layer's batch in halves, one's transfers under the other's operators) or ``"chunked"``
        (products and the collectives beside them in parts). Weights are read once for each part:
        that it is faster is for the user to compare.
    chunks : parts of a chunked product. Transformer Engine cuts a product before its
        reduce-scatter in 4 if not told otherwise.
    order : the axes from neighbouring chips outwards; the fastest links go to the first.

    Raises
    ------
    SpecError : a degree that is not a whole number from 1 to 2⁴⁰; an order or layers that make no
        sense; experts that do not divide a stage's chips.
    """

    tp: Number = 1
    pp: Number = 1
    ep: Number = 1
    dp: Number = 1
    cp: Number = 1
    attention_dp: Number | None = None
    sp: bool = False
    microbatches: Number | None = None
    interleave: int = 1
    layers: tuple[int, ...] = ()
    redundant_experts: Number = 0
    overlap: str = ""
    chunks: int = 4
    order: Axes = ("tp", "cp", "attention_dp", "pp", "dp")

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("tp", "pp", "ep", "dp", "cp")}
        optional = {name: getattr(self, name) for name in ("attention_dp", "microbatches")}
        counts |= {name: value for name, value in optional.items() if value is not None}
        for axis, value in counts.items():
            of = "" if axis == "microbatches" else " of chips"
            object.__setattr__(self, axis, as_count(axis, value, of=of))
        shapes = dict.fromkeys(np.shape(value) for value in counts.values())
        try:
            np.broadcast_shapes(*shapes)
        except ValueError:
            raise SpecError(
                f"plan: arrays of the shapes {' and '.join(str(s) for s in shapes if s)} do not "
                "broadcast together: give each its own axis, as in x[:, None]"
            ) from None
        if self.attention_dp is None:
            copies = as_count("attention_dp", self._copies_for_experts())
            object.__setattr__(self, "attention_dp", copies)
        more = as_count("redundant_experts", self.redundant_experts, 0)
        object.__setattr__(self, "redundant_experts", more)
        object.__setattr__(self, "interleave", _scalar("interleave", self.interleave))
        object.__setattr__(self, "chunks", _scalar("chunks", self.chunks))
        if not isinstance(self.sp, bool | np.bool_):
            raise SpecError(f"sp={shown(self.sp)}: must be True or False")
        object.__setattr__(self, "sp", bool(self.sp))
        if self.overlap not in OVERLAPS:
            raise SpecError(
                f"overlap={shown(self.overlap)}: no such way to overlap"
                f"{nearest(str(self.overlap), OVERLAPS[1:])}"
            )
        self._check_order()
        self._check_layers()
        self._check_experts()

    @cached_property
    def degrees(self) -> dict[str, Number]:
        """Chips along each axis, in *order*."""
        return {axis: getattr(self, axis) for axis in self.order}

    @property
    def num_chips(self) -> Number:
        """Chips that the plan uses."""
        return product(self.degrees.values())

    @property
    def stage_chips(self) -> Number:
        """Chips of one stage."""
        return product(self.degrees[axis] for axis in ATTENTION)

    @property
    def num_pieces(self) -> int:
        """Pieces that the model is cut into."""
        return int(self.pp) * self.interleave

    def num_microbatches(self, batch: Number) -> Number:
        """Microbatches of a *batch* on the whole platform, none of them empty."""
        asked = self.pp if self.microbatches is None else self.microbatches
        if isinstance(asked, int) and asked == 1:
            return 1
        own = -(-batch // (self.degrees["attention_dp"] * self.degrees["dp"]))
        return -(-own // -(-own // asked))

    @cached_property
    def mesh(self) -> dict[str, tuple[Number, Number]]:
        """Chips along each mesh axis, and how many chips apart they are."""
        expert_chips = (
            (1, self.stage_chips / self.ep),
            (self.stage_chips / self.ep, self.stage_chips),
        )
        found: dict[str, tuple[Number, Number]] = {}
        local: Number = 1
        stride: Number = 1
        for axis, degree in self.degrees.items():
            if axis in ATTENTION:
                for name, (first, last) in zip((axis, f"{axis}.ep"), expert_chips, strict=True):
                    begin, end = larger(local, first), smaller(local * degree, last)
                    size = larger(end / begin, 1)
                    found[name] = _whole(size), _whole(stride * larger(begin / local, 1))
                local = local * degree
            else:
                found[axis] = degree, stride
            stride = stride * degree
        return found

    @cached_property
    def active(self) -> Axes:
        """The mesh axes that split anything."""
        return tuple(axis for axis, (size, _) in self.mesh.items() if np.any(np.not_equal(size, 1)))

    @cached_property
    def sharding(self) -> Axes:
        """The mesh axes that decide which collectives there are: all that are active but copies of
        the model, which nothing joins.
        """
        return tuple(axis for axis in self.active if axis != "dp")

    def group(self, axes: Axes) -> Group:
        """The chips along the mesh *axes*."""
        return Group.along([self.mesh[axis] for axis in self.mesh if axis in axes])

    def group_size(self, axes: Axes) -> Number:
        """Chips in the groups along the mesh *axes*."""
        return product(self.mesh[axis][0] for axis in axes)

    def splits(self, decodes: bool) -> Mapping[str, Split]:
        """What the mesh axes split in a step that decodes, or in a prefill."""
        return _splits(decodes, self.sp, tuple(SPLITS.items()))

    def bind(
        self,
        numbers: Mapping[str, Number],
        derived: Mapping[str, Expression],
        decodes: bool = True,
    ) -> Sizes:
        """The sizes of *numbers* under this plan, in a step that decodes or in a prefill."""
        if np.any(self.redundant_experts):
            more = {dim: size + self.redundant_experts for dim, size in numbers.items()
                    if dim.partition(".")[0] == "experts"}  # fmt: skip
            numbers = {**numbers, **more, "redundant": self.redundant_experts}
        degrees = {axis: size for axis, (size, _) in self.mesh.items()}
        return Sizes(numbers, derived, degrees, self.splits(decodes))

    def check(self, numbers: Mapping[str, Number], num_chips: int, platform: str) -> None:
        """Refuse a plan that the model's dimensions or the platform's chips do not allow.

        Raises
        ------
        SpecError : too many chips, or a dimension that does not divide.
        """
        if np.any(self.num_chips > num_chips):
            asked = " × ".join(
                f"{axis}={_most(d)}" for axis, d in self.degrees.items() if _most(d) > 1
            )
            raise SpecError(
                f"{asked} needs {_most(self.num_chips)} chips but {platform} has {num_chips}"
            )
        if not any(dim.partition(".")[0] == "experts" for dim in numbers):
            for name, usual in (("ep", 1), ("redundant_experts", 0)):
                if np.any(np.not_equal(getattr(self, name), usual)):
                    asked = f"{name}={_most(getattr(self, name))}"
                    raise SpecError(f"{asked}: the model has no experts; leave it out")
        sizes = self.bind(numbers, {})
        for dim in numbers:
            rule = sizes.splits.get(dim.partition(".")[0])
            if rule and rule.uneven not in ("pad", "share"):
                self._check_divides(dim, sizes.numbers[dim], rule)

    def _check_divides(self, dim: str, whole: Number, rule: Split) -> None:
        ways = self.group_size(rule.axes)
        small, large = np.minimum(whole, ways), np.maximum(whole, ways)
        uneven = large % small if rule.uneven == "replicate" else np.mod(whole, ways)
        if np.any(uneven):
            shape = np.broadcast_shapes(np.shape(whole), np.shape(ways))
            at = np.argmax(np.broadcast_to(uneven, shape) != 0)
            n = int(np.broadcast_to(ways, shape).flat[at])
            word = " × ".join(SPLITS[dim.partition(".")[0]].axes)
            if word == "etp":
                word = "tp × cp × attention_dp / ep"
            more = ""
            if word == "ep" and not np.ndim(whole):
                more = f"; so would redundant_experts={self.redundant_experts + -whole % n}"
            raise SpecError(
                f"{word}={n} does not divide the {_most(whole)} {dim} of the model evenly; "
                f"{_divisors(int(_most(whole)))} would{more}"
            )

    def _copies_for_experts(self) -> Any:
        """As few copies of attention as there must be for *ep* chips."""
        copies: Any = larger(self.ep / (self.tp * self.cp), 1)
        if np.any(np.mod(copies, 1)):
            raise SpecError(
                f"ep={_most(self.ep)} is not a multiple of the tp × cp = "
                f"{_most(self.tp * self.cp)} chips of attention; give attention_dp"
            )
        return 1 if np.all(copies == 1) else _whole(copies)

    def _check_order(self) -> None:
        known = (*ATTENTION, "pp", "dp")
        object.__setattr__(self, "order", _several("order", self.order, f"axes, such as {known}"))
        for axis in self.order:
            if axis not in known:
                raise SpecError(f"order: {shown(axis)} is no axis{nearest(str(axis), known)}")
        if sorted(self.order) != sorted(known):
            raise SpecError(f"order={self.order}: each of {', '.join(known)} once, no other")

    def _check_layers(self) -> None:
        layers = _several("layers", self.layers, "numbers, such as (3, 5)")
        object.__setattr__(self, "layers", layers)
        if not self.layers:
            return
        for number in self.layers:
            as_count("layers", number)
        pieces = _scalar("pp", self.pp) * self.interleave
        if len(self.layers) != pieces:
            given = ", ".join(map(str, self.layers))
            raise SpecError(f"layers {given}: give {pieces} numbers, one for each stage")

    def _check_experts(self) -> None:
        chips = self.stage_chips
        if ever(chips % self.ep):
            raise SpecError(
                f"ep={_most(self.ep)} does not divide the {_most(chips)} chips of a stage, "
                f"tp × cp × attention_dp"
            )
        # each axis of one arrangement holds a whole number of chips of the other
        for axis, (size, stride) in self.mesh.items():
            if ever(size % 1) or ever(stride % 1):
                raise SpecError(
                    f"ep={_most(self.ep)} cuts the {axis.partition('.')[0]}="
                    f"{_most(self.degrees[axis.partition('.')[0]])} chips unevenly"
                )


@lru_cache
def _splits(decodes: bool, sp: bool, rules: tuple[tuple[str, Split], ...]) -> dict[str, Split]:
    """The rules by mesh axes. A decode step has one token of each sequence: it splits the cached
    ones, and where a prefill splits tokens, a decode step splits sequences.
    """
    found = {dim: _on_mesh(rule) for dim, rule in rules}
    tokens, other = ("batch", "seq") if decodes else ("seq", "context")
    found[other] = replace(found[other], axes=())
    if sp:
        found[tokens] = replace(found[tokens], spare=_MESH["tp"])
    return found


def _on_mesh(rule: Split) -> Split:
    axes, spare = (
        tuple(atom for word in names for atom in _MESH[word]) for names in (rule.axes, rule.spare)
    )
    return replace(rule, axes=axes, spare=spare)


def _whole(value: Any) -> Any:
    """A whole number as an `int`; what is not whole, and arrays, as they are."""
    return int(value) if not isinstance(value, np.ndarray) and value % 1 == 0 else value


def _several(name: str, value: Any, what: str) -> tuple[Any, ...]:
    """The things in *value*, which is no text."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise SpecError(f"{name}={shown(value)}: must be {what}")
    return tuple(value)


def _scalar(name: str, value: Number) -> int:
    if isinstance(value, np.ndarray):
        raise SpecError(f"{name} must be one number here, not an array")
    return int(as_count(name, value))


def _most(value: Number) -> Number:
    return value if isinstance(value, int) else int(np.max(value))


def _divisors(whole: int) -> str:
    # no platform splits one tensor more ways than this
    most = 64
    return ", ".join(str(n) for n in range(1, min(whole, most) + 1) if whole % n == 0)
