"""Data flow of a program: who makes and who reads each value, and nodes put in others' places."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property

from frontends.program import VIEWS, Node, Value

_NARROW = frozenset({"fp8", "int8", "int4", "fp4"})


class Flow:
    """The nodes that results depend on, in order."""

    def __init__(self, nodes: Iterable[Node], results: Iterable[Value]) -> None:
        self.results = tuple(results)
        self.nodes = _alive(tuple(nodes), self.results)

    @cached_property
    def maker(self) -> Mapping[Value, Node]:
        """The node that makes each value."""
        return {value: node for node in self.nodes for value in node.outputs}

    @cached_property
    def readers(self) -> Mapping[Value, list[Node]]:
        """The nodes that read each value; a result of the program has None among them."""
        readers: defaultdict[Value, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                if value is not None:
                    readers[value].append(node)
        return readers

    @cached_property
    def weighted(self) -> frozenset[Value]:
        """The values that some weight went into."""
        found: set[Value] = set()
        for node in self.nodes:
            if any(v is not None and (v.kind == "weight" or v in found) for v in node.inputs):
                found.update(node.outputs)
        return frozenset(found)

    def op(self, value: Value | None) -> str:
        """The primitive that makes *value*, elementwise ones by their function; else its kind."""
        if value is None:
            return ""
        node = self.maker.get(value)
        if node is None:
            return value.kind
        return str(node["fn"]) if node.op in ("elementwise", "reduce") else node.op

    def below(self, value: Value, ops: frozenset[str] = VIEWS) -> Value:
        """What *value* was before operators of *ops* with a single operand."""
        while (node := self.maker.get(value)) is not None and node.op in ops:
            if node.inputs[0] is None:
                break
            value = node.inputs[0]
        return value

    def weight(self, value: Value | None) -> Value | None:
        """The weight that *value* is a view of."""
        found = self.below(value) if value is not None else None
        return found if found is not None and found.kind == "weight" else None

    def reader(self, value: Value) -> Node | None:
        """The only node that reads *value*, if there is just one and it is no result."""
        readers = self.readers[value]
        return readers[0] if len(readers) == 1 and value not in self.results else None

    def rewritten(self, rule: "Callable[[Flow, Node], Sequence[Node] | None]") -> "Flow":
        """Each node replaced by what *rule* gives for it, where it gives something."""
        nodes: list[Node] = []
        for node in self.nodes:
            made = rule(self, node)
            nodes += [node] if made is None else made
        return Flow(nodes, self.results)

    def substituted(self, same: Mapping[Value, Value]) -> "Flow":
        """Each value read as what it is the *same* as."""

        def root(value: Value | None) -> Value | None:
            while value is not None and value in same:
                value = same[value]
            return value

        nodes = [
            Node(n.op, tuple(map(root, n.inputs)), n.outputs, n.attributes, n.where)
            for n in self.nodes
        ]
        results = [found for value in self.results if (found := root(value)) is not None]
        return Flow(nodes, results)


Found = Iterator[tuple[Node, list[Node]]]
"""Last nodes of patterns, each with what takes its place."""


def is_constant(value: Value | None) -> bool:
    """Whether the content of *value* is known."""
    return value is not None and value.kind == "constant"


def simplified(flow: Flow) -> Flow:
    """Without what engines do not run: changes of format inside of kernels, expressions of weights
    alone (made when the model is loaded), reshapes to the same shape.
    """
    same: dict[Value, Value] = {}
    for node in flow.nodes:
        inputs = [same.get(v, v) for v in node.inputs if v is not None]
        if _is_identity(node):
            same[node.output] = inputs[0]
        elif inputs and node.op == "elementwise" and _is_loaded(inputs):
            whole = [v for v in inputs if v.kind == "weight" and v.shape == node.output.shape]
            if whole:
                same[node.output] = whole[0]
    return flow.substituted(same)


def _is_identity(node: Node) -> bool:
    first, result = node.inputs[0] if node.inputs else None, node.output
    if first is None:
        return False
    if node.op == "cast":
        floats = {first.dtype, result.dtype} <= {"fp32", "bf16", "fp16"}
        return floats or first.kind == "weight" or result.dtype not in _NARROW
    return node.op in ("reshape", "expand") and first.shape == result.shape


def _is_loaded(inputs: Sequence[Value]) -> bool:
    return all(value.kind in ("weight", "constant") for value in inputs)


def _alive(nodes: tuple[Node, ...], results: tuple[Value, ...]) -> tuple[Node, ...]:
    wanted = set(results)
    kept: list[Node] = []
    for node in reversed(nodes):
        if any(value in wanted for value in node.outputs):
            kept.append(node)
            wanted.update(value for value in node.inputs if value is not None)
    return tuple(reversed(kept))
