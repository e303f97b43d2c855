"""The operator graph of one step: blocks of operators, each with a count.

Eighty equal layers are one block × 80. What a block hands from one repetition to the next is
*carried*: pairs of a tensor's name on entry and on exit.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from hardware import Number
from hardware.errors import nearest
from opgraph.operator import Operator
from opgraph.sizes import Expression, Sizes
from opgraph.tensor import Tensor
from opgraph.work import Basis

if TYPE_CHECKING:
    import networkx as nx


class GraphError(ValueError):
    """A graph that is not well formed: the message names the operator and the tensor."""


@dataclass(frozen=True)
class Block:
    """*operators* in program order, repeated *count* times.

    *layers*: the place of each layer's first operator, where the block is made of layers.
    """

    name: str
    operators: tuple[Operator, ...]
    count: int = 1
    carried: tuple[tuple[str, str], ...] = ()
    layers: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Graph:
    """Blocks in program order; *derived* gives the dimensions that are expressions.

    *inputs* are the tensors that come from outside the graph, besides weights and caches.
    """

    name: str
    blocks: tuple[Block, ...]
    inputs: tuple[Tensor, ...] = ()
    derived: Mapping[str, Expression] = field(default_factory=dict)

    @property
    def operators(self) -> Iterator[tuple[Operator, int]]:
        """Each operator with its count, in program order."""
        return ((operator, block.count) for block in self.blocks for operator in block.operators)

    @cached_property
    def nx(self) -> "nx.DiGraph[str]":
        """The graph in networkx: nodes carry ``operator block count``, edges ``tensor`` and,
        where several go along, all ``tensors``.

        A block stands once; what it carries to its next repetition is no edge.
        """
        import networkx as nx

        graph: nx.DiGraph[str] = nx.DiGraph(name=self.name)
        producer: dict[str, str] = {}
        for block in self.blocks:
            for operator in block.operators:
                graph.add_node(
                    operator.name, operator=operator, block=block.name, count=block.count
                )
                for tensor in operator.activations:
                    if (maker := producer.get(tensor.name)) is not None:
                        known = graph.get_edge_data(maker, operator.name, {}).get("tensors", ())
                        tensors = (*known, tensor)
                        graph.add_edge(maker, operator.name, tensor=tensors[0], tensors=tensors)
                producer |= {tensor.name: operator.name for tensor in operator.outputs}
        return graph

    @cached_property
    def shared(self) -> frozenset[str]:
        """The weights and caches that several blocks read: one for all, also of a block that
        repeats. What a single block reads, each of its repetitions has for itself.
        """
        blocks = [
            {t.name for op in block.operators for t in op.inputs if t.role != "activation"}
            for block in self.blocks
        ]
        uses = Counter(name for names in blocks for name in names)
        return frozenset(name for name, count in uses.items() if count > 1)

    def tensors(self, role: str) -> Iterator[tuple[Tensor, int]]:
        """The weights or caches, each once, with how many of it there are."""
        seen: set[str] = set()
        for operator, count in self.operators:
            for tensor in operator.inputs:
                if tensor.role == role and tensor.name not in seen:
                    seen.add(tensor.name)
                    yield tensor, 1 if tensor.name in self.shared else count

    def nbytes(self, role: str, sizes: Sizes) -> Number:
        """Bytes of all weights or caches on one chip."""
        return sum(tensor.nbytes(sizes) * count for tensor, count in self.tensors(role))

    def basis(self, dim: str) -> frozenset[str]:
        """What *dim* is made up of: itself, or what its expression is over."""
        if dim not in self.derived:
            return frozenset({dim})
        return frozenset[str]().union(*map(self.basis, self.derived[dim].names))

    def unroll(self) -> "Graph":
        """The same graph with every repetition written out."""
        blocks: list[Block] = []
        called = {name: name for name in self.shared}
        for block in self.blocks:
            for prefix in repetitions(block, called):
                operators = []
                for operator in block.operators:
                    one = renamed(operator, called, prefix)
                    pairs = zip(operator.outputs, one.outputs, strict=True)
                    called |= {old.name: new.name for old, new in pairs}
                    operators.append(one)
                blocks.append(Block(prefix + block.name, tuple(operators)))
        return replace(self, blocks=tuple(blocks))

    def check(self) -> "Graph":
        """The graph itself, if it is well formed.

        Raises
        ------
        GraphError : a name given twice, a tensor read before it is made or with other
            dimensions than it was made with, inputs that do not fit each other.
        """
        known = {tensor.name: tensor for tensor in self.inputs}
        names: set[str] = set()
        for block in self.blocks:
            if block.count < 1:
                raise GraphError(f"{self.name}: block {block.name!r} has count {block.count}")
            for operator in block.operators:
                if operator.name in names:
                    raise GraphError(f"{self.name}: two operators are called {operator.name!r}")
                names.add(operator.name)
                _check_operator(operator, known, self.basis)
            _check_carried(block, known)
        return self

    def __str__(self) -> str:
        lines = [f"{self.name}({', '.join(map(str, self.inputs))})"]
        lines += [f"  where {name} = {by.text}" for name, by in self.derived.items()]
        for block in self.blocks:
            lines.append(f"{block.name}:" if block.count == 1 else f"{block.name} × {block.count}:")
            lines += [f"  {operator}" for operator in block.operators]
            lines += [f"  {entry} ← {leave}" for entry, leave in block.carried]
        return "\n".join(lines)


def repetitions(block: Block, called: dict[str, str]) -> Iterator[str]:
    """With what the names in each repetition of *block* begin. *called* has the latest name of each
    tensor: whoever writes a repetition out adds what it makes.

    Inside, a carried name is what was handed on; after the block it is again what went in.
    """
    before = {entry: called.get(entry, entry) for entry, _ in block.carried}
    for index in range(block.count):
        yield f"{index}." if block.count > 1 else ""
        called |= {entry: called.get(leave, leave) for entry, leave in block.carried}
    called |= before


def renamed(operator: Operator, rename: Mapping[str, str], prefix: str) -> Operator:
    """*operator* called with *prefix*, as its weights are; it reads tensors as *rename* says."""

    def called(tensor: Tensor) -> Tensor:
        own = tensor.name if tensor.role == "activation" else prefix + tensor.name
        return tensor.called(rename.get(tensor.name, own))

    inputs = tuple(called(tensor) for tensor in operator.inputs)
    awaits = tuple(rename.get(name, name) for name in operator.awaits)
    if not prefix and (inputs, awaits) == (operator.inputs, operator.awaits):
        return operator
    return replace(operator, name=prefix + operator.name, inputs=inputs, awaits=awaits)


def _check_operator(operator: Operator, known: dict[str, Tensor], basis: Basis) -> None:
    for tensor in operator.inputs:
        before = known.get(tensor.name)
        if before is None and tensor.role == "activation":
            raise GraphError(
                f"{operator.name} reads {tensor.name!r} before anything makes it"
                f"{nearest(tensor.name, list(known))}"
            )
        if before is not None and (before.dims, before.format) != (tensor.dims, tensor.format):
            raise GraphError(f"{operator.name} reads {tensor} but it was made as {before}")
        known[tensor.name] = tensor
    if complaint := operator.complaint(basis):
        raise GraphError(f"{operator.name}: {complaint}")
    for tensor in operator.outputs:
        if tensor.name in known:
            raise GraphError(f"{operator.name}: {tensor.name!r} is made twice")
        known[tensor.name] = tensor


def _check_carried(block: Block, known: dict[str, Tensor]) -> None:
    made = {tensor.name for operator in block.operators for tensor in operator.outputs}
    for entry, leave in block.carried:
        if entry not in known:
            raise GraphError(f"block {block.name!r} carries {entry!r}, which nothing makes")
        if leave not in made:
            raise GraphError(f"block {block.name!r} hands on {leave!r}, which it does not make")
        before, after = known[entry], known[leave]
        if (before.dims, before.format) != (after.dims, after.format):
            raise GraphError(f"block {block.name!r} turns {before} into {after}")


class Builder:
    """Writes a graph operator by operator.

    Examples
    --------
    >>> from opgraph.tensor import Tensor
    >>> from opgraph.operator import Activation
    >>> build = Builder("two")
    >>> x = build.input(Tensor.of("x", "batch model", "bf16"))
    >>> (x,) = build.repeat("layer", 2, lambda x: build.add(Activation(name="act", inputs=(x,))), x)
    >>> print(build.graph())
    two(x:bf16[batch model])
    layer × 2:
      act:bf16[batch model] = activation(x)
      x ← act
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._derived: dict[str, Expression] = {}
        self._inputs: list[Tensor] = []
        self._blocks: list[Block] = []
        self._pending: list[Operator] = []
        self._layers: list[int] = []
        self._given = ""

    def input(self, tensor: Tensor) -> Tensor:
        """Declare a tensor that comes from outside."""
        self._inputs.append(tensor)
        return tensor

    def derive(self, expressions: Mapping[str, str]) -> None:
        """Declare dimensions that are expressions over others."""
        self._derived |= {name: Expression(text) for name, text in expressions.items()}

    def add(self, operator: Operator) -> tuple[Tensor, ...]:
        """Append *operator*; its outputs."""
        self._pending.append(replace(operator, given=self._given) if self._given else operator)
        return operator.outputs

    def layer(self) -> None:
        """What is added next begins a layer, which a pipeline may put on a stage of its own."""
        self._layers.append(len(self._pending))

    @contextmanager
    def given(self, dim: str) -> Iterator[None]:
        """What is added within does not run where *dim* is 0; nothing changes if it is empty."""
        before, self._given = self._given, dim or self._given
        yield
        self._given = before

    def repeat(
        self, name: str, count: int, body: Callable[..., tuple[Tensor, ...]], *carried: Tensor
    ) -> tuple[Tensor, ...]:
        """Append the block that *body* writes, *count* times; what the last one leaves.

        *body* takes the carried tensors and returns them as they leave, in the same order.
        """
        self._close()
        left = body(*carried)
        pairs = tuple(dict.fromkeys((a.name, b.name) for a, b in zip(carried, left, strict=True)))
        self._close(name, count, pairs)
        return left

    def block(self, name: str) -> None:
        """End a block: what was added since the last one is called *name*."""
        self._close(name)

    def graph(self) -> Graph:
        """The finished graph, checked."""
        self._close()
        return Graph(self.name, tuple(self._blocks), tuple(self._inputs), self._derived).check()

    def _close(
        self, name: str = "", count: int = 1, carried: tuple[tuple[str, str], ...] = ()
    ) -> None:
        if self._pending:
            name = name or ("head" if self._blocks else "stem")
            layers = tuple(self._layers)
            self._blocks.append(Block(name, tuple(self._pending), count, carried, layers))
            self._pending, self._layers = [], []
