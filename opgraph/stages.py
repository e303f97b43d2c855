"""Stages: a graph cut between layers into pieces, which hand on what the next ones read."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from hardware import SpecError
from opgraph.graph import Block, Graph, renamed
from opgraph.operator import Operator, Send
from opgraph.overlap import early, overlapped
from opgraph.passes import lay_out
from opgraph.plan import Plan
from opgraph.sizes import Axes, Expression
from opgraph.tensor import Tensor

# how a tensor is called where it leaves a piece and where it enters the next one
_SENT, _RECEIVED = "send.", "received."


def num_layers(graph: Graph) -> int:
    """Layers that may be on different stages."""
    return sum(len(block.layers) * block.count for block in graph.blocks)


def even(layers: int, pieces: int) -> tuple[int, ...]:
    """*layers* over *pieces*, as evenly as they go; the first ones have one more."""
    each, more = divmod(layers, pieces)
    return tuple(each + (i < more) for i in range(pieces))


@lru_cache(maxsize=256)
def cut(graph: Graph, layers: tuple[int, ...], *, decodes: bool) -> tuple[Graph, ...]:
    """*graph* in pieces with so many *layers* each; what is before or after them at the ends.

    Each piece but the last ends with a `Send` of each tensor that later ones read: hidden state
    and residual, as vLLM sends them. In a step that *decodes*, the last one sends the tokens.

    Raises
    ------
    SpecError : fewer layers than pieces, or another number of layers than the graph has.
    """
    if len(layers) == 1:
        return (graph,)
    if min(layers) < 1:
        raise SpecError(
            f"{len(layers)} stages or pieces of them are too many for the "
            f"{num_layers(graph)} layers of {graph.name}: each needs one"
        )
    if sum(layers) != num_layers(graph):
        raise SpecError(
            f"stages of {', '.join(map(str, layers))} layers hold {sum(layers)}, "
            f"but {graph.name} has {num_layers(graph)}"
        )
    pieces = _pieces(graph, layers)
    for piece, following in zip(reversed(pieces[:-1]), reversed(pieces[1:]), strict=True):
        piece.hands_on(following)
    if decodes:
        pieces[-1].sends(pieces[-1].blocks[-1].operators[-1].outputs[0])
    return tuple(piece.graph(graph) for piece in pieces)


def _pieces(graph: Graph, layers: Sequence[int]) -> list["_Piece"]:
    outside = {tensor.name: tensor for tensor in graph.inputs}
    pieces = [_Piece(layers[0], graph.shared, outside)]
    for block in graph.blocks:
        if not block.layers:
            pieces[-1].add(block, block.operators, "", block.count)
            continue
        pieces[-1].enter(block)
        first, end = 0, len(block.layers) * block.count
        while first < end:
            if not pieces[-1].left:
                pieces.append(_Piece(layers[len(pieces)], graph.shared, outside))
                pieces[-1].enter(block)
            taken = min(pieces[-1].left, end - first)
            pieces[-1].take(block, first, first + taken)
            first += taken
        pieces[-1].leave(block)
    return pieces


@dataclass
class _Piece:
    """A piece as it grows: its blocks, and what it calls each tensor of the whole graph."""

    left: int
    shared: frozenset[str]
    outside: dict[str, Tensor]
    blocks: list[Block] = field(default_factory=list)
    called: dict[str, str] = field(default_factory=dict)
    made: dict[str, Tensor] = field(default_factory=dict)
    wanted: dict[str, Tensor] = field(default_factory=dict)
    sent: list[Send] = field(default_factory=list)
    before: dict[str, str] = field(default_factory=dict)

    def enter(self, block: Block) -> None:
        """Begin with *block*: inside, a carried name is what was handed on."""
        self.before = {entry: self.called.get(entry, entry) for entry, _ in block.carried}

    def leave(self, block: Block) -> None:
        """End with *block*: a carried name is again what went in."""
        self.called |= self.before

    def take(self, block: Block, first: int, end: int) -> None:
        """Append the layers from *first* to before *end* of all repetitions of *block*."""
        self.left -= end - first
        period = len(block.layers)
        bounds = (*block.layers, len(block.operators))
        while first < end:
            at = first % period
            whole = (end - first) // period if at == 0 else 0
            if whole:
                self.add(block, block.operators, "", whole)
                first += whole * period
                continue
            stop = min(period, at + end - first)
            # a part of a repetition at the beginning or the end has weights of its own
            prefix = "begin." if at else "end."
            self.add(block, block.operators[bounds[at] : bounds[stop]], prefix)
            if stop == period:
                self.hand_on(block)
            first += stop - at

    def add(
        self, block: Block, operators: tuple[Operator, ...], prefix: str, count: int = 1
    ) -> None:
        """Append *operators* of *block*, called with *prefix*, *count* times."""
        names = self.called | {name: name for name in self.shared}
        placed = []
        for operator in operators:
            for tensor in operator.activations:
                names[tensor.name] = self._find(tensor, names.get(tensor.name, tensor.name))
            one = renamed(operator, names, prefix)
            pairs = zip(operator.outputs, one.outputs, strict=True)
            names |= {old.name: new.name for old, new in pairs}
            self.made |= {tensor.name: tensor for tensor in one.outputs}
            placed.append(one)
        whole = count > 1 or len(operators) == len(block.operators)
        carried = tuple(
            (names.get(entry, entry), names[leave]) for entry, leave in block.carried if whole
        )
        self.called = names
        self.blocks.append(Block(prefix + block.name, tuple(placed), count, carried))
        if carried:
            self.hand_on(block)

    def hand_on(self, block: Block) -> None:
        """What the next repetition finds under the carried names."""
        self.called |= {entry: self.called[leave] for entry, leave in block.carried}

    def hands_on(self, following: "_Piece") -> None:
        """Send what *following* wants; want oneself what one does not make."""
        for name, tensor in following.wanted.items():
            own = self._find(tensor, self.called.get(name, name))
            self.sends(self.made.get(own, tensor.called(own)), name)

    def sends(self, tensor: Tensor, name: str = "") -> None:
        """Send *tensor*, which the next piece calls *name*."""
        self.sent.append(Send(name=_SENT + (name or tensor.name), inputs=(tensor,)))

    def graph(self, whole: Graph) -> Graph:
        """The piece as a graph of its own."""
        wanted = (t.called(_RECEIVED + name) for name, t in self.wanted.items())
        used = {t.name for b in self.blocks for op in b.operators for t in op.activations}
        inputs = (*(t for t in whole.inputs if t.name in used), *wanted)
        sending = (Block("send", tuple(self.sent)),) if self.sent else ()
        return Graph(whole.name, (*self.blocks, *sending), inputs, whole.derived)

    def _find(self, tensor: Tensor, name: str) -> str:
        """What *tensor*, now called *name*, is called here; if nothing makes it, it is wanted."""
        if name in self.made or name in self.outside or name.startswith(_RECEIVED):
            return name
        self.wanted.setdefault(name, tensor)
        return _RECEIVED + name


@dataclass(frozen=True, eq=False)
class Piece:
    """One chip's graph of a piece, and what it hands to the next one."""

    graph: Graph
    sends: tuple[Send, ...]


