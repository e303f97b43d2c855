"""Overlap: the passes that put transfers under what is computed beside them.

Operators are issued in program order on each stream, so that what runs beside what is decided by
their order, and by how finely they are cut. A *part* (`work.Part`) does its share of an operator
under a name of its own and reads the same weights.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from opgraph.graph import Block, Graph, renamed
from opgraph.operator import Collective, Einsum, Operator, View
from opgraph.tensor import Tensor
from opgraph.work import Part

_HALVES = 2


def overlapped(graph: Graph, overlap: str, chunks: int, tokens: str) -> Graph:
    """The sharded *graph*, in parts of which some run beside transfers of others.

    *overlap*: ``two-batch`` or ``chunked``, none if empty; *tokens*: the dimension along which
    products are cut in *chunks*.
    """
    if overlap == "two-batch":
        return two_batch(graph)
    if overlap == "chunked":
        return chunked(graph, tokens, chunks)
    return graph


def early(graph: Graph) -> Graph:
    """*graph*, each block's operators by the transfers that they wait for, fewest first.

    So a transfer is issued before anything that need not wait for it, and that runs beside it:
    a shared expert under the dispatch of tokens to the others. Elsewhere the order stays.
    """
    blocks = (replace(block, operators=_early(block.operators)) for block in graph.blocks)
    return replace(graph, blocks=tuple(blocks))


def _early(operators: Sequence[Operator]) -> tuple[Operator, ...]:
    depths = _depths(operators)
    if not any(depths.values()):
        return tuple(operators)
    sending: set[tuple[str, int]] = set()
    rank: dict[str, tuple[int, bool]] = {}
    for op in reversed(operators):
        depth = depths[op.name]
        feeds = _is_transfer(op) or any((t.name, depth) in sending for t in op.outputs)
        rank[op.name] = (depth, not feeds)
        if feeds:
            sending |= {(tensor.name, depth) for tensor in op.activations}
    return tuple(sorted(operators, key=lambda op: rank[op.name]))


def _depths(operators: Iterable[Operator]) -> dict[str, int]:
    """Operator → transfers of its block that it waits for, one after another."""
    made: dict[str, int] = {}
    depths: dict[str, int] = {}
    for op in operators:
        depths[op.name] = max((made.get(tensor.name, 0) for tensor in op.activations), default=0)
        after = depths[op.name] + _is_transfer(op)
        made |= dict.fromkeys((tensor.name for tensor in op.outputs), after)
    return depths


def _is_transfer(operator: Operator) -> bool:
    return operator.stream == "communication"


def chunked(graph: Graph, dim: str, count: int) -> Graph:
    """Products cut in *count* along *dim*, so that their collectives run under other parts.

    A product and the all-reduce or reduce-scatter of its result, or an all-gather and the product
    of what it gathered, where nothing else reads what is between them (Wang et al., Overlap
    Communication with Dependent Computation via Decomposition, ASPLOS 2023).
    """
    readers: dict[str, list[Operator]] = {}
    for op, _ in graph.operators:
        for tensor in op.activations:
            readers.setdefault(tensor.name, []).append(op)
    kept = {name for block in graph.blocks for pair in block.carried for name in pair}
    blocks = tuple(
        replace(block, operators=tuple(_chunked(block.operators, readers, kept, dim, count)))
        for block in graph.blocks
    )
    return replace(graph, blocks=blocks)


def _chunked(
    operators: Sequence[Operator],
    readers: Mapping[str, Sequence[Operator]],
    kept: Container[str],
    dim: str,
    count: int,
) -> Iterator[Operator]:
    here, done = {op.name for op in operators}, set[str]()
    for first in operators:
        if first.name in done:
            continue
        reading = readers.get(first.name, ())
        alone = len(reading) == 1 and reading[0].name in here and first.name not in kept
        if not (alone and _go_together(first, reading[0], dim)):
            yield first
            continue
        second = reading[0]
        done.add(second.name)
        names: list[str] = []
        for part in (Part(dim, which, count) for which in range(count)):
            one = _part(first, {}, part)
            other = _part(second, {first.name: one.name}, part)
            names.append(other.name)
            yield from (one, other)
        yield _joined(second.outputs[0], names)


def _go_together(first: Operator, second: Operator, dim: str) -> bool:
    """Whether parts along *dim* of a product and of a collective may follow each other."""
    if len(second.activations) > 1 or any(dim not in op.outputs[0].dims for op in (first, second)):
        return False
    if isinstance(first, Einsum) and isinstance(second, Collective):
        return second.collective in ("all_reduce", "reduce_scatter")
    if isinstance(first, Collective) and isinstance(second, Einsum):
        return first.collective == "all_gather"
    return False


def two_batch(graph: Graph) -> Graph:
    """Layers that transfer anything run on the batch in halves, by turns.

    Each half computes while the other one's transfer is under way (DeepSeek-V3 report, 2024,
    section 3.4; SGLang's two-batch overlap). Layers are blocks that keep a cache; what is before
    and after them stays whole. Where a layer ends without a transfer, its end and the beginning
    of the next one are done at a time, so that one half's last transfer has both to run under.
    """
    return _TwoBatch(graph).result()


class _TwoBatch:
    """A walk over a graph: what each half calls the tensors of the whole."""

    def __init__(self, graph: Graph) -> None:
        self.source = graph
        self.blocks: list[Block] = []
        self.tensors = {tensor.name: tensor for tensor in graph.inputs}
        self.called: tuple[dict[str, str], ...] = tuple({} for _ in range(_HALVES))
        self.whole = set(self.tensors)

    def result(self) -> Graph:
        for block in self.source.blocks:
            made = {t.name: t for op in block.operators for t in op.outputs}
            read = {t.name: t for op in block.operators for t in op.activations}
            carried = {entry: self.tensors[entry] for entry, _ in block.carried}
            outside = {**{n: t for n, t in read.items() if n not in made}, **carried}
            self.tensors |= made
            if _is_layers(block):
                self._split(outside)
                self._halved(block)
            else:
                self._join(outside)
                self.blocks.append(block)
                self.whole |= set(made)
        return replace(self.source, blocks=tuple(self.blocks))

    def _split(self, tensors: Mapping[str, Tensor]) -> None:
        """Have *tensors* in halves: views, as the halves of a batch lie one after the other."""
        views = []
        for name, tensor in tensors.items():
            if "batch" not in tensor.dims or name in self.called[0]:
                continue
            parts = tuple((f"part{i}", " ".join(tensor.dims)) for i in range(1, _HALVES + 1))
            view = View(name=f"{name}.split", inputs=(tensor,), parts=parts, layout=tensor.layout)
            views.append(view)
            for called, part in zip(self.called, view.outputs, strict=True):
                called[name] = part.name
        self._append("split", views)

    def _join(self, tensors: Mapping[str, Tensor]) -> None:
        """Have *tensors* whole."""
        apart = {name: tensor for name, tensor in tensors.items() if name not in self.whole}
        halves = {name: [called[name] for called in self.called] for name in apart}
        self._append("join", [_joined(tensor, halves[name]) for name, tensor in apart.items()])
        self.whole |= set(apart)

    def _append(self, name: str, operators: Sequence[Operator]) -> None:
        if operators:
            self.blocks.append(Block(f"{name} {len(self.blocks)}", tuple(operators)))

    def _halved(self, block: Block) -> None:
        """Append *block* in halves."""
        entries = [dict(called) for called in self.called]
        groups = _groups(block.operators)
        halves = [self._half(group, i) for group in groups for i in range(_HALVES)]
        carried = tuple(
            dict.fromkeys(
                (entry.get(a, a), called.get(b, b))
                for entry, called in zip(entries, self.called, strict=True)
                for a, b in block.carried
            )
        )
        whole = replace(block, operators=sum(halves, ()), carried=carried)
        if block.count > 1 and not any(map(_is_transfer, groups[-1])):
            self._rotated(whole, halves)
        else:
            self.blocks.append(whole)

    def _half(self, group: Sequence[Operator], index: int) -> tuple[Operator, ...]:
        """*group* on one half; what has no batch is done once, with the first."""
        done = []
        for op in group:
            if "batch" in op.outputs[0].dims:
                one = _part(op, self.called[index], Part("batch", index, _HALVES))
                pairs = zip(op.outputs, one.outputs, strict=True)
                self.called[index].update((old.name, new.name) for old, new in pairs)
                done.append(one)
            elif index == 0:
                done.append(op)
                self.whole |= {tensor.name for tensor in op.outputs}
        return tuple(done)

    def _rotated(self, block: Block, halves: Sequence[tuple[Operator, ...]]) -> None:
        """Append *block*, each half's last group joined to its first of the next repetition."""
        rest, tail = halves[:-_HALVES], halves[-_HALVES:]
        made_late = {t.name for group in tail for op in group for t in op.outputs}
        if not rest or not all(leave in made_late for _, leave in block.carried):
            self.blocks.append(block)
            return
        names = {name: name for name in self.source.shared}
        begin = _named("first.", rest, names)
        self.blocks.append(Block(f"first.{block.name}", begin))
        # what the rest has made for the end of its layer, and the end for the next layer's rest
        read_late = {t.name for group in tail for op in group for t in op.activations}
        made = {t.name for group in rest for op in group for t in op.outputs}
        across = {name: names[name] for name in sorted(made & read_late)}
        follows = dict(block.carried)
        turns = []
        for i, group in enumerate(rest):
            if i < _HALVES:
                turns += [_reading(op, across) for op in tail[i]]
            turns += [_reading(op, follows) for op in group]
        carried = (*((first, name) for name, first in across.items()), *block.carried)
        self.blocks.append(Block(block.name, tuple(turns), block.count - 1, carried))
        names = {name: name for name in self.source.shared} | follows
        names |= {name: name for name in made}
        self.blocks.append(Block(f"last.{block.name}", _named("last.", tail, names)))
        for called in self.called:
            called |= {whole: names.get(half, half) for whole, half in called.items()}


