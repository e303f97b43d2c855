"""Names for the dimensions of a program: by the roles that they play, or as the user says."""

from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch

from frontends.dim import Dim
from frontends.dimensions import SCANS, Dimensions
from frontends.flow import Flow
from frontends.fusion import is_activation, is_causal
from frontends.program import Node, Program, Value
from frontends.writer import Writer
from hardware import SpecError

Names = Mapping[str, Sequence[str | None]]
"""Weights or inputs (``*`` stands for anything) → a word for each axis, None where it is open."""

# dimensions whose size a workload gives
OPEN = frozenset({"batch", "seq", "context"})


class Naming:
    """What the dimensions of a program are called; *unnamed* are those that nobody named.

    Raises
    ------
    SpecError : *names* that do not fit the program.
    """

    def __init__(self, program: Program, flow: Flow, dims: Dimensions, names: Names) -> None:
        self.program, self.flow, self.dims = program, flow, dims
        self.words: dict[Dim, str] = {}
        self._given(names)
        for role in (
            _tokens,
            _tables,
            _attention,
            _experts,
            _scans,
            _residual,
            _windows,
            _channels,
            _heads,
            _leading,
        ):
            for dim, word in role(flow, dims):
                self._call(dim, word)
        self.unnamed: dict[str, str] = {}

    def _call(self, dim: Dim | None, word: str) -> None:
        atoms = dim.atoms if dim is not None else ()
        if len(atoms) == 1 and not atoms[0].parts:
            self.words.setdefault(atoms[0].root, word)

    def _given(self, names: Names) -> None:
        known = [*self.program.inputs, *self.program.weights.values()]
        for pattern, words in names.items():
            found = [value for value in known if fnmatch(value.name, pattern)]
            if not found:
                raise self.program.refuse(f"names={{{pattern!r}: …}} fits no weight and no input")
            for value in found:
                if len(words) != value.rank:
                    raise self.program.refuse(
                        f"names={{{pattern!r}: …}} has {len(words)} words but {value} "
                        f"{value.rank} axes"
                    )
                for dim, word in zip(self.dims.of.get(value, ()), words, strict=False):
                    if dim is not None and word:
                        self._name_atoms(dim, word, pattern)

    def _name_atoms(self, dim: Dim, word: str, pattern: str) -> None:
        words, atoms = word.split(), dim.atoms
        if len(words) != len(atoms):
            sizes = " × ".join(str(atom.size) for atom in atoms)
            raise self.program.refuse(f"names={{{pattern!r}: {word!r}}}: the axis is {sizes}")
        for atom, own in zip(atoms, words, strict=True):
            self.words.setdefault(atom.root, own)

    def name(self, dim: Dim, writer: Writer) -> str:
        """What an atom is called in *writer*, where it is declared."""
        root = dim.root
        if root.how == "sum" and root.parts:
            return self.derive(writer, "joined", expression(root, lambda d: self._term(d, writer)))
        word = self.words.get(root)
        if str(root.size) in OPEN:  # as a file or its user says
            return str(root.size)
        if word in OPEN:
            return str(word)
        if not isinstance(root.size, int):
            return self._symbolic(root, writer, word)
        if word is None:
            word = "dim"
            name = writer.dim("dim", root.size)
            self.unnamed.setdefault(name, self._origin(root))
            return name
        return writer.dim(word, root.size)

    def _term(self, dim: Dim, writer: Writer) -> str:
        """A part of a sum: one that nobody named is its size."""
        size = dim.root.size
        known = dim.root in self.words or dim.root.parts or not isinstance(size, int)
        return self.name(dim, writer) if known else str(size)

    def _symbolic(self, dim: Dim, writer: Writer, word: str | None) -> str:
        known = {str(d.size): w for d, w in self.words.items() if w in OPEN}
        text = str(dim.size)
        for symbol, name in known.items():
            text = text.replace(symbol, name)
        free = {str(s) for s in dim.size.free_symbols} - set(known)
        if free or "(" in text or "/" in text:
            raise SpecError(
                f"{self.program.name}: nothing says what the open size {dim.size} is "
                f"({self._origin(dim)}); call it batch or seq with names={{…}}"
            )
        return self.derive(writer, word or "places", text)

    def derive(self, writer: Writer, word: str, text: str) -> str:
        """The dimension that is the expression *text*, called *word*; numbered where that is taken.

        In an expression a qualifier does not begin with a digit.
        """
        name, number = word, 1
        while name in writer.numbers or writer.derived.setdefault(name, text) != text:
            number += 1
            name = f"{word}.n{number}"
        return name

    def _origin(self, dim: Dim) -> str:
        return f"{dim.origin[0].name}, axis {dim.origin[1]}" if dim.origin else "within the program"


def expression(dim: Dim, name: "object") -> str:
    """A sum of products as text: equal terms together."""
    terms = Counter("*".join(name(a) for a in part.atoms) for part in dim.summands)  # type: ignore[operator]
    return " + ".join(f"{n}*{term}" if n > 1 else term for term, n in terms.items())


Role = list[tuple[Dim | None, str]]


def _tokens(flow: Flow, dims: Dimensions) -> Role:
    """Inputs of whole numbers are tokens by sequence."""
    found: Role = []
    for node in flow.nodes:
        if node.op == "gather" and (index := node.inputs[1]) is not None:
            source = flow.below(index)
            axes = dims.of.get(source, ())
            if source.kind == "input" and len(axes) == 2:
                found += zip(axes, ("batch", "seq"), strict=True)
    return found


