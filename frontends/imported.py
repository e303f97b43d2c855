"""From a program to a model: patterns, kernels, names, layers; the same for code and for files."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from frontends.dimensions import Dimensions
from frontends.emission import PLAIN, Emitter
from frontends.flow import Flow, simplified
from frontends.folding import folded
from frontends.fusion import fused, is_causal
from frontends.naming import Names, Naming
from frontends.others import OTHERS
from frontends.precision import Precision
from frontends.products import PRODUCTS
from frontends.program import Node, Program, Value
from frontends.recognition import recognised
from frontends.sequences import SEQUENCES
from frontends.writer import Writer
from opgraph.graph import Graph, GraphError
from opgraph.model import Model
from opgraph.sizes import Expression


@dataclass(frozen=True, eq=False)
class Imported(Model):
    """A model read from code or from a file.

    *unnamed*: the dimensions whose role is not known, each with a weight or an input that has it;
    no plan splits them. Name them with ``names={…}``.
    """

    unnamed: Mapping[str, str] = field(default_factory=dict)


def to_model(program: Program, names: Names | None = None) -> Imported:
    """The model of a program.

    Parameters
    ----------
    names : weights or inputs (``*`` stands for anything) → a word for each axis, or None.

    Raises
    ------
    SpecError : an operator or an open size that has no meaning here; *names* that do not fit;
        a program without a result.
    """
    if not program.outputs:
        raise program.refuse("it returns no tensor: there is nothing to simulate")
    flow = recognised(simplified(Flow(program.nodes, program.outputs)))
    flow = fused(_served(_uncached(flow)))
    dims = Dimensions(flow.nodes)
    naming = Naming(program, flow, dims, names or {})
    writer = Writer(program.name, Precision(), "rms")
    prefill, decode = (_written(Emitter(program, flow, naming, writer, d)) for d in (False, True))
    derived = {name: Expression(text) for name, text in writer.derived.items()}
    prefill, decode = (_checked(program, replace(g, derived=derived)) for g in (prefill, decode))
    alike = str(prefill) == str(decode)
    return Imported(
        name=program.name,
        source=program.source,
        prefill=prefill,
        decode=prefill if alike else decode,
        numbers=writer.numbers,
        family="",
        attention=" + ".join(writer.attention),
        inactive=writer.inactive,
        unnamed=naming.unnamed,
    )


def _checked(program: Program, graph: Graph) -> Graph:
    try:
        return graph.check()
    except GraphError as error:
        program.where = ""
        raise program.refuse(
            f"its dimensions do not fit together: {error}", "say what they are with names={…}"
        ) from error


def _written(emitter: Emitter) -> Graph:
    """The graph that *emitter* writes, repeated layers as one block."""
    emitter.run({**PLAIN, **PRODUCTS, **SEQUENCES, **OTHERS})
    blocks = folded(emitter.operators)
    return Graph(emitter.program.name, blocks, tuple(emitter.inputs.values()))


def _uncached(flow: Flow) -> Flow:
    """Caches are the simulator's own: those that the program hands back are no results."""

    def is_cache(value: Value) -> bool:
        node = flow.maker.get(flow.below(value))
        first = node.inputs[0] if node is not None and node.op in ("concat", "scatter") else None
        return first is not None and flow.below(first).kind == "input"

    kept = [value for value in flow.results if not is_cache(value)]
    return Flow(flow.nodes, kept or flow.results)


def _served(flow: Flow) -> Flow:
    """A step of serving needs the logits of each sequence's last position only."""
    if not any(map(is_causal, flow.nodes)):
        return flow
    replaced: dict[Node, list[Node]] = {}
    for result in flow.results:
        node = flow.maker.get(flow.below(result))
        while node is not None and node.op == "elementwise":
            node = flow.maker.get(node.inputs[0]) if node.inputs[0] else None
        x = node.inputs[0] if node is not None and node.op == "project" else None
        if node is None or x is None or x.rank != 3:
            continue
        last = Value(f"{x.name}.last", (x.shape[0], x.shape[2]), x.dtype)
        first, rest = str(node["equation"]).split(",", 1)
        second, out = rest.split("->")
        attributes = {"equation": f"{first[0] + first[2]},{second}->{out[0] + out[2:]}"}
        replaced[node] = [
            Node("last", (x,), (last,), {}, node.where),
            Node("project", (last, *node.inputs[1:]), node.outputs, attributes, node.where),
        ]
    return flow.rewritten(lambda _, node: replaced.get(node))
