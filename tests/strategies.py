"""Random programs, and the plain scheduler that they are checked against."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from opgraph.cost import Cost
from opgraph.graph import Block, Graph
from opgraph.operator import Operator, Work
from opgraph.sizes import Sizes
from opgraph.tensor import Tensor


@dataclass(frozen=True, kw_only=True)
class Toy(Operator):
    """Runs on the compute stream for as long as `Prices` says."""

    kind = "toy"
    extra: int = 0

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        names = (self.name, *(f"{self.name}.{i}" for i in range(1, self.extra + 1)))
        return tuple(tensor(name) for name in names)


@dataclass(frozen=True, kw_only=True)
class ToyCommunication(Toy):
    stream = "communication"


@dataclass(frozen=True, kw_only=True)
class ToyCopy(Toy):
    stream = "copy"


@dataclass(frozen=True, kw_only=True)
class ToyView(Toy):
    is_view = True
    in_place = True


TOYS = {
    "compute": Toy,
    "communication": ToyCommunication,
    "copy": ToyCopy,
    "view": ToyView,
}


@dataclass(frozen=True)
class Prices:
    """A cost model that looks times up by name."""

    times: Mapping[str, Any]
    name: str = "prices"
    tolerance: float = 1e-12
    seen: list[str] = field(default_factory=list)

    def cost(self, operator: Operator, sizes: Sizes, machine: object) -> Cost:
        base = operator.name.split(".")
        # an unrolled repetition is called 3.a: it costs what a does
        name = base[1] if base[0].isdigit() else base[0]
        return Cost(self.times[name], 0, Work())


def tensor(name: str) -> Tensor:
    return Tensor.of(name, "batch", "bf16")


def toy(name: str, *reads: str, on: str = "compute", extra: int = 0) -> Toy:
    return TOYS[on](name=name, inputs=tuple(map(tensor, reads)), extra=extra)


def graph(*blocks: Block, inputs: tuple[str, ...] = ("in0",)) -> Graph:
    return Graph("random", blocks, tuple(map(tensor, inputs))).check()


durations = st.one_of(
    st.just(0.0),
    st.sampled_from([1.0, 2.0, 3.0]),  # ties are where schedulers go wrong
    st.floats(1e-6, 10.0),
)


@st.composite
def graphs(draw: st.DrawFn, most: int = 50) -> Graph:
    """A graph of toys: up to three blocks, each carrying some of what it reads."""
    known = ["in0", "in1"]
    blocks = []
    for number in range(draw(st.integers(1, 3))):
        entries = draw(st.lists(st.sampled_from(known), max_size=3, unique=True))
        operators: list[Operator] = []
        made: list[str] = []
        for index in range(draw(st.integers(1, 5))):
            reads = draw(st.lists(st.sampled_from(known + made), min_size=1, max_size=3))
            on = draw(st.sampled_from(["compute", "compute", "communication", "copy", "view"]))
            operator = toy(
                f"{'abc'[number]}{index}",
                *dict.fromkeys(reads),
                on=on,
                extra=draw(st.integers(0, 1)),
            )
            operators.append(operator)
            made += [output.name for output in operator.outputs]
        carried = tuple((entry, draw(st.sampled_from(made))) for entry in entries)
        count = draw(st.one_of(st.integers(1, 4), st.integers(1, most)))
        blocks.append(Block(f"block{number}", tuple(operators), count, carried))
        known = known + made
    return graph(*blocks, inputs=("in0", "in1"))


@st.composite
def priced(draw: st.DrawFn, most: int = 50) -> tuple[Graph, dict[str, float]]:
    """A graph and the time of each of its operators; views take none."""
    made = draw(graphs(most=most))
    times = {
        op.name: 0.0 if op.is_view else draw(durations)
        for block in made.blocks
        for op in block.operators
    }
    return made, times


@dataclass(frozen=True)
class Ran:
    """One execution: of which operator, in which repetition, when, on what it waited."""

    name: str
    repetition: int
    stream: str | None
    start: float
    end: float
    after: tuple[int, ...]


def executions(source: Graph, times: Mapping[str, float]) -> list[Ran]:
    """The plain scheduler: every repetition of every operator, one after the other.

    An operator starts when what it reads is made and its stream is free; what comes from outside
    is there at 0. Between repetitions every entry takes what the leaving name holds; after the
    last one it is again what went in.
    """
    maker: dict[str, int] = {}
    busy: dict[str, int] = {}
    done: list[Ran] = []
    outer: dict[str, int | None] = {}
    for repetition, last, block in _repetitions(source):
        if repetition == 0:
            outer = {entry: maker.get(entry) for entry, _ in block.carried}
        for op in block.operators:
            stream = None if op.is_view else op.stream
            waits = {maker[t.name] for t in op.inputs if t.name in maker}
            waits |= {busy[stream]} if stream in busy else set()
            start = max((done[i].end for i in waits), default=0.0)
            maker |= {output.name: len(done) for output in op.outputs}
            busy |= {stream: len(done)} if stream is not None else {}
            end = start + times[op.name]
            done.append(Ran(op.name, repetition, stream, start, end, tuple(sorted(waits))))
        leaves = {entry: maker.get(leave) for entry, leave in block.carried}
        _rebind(maker, outer if last else leaves)
    return done


def _rebind(maker: dict[str, int], made: Mapping[str, int | None]) -> None:
    """Let each name stand for what an execution has made; None: for what came from outside."""
    for name, when in made.items():
        maker.pop(name, None)
        maker |= {} if when is None else {name: when}


def _repetitions(source: Graph) -> Iterator[tuple[int, bool, Block]]:
    for block in source.blocks:
        for index in range(block.count):
            yield index, index == block.count - 1, block


def tails(done: list[Ran]) -> list[float]:
    """For each execution the longest path from its end to the end of the step."""
    tail = [0.0] * len(done)
    for i in reversed(range(len(done))):
        for before in done[i].after:
            tail[before] = max(tail[before], tail[i] + done[i].end - done[i].start)
    return tail