@lru_cache(maxsize=1024)
def laid_out(
    graph: Graph,
    layers: tuple[int, ...],
    active: Axes,
    sp: bool,
    decodes: bool,
    overlap: tuple[str, int] = ("", 1),
) -> tuple[Piece, ...]:
    """The pieces of *graph* under the mesh axes that are *active*; alike ones are one object.

    *overlap*: how transfers are overlapped, and the parts of a product (`overlap.overlapped`).
    """
    tokens = "batch" if decodes else "seq"
    known: dict[Hashable, Piece] = {}
    placed: list[Piece] = []
    for piece in cut(graph, layers, decodes=decodes):
        inputs = _received(piece.inputs, placed[-1].sends) if placed else piece.inputs
        key = (_once(piece), inputs, tuple(block.count for block in piece.blocks))
        if key not in known:
            whole = _with_counts(_placed(_once(piece), inputs, active, sp, decodes), piece)
            known[key] = _apart(overlapped(whole, *overlap, tokens))
        placed.append(known[key])
    return tuple(placed)


@lru_cache(maxsize=1024)
def _placed(
    graph: Graph, inputs: tuple[Tensor, ...], active: Axes, sp: bool, decodes: bool
) -> Graph:
    """*graph* laid out, its *inputs* as they come, its transfers issued early."""
    splits = Plan(sp=sp).splits(decodes)
    return early(lay_out(replace(graph, inputs=inputs), active, splits))


