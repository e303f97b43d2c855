"""Repeated layers: equal runs of operators become one block with a count."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from opgraph.graph import Block
from opgraph.operator import Operator
from opgraph.tensor import Tensor

# a run of fewer operators than this is no layer
_SHORTEST = 3


@dataclass(frozen=True)
class _Run:
    """*count* times *period* operators from *start* on."""

    start: int
    period: int
    count: int

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.start + self.period * self.count

    @property
    def saved(self) -> int:
        """Operators that need not be written out."""
        return self.period * (self.count - 1)


def folded(operators: Sequence[Operator]) -> tuple[Block, ...]:
    """*operators* in blocks, of which those that repeat have a count."""
    hashes = _hashes(operators)
    runs = sorted(_runs(hashes, 0, len(operators)), key=lambda run: run.start)
    return tuple(_Folding(operators, runs).blocks())


def _hashes(operators: Sequence[Operator]) -> np.ndarray:
    """A number for each operator, equal for those that do the same with tensors alike."""
    known: dict[object, int] = {}
    keys = (
        (
            type(op),
            tuple((t.dims, t.format, t.role) for t in op.inputs),
            tuple((t.dims, t.format) for t in op.outputs),
            tuple(str(getattr(op, f.name)) for f in fields(op) if f.name not in _OWN),
        )
        for op in operators
    )
    return np.array([known.setdefault(key, len(known)) for key in keys])


# what says which operator it is, not what it does
_OWN = frozenset({"name", "inputs", "layout"})


def _runs(hashes: np.ndarray, start: int, end: int) -> Iterator[_Run]:
    """The runs between *start* and *end*, the one that saves most first."""
    best = _best(hashes[start:end])
    if best is None:
        return
    run = replace(best, start=start + best.start)
    yield from _runs(hashes, start, run.start)
    yield run
    yield from _runs(hashes, run.end, end)


def _best(hashes: np.ndarray) -> _Run | None:
    best = None
    for period in range(_SHORTEST, len(hashes) // 2 + 1):
        equal = hashes[:-period] == hashes[period:]
        edges = np.flatnonzero(np.diff(np.concatenate([[0], equal.view(np.int8), [0]])))
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            run = _Run(int(first), period, int(last - first) // period + 1)
            if run.count > 1 and (best is None or run.saved > best.saved):
                best = run
    return best


def _layer(operator: Operator) -> tuple[str, ...]:
    """The path to the layer that an operator is of: up to the first number in its name."""
    words = re.split(r"[./]", operator.name)
    place = next((i for i, word in enumerate(words) if word.isdigit()), None)
    return () if place is None else tuple(words[: place + 1])


class _Folding:
    """Writes blocks, and gives the tensors of a repetition the names of the first one's."""

    def __init__(self, operators: Sequence[Operator], runs: Sequence[_Run]) -> None:
        self.operators = operators
        self.runs = runs
        self.same: dict[str, str] = {}

    def blocks(self) -> Iterator[Block]:
        start, named = 0, 0
        for run in self.runs:
            carried = self._carried(run)
            if carried is None:
                continue
            yield from self._plain(start, run.start)
            name = "layer" if len(self.runs) == 1 else f"layers{named}"
            named += 1
            end = run.start + run.period
            layers = tuple(first - run.start for first, _ in self._layers(run.start, end))
            written = self._written(run.start, end)
            yield Block(name, written, run.count, carried, (0, *layers[1:]))
            self._rename(run)
            start = run.end
        yield from self._plain(start, len(self.operators))

    def _plain(self, start: int, end: int) -> Iterator[Block]:
        """Operators that do not repeat: those of each layer, and those between, as blocks."""
        # the first norm of a layer that repeats stands before it
        after = _layer(self.operators[end]) if end < len(self.operators) else ()
        for first, last in self._layers(start, end, after):
            layer = _layer(self.operators[first])
            if layer not in ((), after):
                yield Block(f"layer{layer[-1]}", self._written(first, last), layers=(0,))
            else:
                name = "stem" if first == 0 else "head" if last == end else f"part{first}"
                yield Block(name, self._written(first, last))

    def _layers(self, start: int, end: int, none: tuple[str, ...] = ()) -> list[tuple[int, int]]:
        """From where to where each layer goes, and what lies between: by the numbers in names;
        the layer *none* is none.

        The norm with a residual sum at a layer's end is the next one's by name.
        """
        bounds: list[int] = []
        current: tuple[str, ...] | None = None
        for index in range(start, end):
            layer = _layer(self.operators[index])
            layer = () if layer == none else layer
            joins = len(self.operators[index].outputs) > 1 and self.operators[index].kind == "norm"
            if not bounds or (layer != current and not joins):
                bounds.append(index)
                current = layer
        return list(zip(bounds, [*bounds[1:], end], strict=True)) if bounds else []

    def _written(self, start: int, end: int) -> tuple[Operator, ...]:
        return tuple(
            replace(op, inputs=tuple(self._renamed(t) for t in op.inputs))
            for op in self.operators[start:end]
        )

    def _renamed(self, tensor: Tensor) -> Tensor:
        return tensor.called(self.same.get(tensor.name, tensor.name))

    def _carried(self, run: _Run) -> tuple[tuple[str, str], ...] | None:
        """What each repetition hands to the next; None if they do not hand on the same."""
        links = None
        for index in range(1, run.count):
            own = self._links(run, index)
            if own is None or (links is not None and own != links):
                return None
            links = own
        return tuple((self.same.get(a, a), b) for a, b in (links or {}).items())

    def _links(self, run: _Run, index: int) -> dict[str, str] | None:
        """Entry → exit, by the names of the first repetition."""
        first = self.operators[run.start : run.start + run.period]
        before, here = (
            self.operators[run.start + i * run.period : run.start + (i + 1) * run.period]
            for i in (index - 1, index)
        )
        inner = _names(first, here)
        outer = _names(first, before)
        links: dict[str, str] = {}
        for one, other in zip(first, here, strict=True):
            if any(t in other.inputs for t in one.inputs if t.role == "weight"):
                return None
            for entry, tensor in zip(one.activations, other.activations, strict=True):
                name = inner.get(tensor.name)
                if name is not None:
                    if name != entry.name:
                        return None
                    continue
                leave = outer.get(tensor.name)
                if leave is None and tensor.name == entry.name:
                    continue
                if leave is None or links.setdefault(entry.name, leave) != leave:
                    return None
        return links

    def _rename(self, run: _Run) -> None:
        first = self.operators[run.start : run.start + run.period]
        for index in range(1, run.count):
            start = run.start + index * run.period
            own = self.operators[start : start + run.period]
            if index == run.count - 1:
                self.same |= _names(first, own)


def _names(first: Sequence[Operator], other: Sequence[Operator]) -> dict[str, str]:
    """The names of the results of *other*, as the *first* repetition calls them."""
    return {
        theirs.name: ours.name
        for one, two in zip(first, other, strict=True)
        for ours, theirs in zip(one.outputs, two.outputs, strict=True)
    }