def _groups(operators: Sequence[Operator]) -> list[tuple[Operator, ...]]:
    """The operators that wait for no transfer, those that wait for one, for two …"""
    depths = _depths(operators)
    return [
        tuple(op for op in operators if depths[op.name] == depth)
        for depth in range(max(depths.values()) + 1)
    ]


def _is_layers(block: Block) -> bool:
    """Whether these are layers of a decoder that transfer something."""
    keeps = any(tensor.role == "cache" for op in block.operators for tensor in op.inputs)
    return keeps and any(map(_is_transfer, block.operators))


def _part(operator: Operator, called: Mapping[str, str], part: Part) -> Operator:
    """That part of *operator*, which reads activations as *called*."""
    name = f"{operator.name}.part{part.which + 1}"
    return replace(_reading(operator, called), name=name, part=part)


def _reading(operator: Operator, called: Mapping[str, str]) -> Operator:
    inputs = tuple(
        tensor.called(called.get(tensor.name, tensor.name))
        if tensor.role == "activation"
        else tensor
        for tensor in operator.inputs
    )
    return replace(operator, inputs=inputs)


def _named(
    prefix: str, groups: Iterable[Sequence[Operator]], names: dict[str, str]
) -> tuple[Operator, ...]:
    """All of *groups* with *prefix*; *names* keeps what they call each tensor."""
    done = []
    for op in (op for group in groups for op in group):
        one = renamed(op, names, prefix)
        names |= {a.name: b.name for a, b in zip(op.outputs, one.outputs, strict=True)}
        done.append(one)
    return tuple(done)


def _joined(tensor: Tensor, parts: Sequence[str]) -> View:
    """*tensor* as what its *parts* are together: they lie one after the other."""
    inputs = tuple(tensor.called(part) for part in parts)
    whole = ((("", " ".join(tensor.dims))),)
    return View(name=tensor.name, inputs=inputs, parts=whole, layout=tensor.layout)
