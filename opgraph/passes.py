"""Passes: a graph in, a graph out.

`shard` derives the collectives of a plan from the names of the dimensions (the four cases of
Austin et al., How to Scale Your Model, 2025, chapter 3): a contraction over a split dimension
leaves partial sums, so an all-reduce follows, or a reduce-scatter where the reader wants the
result split; a dimension that a reader needs whole is gathered; a split that moves from one
dimension to another is an all-to-all. Taking one's own part of a whole tensor is free. A norm
over a split dimension sums its statistics over chips.
"""

from collections.abc import Sequence
from dataclasses import replace

from opgraph.graph import Block, Graph
from opgraph.operator import Collective, CollectiveKind, Operator
from opgraph.plan import Plan
from opgraph.sizes import Axes
from opgraph.tensor import Tensor

Layout = dict[str, Axes]


def shard(graph: Graph, plan: Plan) -> Graph:
    """One chip's part of *graph* under *plan*, with the collectives that the splits call for.

    Only the axes that split anything count, not their degrees: the numbers come later.
    """
    return _Sharding(graph, plan).graph()


def _read(blocks: Sequence[Block]) -> frozenset[str]:
    """The tensors that *blocks* read or carry."""
    read = {t.name for block in blocks for op in block.operators for t in op.activations}
    return frozenset(read | {entry for block in blocks for entry, _ in block.carried})


class _Sharding:
    """The state of one walk over a graph: where each tensor is and in which layout."""

    def __init__(self, source: Graph, plan: Plan) -> None:
        self.source = source
        self.active = frozenset(plan.active)
        self.names = plan.bind({}, source.derived)
        self.tensors: dict[str, Tensor] = {tensor.name: tensor for tensor in source.inputs}
        self.operators: dict[str, Operator] = {}
        self.moved: dict[str, Collective] = {}
        self.given: dict[str, str] = {}

    def graph(self) -> Graph:
        blocks = self.source.blocks
        placed = (self._block(block, _read(blocks[i + 1 :])) for i, block in enumerate(blocks))
        return replace(self.source, blocks=tuple(placed))

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
        return Block(block.name, tuple(self.operators.values()), block.count, carried)

    def _operator(self, operator: Operator) -> None:
        layout = self._layout(operator)
        waiting = self._waiting(operator)
        inputs = tuple(
            self._move(tensor.name, layout, tensor.name in waiting)
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
        return names if len({self.tensors[name].partial for name in names}) == 1 else frozenset()

    def _layout(self, operator: Operator) -> Layout:
        """Which axes split each dimension of *operator*; weights and caches choose first.

        An axis splits one dimension of a tensor: one that is taken by a weight's dimension (or
        by an earlier one of any tensor that has both) is not there for the others.
        """
        kept = [tensor for tensor in operator.inputs if tensor.role != "activation"]
        tensors = (*kept, *operator.activations, *operator.outputs)
        layout: Layout = {}
        for index, tensor in enumerate(tensors):
            if index == len(kept):
                layout |= {dim: layout.get(of, ()) for dim, of in operator.follows.items()}
            for dim in tensor.dims:
                if dim not in layout and dim not in operator.whole:
                    beside = {other for t in tensors if dim in t.dims for other in t.dims}
                    taken = {axis for other in beside for axis in layout.get(other, ())}
                    free = self.active - taken
                    layout[dim] = tuple(axis for axis in self.names.axes(dim) if axis in free)
        return {dim: axes for dim, axes in layout.items() if axes}

    def _move(self, name: str, wanted: Layout, waits: bool = False) -> Tensor:
        """The tensor *name* in the layout *wanted*, by as few collectives as that takes.

        If the reader *waits* with the sum, a partial tensor stays partial.
        """
        tensor = self.tensors[name]
        target = {dim: wanted.get(dim, ()) for dim in tensor.dims}
        if tensor.partial and not waits:
            tensor = self.tensors[name] = self._sum(tensor, target)
        lost = {dim: set(axes) - set(target[dim]) for dim, axes in tensor.layout.items()}
        gathered = tuple(
            axis for dim in tensor.dims for axis in tensor.layout[dim] if axis in lost[dim]
        )
        if gathered:
            moved = any(set(gathered) & set(axes) for axes in target.values())
            kind: CollectiveKind = "all_to_all" if moved else "all_gather"
            tensor = self._collect(tensor, kind, gathered, target)
        return tensor.laid_out(target, tensor.partial)

    def _sum(self, tensor: Tensor, target: Layout) -> Tensor:
        """Add up partial sums: reduce-scatter if the result is wanted split by the same axes."""
        axes = tensor.partial
        scattered = {dim: a for dim, a in target.items() if a and set(a) <= set(axes)}
        kind: CollectiveKind = "reduce_scatter" if scattered else "all_reduce"
        return self._collect(tensor, kind, axes, tensor.layout | scattered)

    def _collect(self, tensor: Tensor, kind: CollectiveKind, axes: Axes, layout: Layout) -> Tensor:
        name = f"{tensor.name}.{kind}"
        if name in self.moved and self.moved[name].layout != layout:
            name = f"{name}.{'.'.join(axes)}"
        if name not in self.moved:
            given = self.given[name] = self.given.get(tensor.name, "")
            self.operators[name] = self.moved[name] = Collective(
                name=name, inputs=(tensor,), collective=kind, axes=axes, layout=layout, given=given
            )
        return self.moved[name].outputs[0]
