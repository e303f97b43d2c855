"""Passes: a graph in, a graph out.

`shard` derives the collectives of a plan from the names of the dimensions (the four cases of
Austin et al., How to Scale Your Model, 2025, chapter 3): a contraction over a split dimension
leaves partial sums, so an all-reduce follows, or a reduce-scatter where the reader wants the
result split; a dimension that a reader needs whole is gathered; a split that moves from one
dimension to another is an all-to-all. Taking one's own part of a whole tensor is free. A norm
over a split dimension sums its statistics over chips.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from opgraph.graph import Block, Graph
from opgraph.operator import Collective, CollectiveKind, Operator, Send
from opgraph.plan import Plan
from opgraph.sizes import Axes, Expression, Sizes, Split
from opgraph.tensor import Tensor

Layout = dict[str, Axes]
# layouts that are kept for the same rules; a model has some dozens
_MOST_LAYOUTS = 1 << 12


def shard(graph: Graph, plan: Plan, *, decodes: bool = True) -> Graph:
    """One chip's part of *graph* under *plan*, with the collectives that the splits call for.

    *decodes*: whether the step is one token long. Only the axes that split anything count, not
    their degrees: the numbers come later.
    """
    return lay_out(graph, plan.active, plan.splits(decodes))


def lay_out(graph: Graph, active: Axes, splits: Mapping[str, Split]) -> Graph:
    """The same, with the mesh axes that are *active* and what they split."""
    return _Sharding(graph, active, splits).graph()


def _read(blocks: Sequence[Block]) -> frozenset[str]:
    """The tensors that *blocks* read or carry."""
    read = {t.name for block in blocks for op in block.operators for t in op.activations}
    return frozenset(read | {entry for block in blocks for entry, _ in block.carried})


class _Sharding:
    """The state of one walk over a graph: where each tensor is and in which layout."""

    def __init__(self, source: Graph, active: Axes, splits: Mapping[str, Split]) -> None:
        self.source = source
        self.active = frozenset(active)
        self.names = Sizes({}, source.derived, {}, splits)
        rules = tuple(splits.items()), tuple(source.derived.items())
        self.layouts = _known_layouts(self.active, *rules)
        self.tensors: dict[str, Tensor] = {tensor.name: tensor for tensor in source.inputs}
        self.operators: dict[str, Operator] = {}
        self.moved: dict[str, Collective] = {}
        self.given: dict[str, str] = {}
        self.experts: dict[str, str] = {}

    def graph(self) -> Graph:
        blocks = self.source.blocks
        received = self._received()
        placed = [self._block(block, _read(blocks[i + 1 :])) for i, block in enumerate(blocks)]
        return replace(self.source, blocks=(*received, *placed))

    def _received(self) -> tuple[Block, ...]:
        """Make whole what comes from another stage in parts."""
        for tensor in self.source.inputs:
            usual = {dim: axes for dim, axes in tensor.layout.items() if dim not in Send.spares}
            self.tensors[tensor.name] = self._move(tensor.name, usual)
        operators = tuple(self.operators.values())
        return (Block("receive", operators),) if operators else ()

    def _block(self, block: Block, later: frozenset[str]) -> Block:
        self.operators = {}
        entries = [self.tensors[entry] for entry, _ in block.carried]
        for operator in block.operators:
            self._operator(operator)
        for entry, (_, leave) in zip(entries, block.carried, strict=True):
            self.tensors[leave] = self._move(leave, entry.layout)
        made = {tensor.name for operator in block.operators for tensor in operator.outputs}
        for name in sorted(made & later):
            # what leaves a block is summed up there, once, whoever reads it later
            self._move(name, self.tensors[name].layout)
        leaves = [self.tensors[leave] for _, leave in block.carried]
        carried = tuple((a.name, b.name) for a, b in zip(entries, leaves, strict=True))
        return replace(block, operators=tuple(self.operators.values()), carried=carried, layers=())

    def _operator(self, operator: Operator) -> None:
        waiting = self._waiting(operator)
        layout = self._layout(operator, waiting)
        self.experts |= operator.follows
        inputs = tuple(
            self._move(tensor.name, operator.wants(tensor, layout), tensor.name in waiting)
            if tensor.role == "activation"
            else tensor.laid_out(layout)
            for tensor in operator.inputs
        )
        inputs = self._exchange(operator, inputs, layout)
        placed = replace(operator, inputs=inputs, layout=layout)
        self.operators[placed.name] = placed
        for before, after in zip(operator.outputs, placed.outputs, strict=True):
            self.tensors[before.name] = after
            self.given[after.name] = operator.given

    def _exchange(
        self, operator: Operator, inputs: tuple[Tensor, ...], layout: Layout
    ) -> tuple[Tensor, ...]:
        """The inputs, the first one's statistics summed over chips if *layout* splits them."""
        split = (axis for dim in operator.statistics for axis in layout.get(dim, ()))
        axes = tuple(dict.fromkeys(split))
        if not axes:
            return inputs
        exchange = Collective(
            name=f"{operator.name}.statistics",
            inputs=inputs[:1],
            collective="all_reduce",
            axes=axes,
            over=operator.statistics,
            layout=layout,
            given=operator.given,
        )
        self.operators[exchange.name] = exchange
        return exchange.outputs + inputs[1:]

    def _waiting(self, operator: Operator) -> frozenset[str]:
        """The inputs that may stay partial: all summands, if they wait for the same sum."""
        names = frozenset(tensor.name for tensor in operator.summands)
        sums = {frozenset(self.tensors[name].partial) for name in names}
        return names if len(sums) == 1 else frozenset()

    def _layout(self, operator: Operator, waiting: frozenset[str]) -> Layout:
        """Which axes split each dimension of *operator*, as of all that are like it."""
        coming = [self.tensors[tensor.name] for tensor in operator.activations]
        key = (operator.likeness, *((tensor.split, tensor.partial) for tensor in coming))
        if key not in self.layouts:
            if len(self.layouts) >= _MOST_LAYOUTS:
                self.layouts.clear()
            self.layouts[key] = self._deal(operator, waiting, coming)
        return self.layouts[key]

    def _deal(
        self, operator: Operator, waiting: frozenset[str], coming: Sequence[Tensor]
    ) -> Layout:
        """Deal out the axes to the dimensions of *operator*.

        Weights and caches choose first; what comes split stays so; then each dimension takes what
        axes it may, and last what others leave idle. What is contracted takes what is left, so
        that rows rather move than leave a sum over chips.
        """
        kept = [tensor for tensor in operator.inputs if tensor.role != "activation"]
        claim = _Claim(operator, {axis for name in waiting for axis in self.tensors[name].partial})
        for dim in _dims(kept):
            claim(dim, self._usable(self.names.axes(dim)))
        claim.settle(operator.follows)
        claim.reserve(axis for dim in operator.idle for axis in self._usable(self.names.axes(dim)))
        free = [dim for dim in _dims([*coming, *operator.outputs]) if claim.is_open(dim)]
        last = [dim for dim in free if dim in operator.contracted]
        first = [dim for dim in free if dim not in last]
        for dim in first:
            claim(dim, _those_of(dim, coming))
        for dim in first:
            claim(dim, self._usable(self.names.axes(dim)))
        for dim in first:
            if dim in operator.spares:
                claim(dim, self._usable(self.names.spare(dim)), alone=True)
        for dim in last:
            claim(dim, _those_of(dim, coming))
        return {dim: axes for dim, axes in claim.layout.items() if axes}

    def _usable(self, axes: Axes) -> Axes:
        return tuple(axis for axis in axes if axis in self.active)

    def _move(self, name: str, wanted: Mapping[str, Axes], waits: bool = False) -> Tensor:
        """The tensor *name* in the layout *wanted*, by as few collectives as that takes.

        If the reader *waits* with the sum, a partial tensor stays partial.
        """
        tensor = self.tensors[name]
        target = {dim: wanted.get(dim, ()) for dim in tensor.dims}
        if tensor.partial and not waits:
            tensor = self.tensors[name] = self._sum(tensor, target)
        lost = [axis for dim in tensor.dims for axis in tensor.layout[dim]
                if axis not in target[dim]]  # fmt: skip
        wanting = {axis for axes in target.values() for axis in axes}
        moved = tuple(axis for axis in lost if axis in wanting)
        gathered = tuple(axis for axis in lost if axis not in wanting)
        if gathered:
            held = {d: tuple(a for a in axes if a not in gathered)
                    for d, axes in tensor.layout.items()}  # fmt: skip
            tensor = self._collect(tensor, "all_gather", gathered, held)
        if moved:
            tensor = self._collect(tensor, "all_to_all", moved, target)
        return tensor.laid_out(target, tensor.partial)

    def _sum(self, tensor: Tensor, target: Layout) -> Tensor:
        """Add up partial sums: scattered by the axes by which the result is wanted split."""
        before = tensor.layout
        added = {
            dim: tuple(a for a in axes if a not in before[dim]) for dim, axes in target.items()
        }
        scattered = {
            dim: axes for dim, axes in added.items() if axes and {*axes} <= {*tensor.partial}
        }
        axes = tuple(axis for part in scattered.values() for axis in part)
        if axes:
            layout = before | {dim: before[dim] + part for dim, part in scattered.items()}
            tensor = self._collect(tensor, "reduce_scatter", axes, layout)
        if tensor.partial:
            tensor = self._collect(tensor, "all_reduce", tensor.partial, tensor.layout)
        return tensor

    def _collect(self, tensor: Tensor, kind: CollectiveKind, axes: Axes, layout: Layout) -> Tensor:
        name = f"{tensor.name}.{kind}"
        while name in self.moved and self.moved[name].layout != layout:
            name = f"{name}.{'.'.join(axes)}"
        if name not in self.moved:
            given = self.given[name] = self.given.get(tensor.name, "")
            rows = [dim for dim in tensor.dims if dim in self.experts and kind == "all_to_all"]
            self.operators[name] = self.moved[name] = Collective(
                name=name,
                inputs=(tensor,),
                collective=kind,
                axes=axes,
                layout=layout,
                given=given,
                dealt=(rows[0], self.experts[rows[0]]) if rows else None,
            )
        return self.moved[name].outputs[0]