@lru_cache(maxsize=1024)
def _once(graph: Graph) -> Graph:
    """*graph* with each block once, which is all that decides its layout: one object for all
    graphs that differ only in how often blocks repeat.
    """
    blocks = tuple(replace(block, count=1) for block in graph.blocks)
    kinds = tuple(operator.likeness for operator, _ in graph.operators)
    return _one_of(graph.name, blocks, kinds, graph.inputs, tuple(graph.derived.items()))


@lru_cache(maxsize=1024)
def _one_of(
    name: str,
    blocks: tuple[Block, ...],
    kinds: tuple[int, ...],
    inputs: tuple[Tensor, ...],
    derived: tuple[tuple[str, Expression], ...],
) -> Graph:
    """The graph; *kinds* tell operators apart in what they are not compared by."""
    return Graph(name, blocks, inputs, dict(derived))


def _with_counts(placed: Graph, source: Graph) -> Graph:
    """*placed* with as many repetitions as *source*; what it has before them is done once."""
    more = len(placed.blocks) - len(source.blocks)
    counted = (
        replace(block, count=whole.count)
        for block, whole in zip(placed.blocks[more:], source.blocks, strict=True)
    )
    return replace(placed, blocks=(*placed.blocks[:more], *counted))


def joined(pieces: Sequence[Piece]) -> Graph:
    """All pieces as one graph; names begin with the number of the piece."""
    blocks: list[Block] = []
    for j, piece in enumerate(pieces):
        rename = {t.name: f"{j}.{t.name}" for t in piece.graph.inputs}
        rename |= {
            t.name: f"{j - 1}.{_SENT}{t.name.removeprefix(_RECEIVED)}"
            for t in piece.graph.inputs
            if t.name.startswith(_RECEIVED)
        }
        for block in (*piece.graph.blocks, Block("send", piece.sends)):
            operators = []
            for operator in block.operators:
                rename |= {t.name: f"{j}.{t.name}" for t in operator.outputs}
                operators.append(renamed(operator, rename, f"{j}."))
            carried = tuple((rename[entry], rename[leave]) for entry, leave in block.carried)
            blocks.append(Block(f"{j}.{block.name}", tuple(operators), block.count, carried))
    inputs = tuple(t.called(f"0.{t.name}") for t in pieces[0].graph.inputs)
    first = pieces[0].graph
    return Graph(first.name, tuple(blocks), inputs, first.derived)


def _apart(graph: Graph) -> Piece:
    """The laid-out piece, what it sends apart from the rest."""
    sends = tuple(op for op, _ in graph.operators if isinstance(op, Send))
    rest = (
        replace(block, operators=tuple(op for op in block.operators if not isinstance(op, Send)))
        for block in graph.blocks
    )
    return Piece(replace(graph, blocks=tuple(block for block in rest if block.operators)), sends)


def _received(inputs: Sequence[Tensor], sends: Sequence[Send]) -> tuple[Tensor, ...]:
    """The *inputs* of a piece as the *sends* of the laid-out piece before it have left them."""
    sent = {_RECEIVED + op.name.removeprefix(_SENT): op.outputs[0] for op in sends}
    return tuple(sent.get(t.name, t).called(t.name) for t in inputs)
