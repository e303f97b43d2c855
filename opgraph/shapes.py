"""Operators by shape: one product, one attention, one collective, one layer of experts, or a table
of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware import Chip, Number, Platform, SpecError
from hardware.errors import nearest
from opgraph.attention import AbsorbedAttention, Attention, DecompressedAttention
from opgraph.cost import LIMITERS, Cost, CostModel, Machine
from opgraph.experts import GroupedEinsum
from opgraph.operator import Collective, Einsum, Elementwise, Norm, Operator
from opgraph.plan import Plan
from opgraph.sizes import Expression, Sizes, Split
from opgraph.tensor import Format, Tensor, as_format
from opgraph.workload import LARGEST

Words = Mapping[str, str]
PHASES = ("prefill", "decode")
BALANCED, POWER_LAW = "balanced", "power_law"
_BYTE = 8  # bits
_WIDE = "bf16"  # what a product's input stays in where the chip multiplies nothing narrower


@dataclass(frozen=True)
class Shape:
    """A kind of operator and the columns that give its shape.

    Attributes
    ----------
    make : what is priced, from the words among its columns and the chip: operators whose times
        add up.
    required : columns of whole numbers ≥ 1.
    optional : columns with the value they have when not given; numbers or words.
    single : numbers of which rows that are priced together have the same.
    """

    make: Callable[[Words, Chip], tuple[Operator, ...]]
    required: tuple[str, ...]
    optional: Mapping[str, int | str] = field(default_factory=dict)
    single: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, required ones first."""
        return (*self.required, *self.optional)


def _formats(text: str, chip: Chip) -> tuple[Format, Format]:
    """The formats of a product's input and weights: ``fp8`` (both) or ``fp8/bf16`` (weights/input).

    An input narrower than the chip multiplies stays in 16 bits, and so do weight-only formats.
    """
    stored, _, entering = text.partition("/")
    weights = as_format(stored)
    if entering:
        return as_format(entering), weights
    native = weights.bits >= _BYTE or weights.compute in chip.matrix
    return (weights if native else as_format(_WIDE)), weights


def _gemm(words: Words, chip: Chip) -> tuple[Operator, ...]:
    entering, stored = _formats(words["dtype"], chip)
    x = Tensor.of("x", "m k", entering)
    weight = Tensor.of("weight", "n k", stored, "weight")
    return (Einsum(name="gemm", inputs=(x, weight), pattern="m k, n k -> m n"),)


def _attention(words: Words, chip: Chip) -> tuple[Operator, ...]:
    del chip
    query = Tensor.of("q", "batch seq heads head_dim", words["dtype"])
    key, value = (
        Tensor.of(name, "batch seq kv_heads head_dim", words["dtype"]) for name in ("k", "v")
    )
    caches = (
        Tensor.of(f"{name}_cache", "batch context kv_heads head_dim", words["kv_dtype"], "cache")
        for name in ("k", "v")
    )
    window = None if words["window"] == "0" else "window"
    inputs = (query, key, value, *caches)
    return (Attention(name="attention", inputs=inputs, window=window),)


def _mla(words: Words, chip: Chip) -> tuple[Operator, ...]:
    """A decode step attends to the latents, a prefill to keys and values of each head."""
    del chip
    new, dtype = "batch seq", words["dtype"]
    rotary = Tensor.of("q_rope", f"{new} heads rope", dtype)
    if words["phase"] == "decode":
        latents = (
            Tensor.of("latent", f"{new} kv_rank", dtype),
            Tensor.of("k", f"{new} rope", dtype),
        )
        cache = Tensor.of("cache", "batch context latent", words["kv_dtype"], "cache")
        query = Tensor.of("q", f"{new} heads kv_rank", dtype)
        return (AbsorbedAttention(name="mla", inputs=(query, rotary, *latents, cache)),)
    query = Tensor.of("q", f"{new} heads nope", dtype)
    keys = Tensor.of("k", "batch context heads nope", dtype)
    shared = Tensor.of("k_rope", "batch context rope", dtype)
    values = Tensor.of("v", "batch context heads value_dim", dtype)
    inputs = (query, rotary, keys, shared, values)
    return (DecompressedAttention(name="mla", inputs=inputs),)


