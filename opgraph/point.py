"""Design points: everything the time of a step depends on; one point, or an array of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property, lru_cache, partial, reduce
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hardware import Number, Platform, SpecError, Tier
from hardware.arithmetic import larger, smaller
from opgraph.cost import CostModel, Host, Machine
from opgraph.graph import Graph
from opgraph.memory import Footprint, Reserve, peak_activations, weight_class
from opgraph.model import Model
from opgraph.offload import Fetch, Offload, buffer, fetched, offloaded
from opgraph.pipeline import Pipeline, Times, piece_times, predict, step_time
from opgraph.plan import Plan
from opgraph.sizes import Sizes
from opgraph.stages import Piece, even, joined, laid_out, num_layers
from opgraph.tensor import Tensor, alike
from opgraph.timeline import Timeline
from opgraph.workload import Workload

Phase = Literal["prefill", "decode"]
Array = NDArray[Any]

# points priced at once: the arrays of a step stay in a core's L2 cache
TILE = 1 << 15


@dataclass(frozen=True, eq=False)
class Point:
    """A model on a platform under a plan and a workload, priced by a cost model."""

    model: Model
    platform: Platform
    plan: Plan
    workload: Workload
    cost: CostModel
    host: Host = field(default_factory=Host)
    reserve: Reserve = field(default_factory=Reserve)
    offload: Offload = field(default_factory=Offload)

    @cached_property
    def machine(self) -> Machine:
        """What the operators run on."""
        tier = self._tier
        cached: Number = 0.0
        if tier is not None and tier.cache is not None:
            # what the cache has room for stays there: each step reads everything once
            room = tier.cache.capacity / tier.shared_by
            cached = smaller(room / larger(self.footprint().offloaded, 1.0), 1.0)
        return Machine(self.platform, self.plan, self.host, tier, cached)

    @property
    def _tier(self) -> Tier | None:
        return self.offload.find_tier(self.platform) if self.offload.is_used else None

    def graph(self, phase: Phase) -> Graph:
        """One chip's graph of a step; of a pipeline, those of all stages in one."""
        pieces = self.pieces(phase)
        return joined(pieces) if len(pieces) > 1 else pieces[0].graph

    def pieces(self, phase: Phase) -> tuple[Piece, ...]:
        """One chip's graph of each piece of the pipeline."""
        plan, graph = self.plan, getattr(self.model, phase)
        layers = plan.layers or even(num_layers(graph), plan.num_pieces)
        overlap = (plan.overlap, plan.chunks)
        pieces = laid_out(graph, layers, plan.active, plan.sp, phase == "decode", overlap)
        return tuple(map(offloaded, pieces)) if self.offload.is_used else pieces

    def pipeline(self, phase: Phase) -> Pipeline:
        """How microbatches pass through the pieces."""
        plan = self.plan
        count = plan.num_microbatches(self.workload.batch)
        return Pipeline(int(plan.pp), plan.num_pieces, int(np.max(count)), phase == "decode")

    def sizes(self, phase: Phase, context: Number, *, whole: bool = False) -> Sizes:
        """All sizes of a step of a microbatch that ends with *context* tokens in each sequence;
        of the *whole* batch if asked for.

        Prefill and decode are the same step: one brings the whole prompt, the other one token.
        Where an encoder reads the prompt (``source``), the decoder's own sequence starts after it
        from one token.
        """
        seq = self.workload.prompt if phase == "prefill" else 1
        work = self.workload
        batch = work.batch
        if not whole and not np.array_equal(count := self.plan.num_microbatches(batch), 1):
            batch = -(-batch // count)
        step = {"batch": batch, "images": work.images, "skew": work.skew}
        if self.offload.is_used:
            shares = (self.offload.weights, self.offload.kv_cache)
            step |= dict(zip(Fetch.SHARES.values(), shares, strict=True))
        if self.model.encodes_prompt:
            own = context - self.workload.prompt + 1
            step |= {"source": self.workload.prompt, "seq": 1, "context": own}
        else:
            step |= {"seq": seq, "context": context}
        derived = getattr(self.model, phase).derived
        return self.plan.bind({**self.model.numbers, **step}, derived, phase == "decode")

    def step_time(self, phase: Phase, context: Number) -> Number:
        """Seconds of one step, of points with equally many stages."""
        count = self.plan.num_microbatches(self.workload.batch)
        return step_time(self.pipeline(phase), count, self._piece_times(phase, context))

    def _piece_times(self, phase: Phase, context: Number) -> Times:
        """What the pieces take by themselves; *context* may have axes before those of `shape`."""
        parts = self.by_axes
        if len(parts) == 1:
            step = (self.pieces(phase), self.pipeline(phase), self.sizes(phase, context))
            return piece_times(*step, self.machine, self.cost)
        lead = np.shape(context)[: max(0, np.ndim(context) - len(self.shape))]
        contexts = np.broadcast_to(context, lead + self.shape)
        times = np.empty((2, self.plan.num_pieces, *contexts.shape))
        for place, part in parts:
            found = part._piece_times(phase, contexts[..., place])
            for row, seconds in zip(times, found, strict=True):
                for piece, value in zip(row, seconds, strict=True):
                    piece[..., place] = value
        return tuple(times[0]), tuple(times[1])

    def timeline(self, phase: Phase, context: Number) -> Timeline:
        """The timeline of one step.

        Raises
        ------
        SpecError : the point is an array over which the pipeline is not the same.
        """
        counts = (self.plan.pp, self.plan.num_microbatches(self.workload.batch))
        if any(np.min(count) < np.max(count) for count in counts):
            raise SpecError(
                f"the {self.shape} points have pipelines of different stages or microbatches, and "
                "no timeline in common: pick one with report.at()"
            )
        parts = (self.pieces(phase), self.pipeline(phase))
        return predict(phase, *parts, self.sizes(phase, context), self.machine, self.cost)

    def footprint(self) -> Footprint:
        """Memory of the fullest chip when every sequence is at its longest; parts of a batch are
        counted as if all were there at once.
        """
        return reduce(Footprint.fuller, self.footprints())

    def footprints(self) -> tuple[Footprint, ...]:
        """Memory of a chip of each stage, of stages that are alike once."""
        if self.plan.overlap:
            return replace(self, plan=replace(self.plan, overlap="")).footprints()
        prefill, decode = (self.pieces(phase) for phase in ("prefill", "decode"))
        pp = int(self.plan.pp)
        stages = dict.fromkeys((prefill[stage::pp], decode[stage::pp]) for stage in range(pp))
        return tuple(self._stage_footprint(*stage) for stage in stages)

    def _stage_footprint(self, prefill: tuple[Piece, ...], decode: tuple[Piece, ...]) -> Footprint:
        """Memory of a chip with these pieces; activations of the prefill of a microbatch."""
        full, prompt = self._full_sizes, self._prompt_sizes
        by_class: dict[str, Number] = {}
        away: Number = 0.0
        for (name, movable), held in _weights(prefill, decode, self.model.decode.shared).items():
            share = self.offload.weights if movable else 0
            nbytes = sum(tensor.nbytes(full) * count for tensor, count in held)
            by_class[name] = by_class.get(name, 0.0) + nbytes * (1 - share)
            away = away + nbytes * share
        caches = sum(tensor.nbytes(full) * count for tensor, count in _caches(decode))
        capacity = self.platform.chip.memory_capacity
        buffers: Number = 0.0
        if self.offload.is_used:
            step = self.sizes("decode", self.workload.context)
            for pieces, sizes in ((prefill, prompt), (decode, step)):
                buffers = reduce(larger, (buffer(piece.graph, sizes) for piece in pieces), buffers)
        tier = self._tier
        return Footprint(
            by_class=by_class,
            kv_cache=caches * (1 - self.offload.kv_cache),
            activations=reduce(larger, (peak_activations(p.graph, prompt) for p in prefill)),
            reserved=self.reserve.share * capacity,
            capacity=capacity,
            buffers=buffers,
            offloaded=away + caches * self.offload.kv_cache,
            tier_capacity=np.inf if tier is None else tier.capacity_per_chip,
        )

    @cached_property
    def _full_sizes(self) -> Sizes:
        """Those at which every sequence is at its longest, in whole blocks of the cache."""
        block = self.reserve.block
        full = self.sizes("decode", self.workload.context, whole=True)
        blocks = -(-full["context"] // block)
        return replace(full, numbers={**full.numbers, "context": blocks * block})

    @cached_property
    def _prompt_sizes(self) -> Sizes:
        return self.sizes("prefill", self.workload.prompt)

    @cached_property
    def by_stages(self) -> "Parts":
        """The point in parts with equally many stages each."""
        return tuple(self._apart([self.plan.pp]))

    @cached_property
    def by_axes(self) -> "Parts":
        """The point in parts with the same axes in use. An axis of a single chip would cost nothing
        by itself, but the layouts that are chosen for its sake do.
        """
        sizes = (self.plan.mesh[axis][0] for axis in self.plan.sharding)
        return tuple(self._apart([np.not_equal(size, 1) for size in sizes]))

    def _apart(self, deciding: Sequence[Any]) -> Iterator[tuple[Any, "Point"]]:
        """The points at which each of *deciding* is the same, and their places."""
        arrays = [value for value in deciding if np.min(value) < np.max(value)]
        if not arrays:
            yield ..., self._with_one_pp()
            return
        spread = np.stack([np.broadcast_to(array, self.shape) for array in arrays], axis=-1)
        for values in np.unique(spread.reshape(-1, len(arrays)), axis=0):
            place = np.all(spread == values, axis=-1)
            yield place, self.take(place)._with_one_pp()

    def _with_one_pp(self) -> "Point":
        """The same with as many stages as a number, if it is one for all."""
        pp = self.plan.pp
        if not np.ndim(pp) or np.min(pp) < np.max(pp):
            return self
        return replace(self, plan=replace(self.plan, pp=int(np.max(pp))))

    def check(self) -> "Point":
        """The point itself, if its parts go together.

        Raises
        ------
        SpecError : arrays that do not broadcast together, a plan that the platform or the model
            or the model's layers do not allow, images that do not fit the model or the prompt,
            several sequences for a model that was exported for one, a skew without experts.
        """
        _ = self.shape
        self.plan.check(self.model.numbers, self.platform.num_chips, self.platform.name)
        self.model.check_images(self.workload.images, self.workload.prompt)
        self.model.check_batch(self.workload.batch)
        self.model.check_skew(self.workload.skew)
        for _, stages in self.by_stages:
            for _, part in stages.by_axes:
                part.pieces("decode")
        return self

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """What all the arrays in the point broadcast to; () for a single point."""
        shapes = dict.fromkeys(array.shape for array in self.inputs.values())
        try:
            return np.broadcast_shapes(*shapes)
        except ValueError:
            raise SpecError(
                f"arrays of the shapes {' and '.join(map(str, shapes))} in platform, plan and "
                "workload do not broadcast together: give each its own axis, as in x[:, None]"
            ) from None

    @property
    def inputs(self) -> dict[str, Array]:
        """The arrays in the point by where they stand: ``tp``, ``chip.memory.0.bandwidth``."""
        parts = (self.platform, self.plan, self.workload, self.host, self.reserve, self.offload)
        return {path: array for part in parts for path, array in _arrays(part).items()}

    def take(self, index: Any) -> "Point":
        """The points at *index*, which may be anything that indexes an array of `shape`."""

        def pick(array: Array) -> Any:
            taken = np.broadcast_to(array, self.shape)[index]
            return taken if np.ndim(taken) else _plain(taken)

        return self._each(pick)

    def tiles(self) -> Iterator[tuple[tuple[slice, ...], "Point"]]:
        """The point in parts of about `TILE` points along its longest axis, each with its place."""
        size = int(np.prod(self.shape))
        if size <= TILE:
            yield (), self
            return
        axis = int(np.argmax(self.shape))
        length = max(1, TILE * self.shape[axis] // size)
        for start in range(0, self.shape[axis], length):
            part = slice(start, start + length)
            place = (slice(None),) * axis + (part,)
            yield place, self._each(partial(self._cut, axis, part))

    def _cut(self, axis: int, part: slice, array: Array) -> Array:
        """*part* of an array along *axis* of `shape`; the array itself if it is broadcast there."""
        own = axis - (len(self.shape) - array.ndim)
        if own < 0 or array.shape[own] == 1:
            return array
        return array[(slice(None),) * own + (part,)]

    def _each(self, function: Callable[[Array], Any]) -> "Point":
        return replace(
            self,
            platform=_map(self.platform, function),
            plan=_map(self.plan, function),
            workload=_map(self.workload, function),
            host=_map(self.host, function),
            reserve=_map(self.reserve, function),
            offload=_map(self.offload, function),
        )


Parts = tuple[tuple[Any, Point], ...]
"""Parts of a point, each after its place in the arrays."""


@lru_cache(maxsize=1024)
def _weights(
    prefill: tuple[Piece, ...], decode: tuple[Piece, ...], shared: frozenset[str]
) -> dict[tuple[str, bool], tuple[tuple[Tensor, int], ...]]:
    """The weights of a stage's pieces, by what they belong to and whether they may be offloaded.

    What several pieces read is on their stage once: a tied embedding, a *shared* block.
    """
    movable = {tensor.name for piece in (*prefill, *decode) for tensor in fetched(piece.graph)}
    weights = {
        (-1 if tensor.name in shared else j, tensor.name): (tensor, count, piece.graph)
        for pieces in (prefill, decode)
        for j, piece in enumerate(pieces)
        for tensor, count in piece.graph.tensors("weight")
    }
    found: dict[tuple[str, bool], list[tuple[Tensor, int]]] = {}
    for tensor, count, graph in weights.values():
        key = weight_class(tensor, graph), tensor.name in movable
        found.setdefault(key, []).append((tensor, count))
    return {key: alike(held) for key, held in found.items()}


@lru_cache(maxsize=1024)
def _caches(decode: tuple[Piece, ...]) -> tuple[tuple[Tensor, int], ...]:
    """The caches of a stage's pieces."""
    return alike([pair for piece in decode for pair in piece.graph.tensors("cache")])


def _plain(number: Any) -> int | float:
    value = float(number)
    return int(value) if value.is_integer() else value


def _children(value: Any) -> dict[Any, Any]:
    """What a dataclass, a tuple or a mapping is made of."""
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, tuple):
        return dict(enumerate(value))
    return dict(value) if isinstance(value, dict) else {}


def _arrays(value: Any) -> dict[str, Array]:
    """The arrays in a nest of dataclasses, tuples and mappings, by the words that lead there."""
    found: dict[str, Array] = {}
    for key, child in _children(value).items():
        if isinstance(child, np.ndarray):
            found[str(key)] = child
        else:
            found |= {f"{key}.{path}": array for path, array in _arrays(child).items()}
    return found


def _map(value: Any, function: Callable[[Array], Any]) -> Any:
    """*value* with each array in it replaced by what *function* makes of it."""
    if isinstance(value, np.ndarray):
        return function(value)
    mapped = ((key, child, _map(child, function)) for key, child in _children(value).items())
    changed = {key: new for key, child, new in mapped if new is not child}
    if not changed:
        return value
    if isinstance(value, tuple):
        return tuple(changed.get(i, item) for i, item in enumerate(value))
    return {**value, **changed} if isinstance(value, dict) else replace(value, **changed)