@lru_cache(maxsize=256)
def _known_layouts(
    active: frozenset[str],
    splits: tuple[tuple[str, Split], ...],
    derived: tuple[tuple[str, Expression], ...],
) -> dict[Hashable, Layout]:
    """The layouts found so far under these rules: layers of a model are mostly alike."""
    return {}


class _Claim:
    """Deals out the axes to the dimensions of one operator: *layout* is what came of it.

    An axis splits one dimension of a tensor: what one has taken is not there for those beside it.
    """

    def __init__(self, operator: Operator, taken: Iterable[str]) -> None:
        self.layout: Layout = {}
        self.whole = operator.whole
        self.sides = [frozenset(t.dims) for t in (*operator.inputs, *operator.outputs)]
        self.taken = set(taken)
        self.settled: set[str] = set()

    def __call__(self, dim: str, axes: Axes, *, alone: bool = False) -> None:
        """Give *dim* those of *axes* that are free; *alone*: that the operator does not use."""
        if dim in self.whole:
            return
        own = self.layout.setdefault(dim, ())
        if not axes:
            return
        beside = self.layout if alone else {d for side in self.sides if dim in side for d in side}
        used = self.taken.union(own, *(self.layout.get(other, ()) for other in beside))
        new = dict.fromkeys(axis for axis in axes if axis not in used)
        self.layout[dim] = (*own, *new)

    def settle(self, follows: Mapping[str, str]) -> None:
        """What was claimed so far is final; some dimensions are split as others are."""
        self.layout |= {dim: self.layout.get(of, ()) for dim, of in follows.items()}
        self.settled = set(self.layout)

    def reserve(self, axes: Iterable[str]) -> None:
        """Leave *axes* to others."""
        self.taken.update(axes)

    def is_open(self, dim: str) -> bool:
        """Whether *dim* may still take axes."""
        return dim not in self.settled and dim not in self.whole


def _those_of(dim: str, tensors: Iterable[Tensor]) -> Axes:
    """The axes that split *dim* of any of *tensors*."""
    return tuple(axis for tensor in tensors for axis in tensor.layout.get(dim, ()))


def _dims(tensors: Iterable[Tensor]) -> tuple[str, ...]:
    """The dimensions of *tensors*, each once."""
    return tuple(dict.fromkeys(dim for tensor in tensors for dim in tensor.dims))