def _moe(words: Words, chip: Chip) -> tuple[Operator, ...]:
    """A gated layer on the busiest of `ep` chips: gate and up in one product, then down."""
    entering, stored = _formats(words["dtype"], chip)
    x = Tensor.of("x", "tokens topk model", entering)
    up = Tensor.of("gate_up", "experts model wide", stored, "weight")
    inner = Tensor.of("inner", "tokens topk ffn", entering)
    down = Tensor.of("down", "experts ffn model", stored, "weight")
    layout = {"experts": ("ep",), "topk": ("ep",)}
    return (
        GroupedEinsum(name="gate_up", inputs=(x, up), layout=layout,
                      pattern="tokens topk model, experts model wide -> tokens topk wide"),
        GroupedEinsum(name="down", inputs=(inner, down), layout=layout,
                      pattern="tokens topk ffn, experts ffn model -> tokens topk model"),
    )  # fmt: skip


def _norm(words: Words, chip: Chip) -> tuple[Operator, ...]:
    del chip
    x = Tensor.of("x", "rows cols", words["dtype"])
    weight = Tensor.of("weight", "cols", words["dtype"], "weight")
    return (Norm(name="norm", inputs=(x, weight)),)


def _elementwise(words: Words, chip: Chip) -> tuple[Operator, ...]:
    del chip
    x = Tensor.of("x", "rows cols", words["dtype"])
    return (Elementwise(name="elementwise", inputs=(x,)),)


def _collective(kind: str) -> Callable[[Words, Chip], tuple[Operator, ...]]:
    def make(words: Words, chip: Chip) -> tuple[Operator, ...]:
        del chip
        _ = [as_format(part) for part in words["dtype"].split("/")]  # bytes are bytes, but known
        buffer = Tensor.of("buffer", "bytes", "int8")
        return (Collective(name=kind, inputs=(buffer,), collective=kind, axes=("tp",)),)  # type: ignore[arg-type]

    return make


SHAPES: dict[str, Shape] = {
    "gemm": Shape(_gemm, ("m", "n", "k"), {"dtype": "bf16"}),
    "attention": Shape(
        _attention,
        ("batch", "seq", "heads", "head_dim"),
        {
            "phase": "prefill",
            "context": 0,
            "kv_heads": 0,
            "window": 0,
            "dtype": "bf16",
            "kv_dtype": "",
        },
    ),
    "mla": Shape(
        _mla,
        ("batch", "seq", "heads"),
        # DeepSeek-V2's and V3's sizes: kv_lora_rank, qk_rope_head_dim, qk_nope_head_dim, v_head_dim
        {
            "phase": "prefill",
            "context": 0,
            "dtype": "bf16",
            "kv_dtype": "",
            "kv_rank": 512,
            "rope": 64,
            "nope": 128,
            "value_dim": 128,
        },
    ),
    "moe": Shape(
        _moe,
        ("tokens", "hidden", "ffn", "experts", "topk"),
        {"dtype": "bf16", "distribution": BALANCED, "ep": 1, "tp": 1},
        single=("experts", "topk"),
    ),
    "norm": Shape(_norm, ("rows", "cols"), {"dtype": "bf16"}),
    "elementwise": Shape(_elementwise, ("rows", "cols"), {"dtype": "bf16"}),
    **{
        kind: Shape(_collective(kind), ("bytes", "chips"), {"dtype": "bf16"})
        for kind in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
    },
}

ANSWER = ("time_us", "limiter", "low_us", "high_us", "flop", "bytes", "provenance")