def _tables(flow: Flow, dims: Dimensions) -> Role:
    """An embedding is vocabulary by model; other tables are positions by model."""
    found: Role = []
    for node in flow.nodes:
        table, index = node.inputs[:2] if node.op == "gather" else (None, None)
        if table is None or index is None or table.kind != "weight" or len(dims.of[table]) != 2:
            continue
        rows = "vocab" if flow.below(index).kind == "input" else "positions"
        found += [(dims.of[table][0], rows), (dims.of[table][1], "model")]
    return found


def _attention(flow: Flow, dims: Dimensions) -> Role:
    found: Role = []
    for node in flow.nodes:
        if node.op == "mla":
            query, turned, latent, *_ = (dims.of[v] for v in node.inputs if v is not None)
            found += zip(query, ("batch", "heads", "seq", "nope"), strict=True)
            made = dims.of[node.output][3]
            found += [(turned[3], "rope"), (latent[-1], "kv_rank"), (made, "value_dim")]
        if node.op != "attention":
            continue
        query, key, value = (dims.of[v] for v in node.inputs[:3] if v is not None)
        is_open = query[2] is not None and not isinstance(query[2].root.size, int)
        places = "seq" if node["causal"] or is_open else "places"
        found += zip(query, ("batch", "heads", places, "head_dim"), strict=True)
        found += [(key[1], "kv_heads"), (key[2], "places")]
        same = (
            value[3] is not None
            and query[3] is not None
            and value[3].root.size == query[3].root.size
        )
        found += [(value[3], "head_dim" if same else "value_dim")]
    return found


def _experts(flow: Flow, dims: Dimensions) -> Role:
    found: Role = []
    for node in flow.nodes:
        if node.op == "experts":
            (up, down), (routes,) = (
                [dims.of[v] for v in values if v is not None]
                for values in (node.inputs[2:4], node.inputs[1:2])
            )
            wide, narrow = (2, 1) if node["transposed"] else (1, 2)
            found += [(up[0], "experts"), (down[wide], "model"), (down[narrow], "ffn")]
            chosen = routes[-1] is not None and routes[-1].root.size == node["k"]
            found.append((routes[-1], "topk" if chosen else "choices"))
    return found


_LINEAR = {"h": "ssm_heads", "p": "ssm_dim", "g": "groups", "n": "state"}
_SCAN_WORDS = {
    "conv": {"h": "inner", "k": "taps"},
    "selective": {"h": "inner", "n": "state"},
    "ssd": _LINEAR,
    "delta": _LINEAR,
}


def _scans(flow: Flow, dims: Dimensions) -> Role:
    found: Role = []
    for node in flow.nodes:
        if node.op == "scan":
            words = {"b": "batch", "s": "seq", **_SCAN_WORDS[node["kind"]]}
            for term, value in zip(SCANS[node["kind"]].split(), node.inputs, strict=False):
                axes = dims.of[value] if value is not None else ()
                found += [(dim, words[letter]) for letter, dim in zip(term, axes, strict=False)]
    return sorted(found, key=lambda entry: entry[1] == "inner")


def _residual(flow: Flow, dims: Dimensions) -> Role:
    """What goes through the residual sums is as wide as the model."""
    found: Role = []
    for node in flow.nodes:
        if node.op == "norm" and len(node.outputs) > 1:
            found.append((dims.of[node.output][-1], "model"))
    for value in (v for node in flow.nodes for v in node.inputs if v is not None):
        floats = value.dtype not in ("int64", "int32", "bool") and value.rank == 3
        if (
            value.kind == "input"
            and floats
            and not any(n.op == "conv" for n in flow.readers[value])
        ):
            found += zip(dims.of[value], ("batch", "seq", "model"), strict=True)
    return found


def _channels(flow: Flow, dims: Dimensions) -> Role:
    """What is contracted after an activation is a channel's width; without one, a rank."""
    found: Role = []
    for node in flow.nodes:
        if node.op != "project":
            continue
        first, second = str(node["equation"]).partition("->")[0].split(",")
        maker = _above(flow, node.operand())
        active = maker is not None and maker.op == "map" and is_activation(maker["names"])
        axes = zip(second, dims.of[node.operand(1)], strict=True)
        word = "ffn" if active else "rank"
        found += [(dim, word) for letter, dim in axes if letter in first]
    return found


def _above(flow: Flow, value: Value) -> Node | None:
    return flow.maker.get(flow.below(value))


def _leading(flow: Flow, dims: Dimensions) -> Role:
    """What comes in comes sequence by sequence."""
    values = (v for node in flow.nodes for v in node.inputs if v is not None and v.kind == "input")
    return [(dims.of[value][0], "batch") for value in values if value.rank]


def _windows(flow: Flow, dims: Dimensions) -> Role:
    """Of a convolution: channels, and the taps of its window along each axis."""
    found: Role = []
    for node in flow.nodes:
        if node.op == "conv" and node.inputs[1] is not None:
            made, inner, *taps = dims.of[node.inputs[1]]
            found += [(made, "model"), (inner, "channels"), *((tap, "taps") for tap in taps)]
            found += [(place, "places") for place in dims.of[node.output][2:]]
    return found


def _heads(flow: Flow, dims: Dimensions) -> Role:
    """The last product of a model of tokens is over its vocabulary."""
    word = "vocab" if any(map(is_causal, flow.nodes)) else "classes"
    return [
        (dims.of[value][-1], word)
        for value in flow.results
        if (node := _above(flow, value)) is not None and node.op in ("project", "map")
    ]