def price(
    kind: str, columns: Mapping[str, Sequence[Any]], platform: Platform, cost: CostModel, *,
    places: Sequence[str] = (),
) -> dict[str, list[Any]]:  # fmt: skip
    """Price a table of shapes of one kind of operator on one chip of *platform*.

    Parameters
    ----------
    columns : the shape's columns, each with one entry per row; see `SHAPES`.
    places : where each row is from, for messages about it.

    Returns
    -------
    Columns ``time_us limiter low_us high_us flop bytes provenance``: of a collective, *bytes* is
    the buffer; of a layer of experts, the limiter is that of its longer product.

    Raises
    ------
    SpecError : an unknown kind or column, a missing one, an entry that is no such number.
    """
    if kind not in SHAPES:
        raise SpecError(f"no operator {kind!r}{nearest(kind, SHAPES)}")
    shape = SHAPES[kind]
    table = _complete(kind, shape, columns, places)
    rows = len(next(iter(table.values())))
    answer: dict[str, list[Any]] = {name: [None] * rows for name in ANSWER}
    for group in _alike(shape, table, rows):
        words = {name: str(table[name][group[0]]) for name in shape.optional}
        numbers: dict[str, Number] = {
            name: np.array([float(value[row]) for row in group])
            for name, value in table.items()
            if not isinstance(value[group[0]], str)
        }
        with _at(places, int(group[0])):
            operators = shape.make(words, platform.chip)
            sizes, plan = _bound(operators, words, numbers)
            machine = Machine(platform, plan)
            found = [cost.cost(operator, sizes, machine) for operator in operators]
        for name, values in _answered(found, numbers).items():
            for row, item in zip(group, values, strict=True):
                answer[name][row] = item
    return answer


def _bound(
    operators: tuple[Operator, ...], words: Words, numbers: Mapping[str, Number]
) -> tuple[Sizes, Plan]:
    """The sizes by the operators' dimensions, and the plan that they are used under."""
    if isinstance(operators[0], Collective):
        plan = Plan(tp=numbers["chips"])
        return Sizes({"bytes": numbers["bytes"]}, {}, plan.degrees), plan
    plan = Plan()
    if isinstance(operators[0], GroupedEinsum):
        dims = {
            "tokens": numbers["tokens"],
            "model": numbers["hidden"],
            "ffn": numbers["ffn"] / numbers["tp"],
            "skew": _skew(words["distribution"]),
            **{name: np.asarray(numbers[name]).flat[0] for name in ("experts", "topk")},
        }
        dealt = {name: Split(("ep",), "share") for name in ("experts", "topk")}
        return Sizes(dims, {"wide": Expression("2*ffn")}, {"ep": numbers["ep"]}, dealt), plan
    return plan.bind(numbers, {"latent": Expression("kv_rank + rope")}), plan


def _skew(distribution: str) -> float:
    """The exponent of a distribution of tokens over experts: ``balanced``, ``power_law_1.2``."""
    name, _, exponent = distribution.rpartition("_")
    if distribution == BALANCED:
        return 0.0
    try:
        found = float(exponent)
    except ValueError:
        found = -1.0
    if name != POWER_LAW or not 0 <= found < np.inf:
        raise SpecError(
            f"moe: distribution is {distribution!r}, but must be {BALANCED} or {POWER_LAW}_1.2"
        )
    return found


def _answered(found: Sequence[Cost], numbers: Mapping[str, Number]) -> dict[str, list[Any]]:
    """The answer's columns of rows priced together: sums over the operators."""
    micro = 1e6
    low, high = (
        sum(cost.time if getattr(cost, end) is None else getattr(cost, end) for cost in found)
        for end in ("low", "high")
    )
    longest = max(found, key=lambda cost: float(np.sum(cost.time)))
    columns = (
        sum(cost.time for cost in found) * micro, longest.limiter, low * micro, high * micro,
        sum(cost.work.flop for cost in found),
        numbers.get("bytes", sum(cost.work.moved for cost in found)), longest.provenance,
    )  # fmt: skip
    rows = dict(zip(ANSWER, (v.ravel() for v in np.broadcast_arrays(*columns)), strict=True))
    words: dict[str, list[Any]] = {
        # nothing limits what takes no time
        "limiter": [
            LIMITERS[int(code)] if time else None
            for code, time in zip(rows["limiter"], rows["time_us"], strict=True)
        ],
        "provenance": [str(word) for word in rows["provenance"]],
    }
    return {name: words.get(name) or values.tolist() for name, values in rows.items()}


@contextmanager
def _at(places: Sequence[str], row: int) -> Iterator[None]:
    """Say in a message which row it is about."""
    try:
        yield
    except SpecError as error:
        if not places:
            raise
        raise SpecError(f"{places[row]}: {error}") from None


def _check_columns(kind: str, shape: Shape, columns: Mapping[str, Sequence[Any]]) -> None:
    """Refuse columns that the kind does not have, and demand those that it needs."""
    for name in columns:
        if name not in shape.columns:
            raise SpecError(f"{kind} has no column {name!r}{nearest(name, shape.columns)}")
    for name in shape.required:
        if name not in columns and not (name == "seq" and "phase" in columns):
            raise SpecError(f"{kind} needs {name!r}; its columns are {', '.join(shape.columns)}")


def _complete(
    kind: str, shape: Shape, columns: Mapping[str, Sequence[Any]], places: Sequence[str]
) -> dict[str, list[Any]]:
    """All columns of the shape, checked, with what is not given filled in."""
    _check_columns(kind, shape, columns)
    rows = max((len(values) for values in columns.values()), default=0)
    if not rows:
        raise SpecError(f"{kind}: the table has no rows")
    table: dict[str, list[Any]] = {name: [] for name in shape.columns}
    for row in range(rows):
        with _at(places, row):
            given = {name: values[row] for name, values in columns.items()}
            entries = {
                name: _entry(kind, name, given.get(name, default), default)
                for name, default in ((n, shape.optional.get(n, 1)) for n in shape.columns)
            }
            if "phase" in entries:
                _complete_phase(kind, entries)
            if "topk" in entries:
                _check_experts(kind, entries)
        for name, value in entries.items():
            table[name].append(value)
    return table


def _complete_phase(kind: str, entries: dict[str, Any]) -> None:
    """Fill in what follows from the rest: a decode step's one token, equal heads, own context."""
    phase = entries["phase"]
    if phase not in PHASES:
        raise SpecError(f"{kind}: phase is {phase!r}{nearest(phase, PHASES)}")
    if phase == "decode" and entries["seq"] > 1:
        raise SpecError(
            f"{kind}: seq is {entries['seq']}, but a decode step has one token of each sequence; "
            "what it attends to is the context"
        )
    entries["context"] = entries["context"] or entries["seq"]
    entries["kv_dtype"] = entries["kv_dtype"] or entries["dtype"]
    seq, context = entries["seq"], entries["context"]
    if seq > context:
        raise SpecError(f"{kind}: seq {seq} is longer than the context {context} it ends")
    if "kv_heads" in entries:
        heads = entries["heads"]
        kv_heads = entries["kv_heads"] = entries["kv_heads"] or heads
        if heads % kv_heads:
            raise SpecError(f"{kind}: {heads} heads cannot share {kv_heads} KV heads evenly")


def _check_experts(kind: str, entries: Mapping[str, Any]) -> None:
    """Refuse more choices, or more chips to deal them out to, than there are experts."""
    for name in ("topk", "ep"):
        if entries[name] > entries["experts"]:
            raise SpecError(
                f"{kind}: {name} {entries[name]} is more than {entries['experts']} experts"
            )


def _entry(kind: str, name: str, value: Any, default: int | str) -> int | str:
    if isinstance(default, str):
        return str(value).strip() or default
    least = 0 if default == 0 else 1
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise SpecError(f"{kind}: {name} is {value!r}, but must be a whole number") from None
    if not (least <= number <= LARGEST and number.is_integer()):
        raise SpecError(
            f"{kind}: {name} is {value}, but must be a whole number from {least} to {LARGEST}"
        )
    return int(number)


def _alike(shape: Shape, table: dict[str, list[Any]], rows: int) -> list[NDArray[np.intp]]:
    """The rows that share all words and single numbers, and whether there is a window."""
    shared = [*shape.single, *(n for n, v in shape.optional.items() if isinstance(v, str))]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for row in range(rows):
        window = "window" in table and bool(table["window"][row])
        groups.setdefault((window, *(table[name][row] for name in shared)), []).append(row)
    return [np.array(group) for group in groups.values()]
