"""Collective algorithms: for each, the steps it takes and the bytes it sends.

An algorithm is one pure function from the buffer size and the number of chips to

    steps     messages sent one after the other, each of which costs a latency
    volume    bytes per chip on its links, in the busier direction
    hops      in a grid: chips that messages pass on their way, one after the other

nbytes is the whole buffer of one chip: the input of an all-reduce or reduce-scatter, the
result of an all-gather, what a chip holds to exchange in an all-to-all with its own part,
the message of a broadcast or send. A pipelined message is taken to be cut so finely that
filling the pipe is free. For one chip all is 0. Numbers and arrays broadcast.

To add an algorithm, write its function and its line in `ALGORITHMS`.

References
----------
Thakur: R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of collective communication
operations in MPICH", IJHPCA 19(1), 2005.
Chan: E. Chan, M. Heimlich, A. Purkayastha, R. van de Geijn, "Collective communication:
theory, practice, and experience", CCPE 19(13), 2007.
Patarasuk: P. Patarasuk, X. Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
workstations", JPDC 69(2), 2009.
Sanders: P. Sanders, J. Speck, J. L. Träff, "Two-tree algorithms for full bandwidth
broadcast, reduction and scan", Parallel Computing 35(12), 2009.
Bruck: J. Bruck et al., "Efficient algorithms for all-to-all communications in multiport
message-passing systems", IEEE TPDS 8(11), 1997.
Jain: N. Jain, Y. Sabharwal, "Optimal bucket algorithms for large MPI collectives on torus
interconnects", ICS 2010.
Dally: W. Dally, B. Towles, "Principles and Practices of Interconnection Networks", 2004.
Klenk: B. Klenk et al., "An in-network architecture for accelerating shared-memory
multiprocessor collectives", ISCA 2020.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from hardware.arithmetic import ceil, is_power_of_two, log2_up, product
from hardware.grid import Box, line_steps, nearest_member
from hardware.units import Number

Cost: TypeAlias = tuple[Number, Number] | tuple[Number, Number, Number]
"""Steps, volume in bytes, and hops if the algorithm knows them."""


# Every one of n chips reaches every other: a switch, or links between all pairs.


def ring_gather(nbytes: Number, n: Number) -> Cost:
    """All-gather or reduce-scatter: every chip passes one part on per step (Thakur, 4.1)."""
    return n - 1, nbytes * (n - 1) / n


def ring_all_reduce(nbytes: Number, n: Number) -> Cost:
    """Reduce-scatter, then all-gather on a ring: the least volume possible (Patarasuk)."""
    return 2 * (n - 1), 2 * nbytes * (n - 1) / n


def bidirectional_gather(nbytes: Number, n: Number) -> Cost:
    """Every chip passes parts on both ways round a ring, until they meet (Chan)."""
    return ceil((n - 1) / 2), nbytes * (n - 1) / n


def bidirectional_all_reduce(nbytes: Number, n: Number) -> Cost:
    """Reduce-scatter, then all-gather, both ways round a ring."""
    return 2 * ceil((n - 1) / 2), 2 * nbytes * (n - 1) / n


def doubling_gather(nbytes: Number, n: Number) -> Cost:
    """Exchange with a partner twice as far, or half as far, at each step (Thakur, 4.1)."""
    return log2_up(n), nbytes * (n - 1) / n


def doubling_all_reduce(nbytes: Number, n: Number) -> Cost:
    """Recursive halving, then recursive doubling (Rabenseifner's; Thakur, 4.5)."""
    return 2 * log2_up(n), 2 * nbytes * (n - 1) / n


def direct_gather(nbytes: Number, n: Number) -> Cost:
    """Every chip writes its part to all others at once."""
    return 1.0 * (n > 1), nbytes * (n - 1) / n


def two_shot_all_reduce(nbytes: Number, n: Number) -> Cost:
    """Direct reduce-scatter, then direct all-gather."""
    return 2.0 * (n > 1), 2 * nbytes * (n - 1) / n


def one_shot_all_reduce(nbytes: Number, n: Number) -> Cost:
    """Every chip writes its whole buffer to all others, and each adds up everything."""
    return 1.0 * (n > 1), nbytes * (n - 1)


def tree_all_reduce(nbytes: Number, n: Number) -> Cost:
    """Reduce up and broadcast down two trees, each with half the buffer, pipelined (Sanders)."""
    return 2 * log2_up(n), 2 * nbytes * (n > 1)


def in_switch_all_reduce(nbytes: Number, n: Number) -> Cost:
    """The switch adds the parts that a chip asks for, and copies the sum to all (Klenk).

    A chip sends its buffer once to be added, and the part it owns once to be copied.
    """
    return 2.0 * (n > 1), nbytes * (n + 1) / n * (n > 1)


def pairwise_all_to_all(nbytes: Number, n: Number) -> Cost:
    """Exchange with one partner per step (Thakur, 4.3)."""
    return n - 1, nbytes * (n - 1) / n


def bruck_all_to_all(nbytes: Number, n: Number) -> Cost:
    """Forward half of the buffer at each of log2 n steps (Bruck)."""
    return log2_up(n), nbytes / 2 * log2_up(n)


def tree_broadcast(nbytes: Number, n: Number) -> Cost:
    """Send the message down two trees, each with half of it, pipelined (Sanders)."""
    return log2_up(n), nbytes * (n > 1)


def in_switch_broadcast(nbytes: Number, n: Number) -> Cost:
    """The switch copies the message to all (Klenk)."""
    return 1.0 * (n > 1), nbytes * (n > 1)


def scatter_gather_broadcast(nbytes: Number, n: Number) -> Cost:
    """Scatter the message down a tree, then all-gather on a ring (van de Geijn; Thakur, 4.2)."""
    return log2_up(n) + n - 1, 2 * nbytes * (n - 1) / n


def direct_broadcast(nbytes: Number, n: Number) -> Cost:
    """Scatter the message to all others at once, who pass their parts on (Chan)."""
    return 2.0 * (n > 1), 2 * nbytes * (n - 1) / n


def send(nbytes: Number, n: Number) -> Cost:
    """One message to one other chip."""
    return 1.0 * (n > 1), nbytes * (n > 1)


def chain_broadcast(nbytes: Number, n: Number) -> Cost:
    """Pass the message on from each to the next, pipelined (Chan)."""
    return n - 1, nbytes * (n > 1)


# Links to neighbours only: a ring, mesh or torus. The buffer is cut in as many parts as
# there are dimensions, and each part takes them in another order, so that all links are
# busy (Jain).


def grid_gather(nbytes: Number, box: Box) -> Cost:
    """All-gather or reduce-scatter along one dimension after the other, both ways (Jain)."""
    steps, hops = line_steps(box)
    return steps, _gathered(nbytes, box), hops


def _gathered(nbytes: Number, box: Box) -> Number:
    n = product(box.sides)
    return nbytes * (n - 1) / n


def grid_all_reduce(nbytes: Number, box: Box) -> Cost:
    """Reduce-scatter, then all-gather along one dimension after the other."""
    steps, hops = line_steps(box)
    return 2 * steps, 2 * _gathered(nbytes, box), 2 * hops


def grid_broadcast(nbytes: Number, box: Box) -> Cost:
    """Pass the message on along one dimension after the other, pipelined; two halves of it
    go round a ring each its way.
    """
    steps, hops = line_steps(box, both_ways=False)
    return steps, nbytes * (product(box.sides) > 1), hops


def grid_all_to_all(nbytes: Number, box: Box) -> Cost:
    """Route every part along one dimension after the other, both ways round (Dally, 3.3).

    A byte crosses k/4 links of a ring of k on average: two ways round are at most a half.
    """
    steps, hops = line_steps(box)
    return steps, nbytes * sum(side * (side > 1) for side in box.sides) / _AVERAGE_ARC, hops


def grid_send(nbytes: Number, box: Box) -> Cost:
    """One message to the nearest member."""
    alone = product(box.sides) > 1
    return 1.0 * alone, nbytes * alone, nearest_member(box) - 1


_AVERAGE_ARC = 4  # of a ring: two ways round are at most a half and on average a quarter


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One line of the registry: a cost function, and where the algorithm works.

    families: of topologies. reach: whom a chip sends to at a time: "near", the next member,
    all in one direction; "far", members anywhere; "one", over one of its links.
    steady: always to the same one.
    largest: the most chips it is used for. step_per_partner: a step for each chip it sends
    to. forwards: chips pass on what is for others, so it needs equal members.
    """

    name: str
    cost: Callable[[Number, Any], tuple[Number, ...]]
    families: frozenset[str]
    reach: Literal["near", "far", "one"] = "far"
    steady: bool = False
    power_of_two: bool = False
    in_switch: bool = False
    largest: float = math.inf
    step_per_partner: bool = False
    forwards: bool = False

    def allows(self, n: Number) -> Any:
        """Whether a group of *n* chips can use it: a truth value, or an array of them."""
        fits = n <= self.largest
        return fits & is_power_of_two(n) if self.power_of_two else fits


SWITCHED = frozenset({"switched"})
PAIRS = frozenset({"switched", "full"})
CIRCUITS = frozenset({"circuits"})
EXCHANGES = SWITCHED | CIRCUITS
ANY = PAIRS | CIRCUITS
RING = frozenset({"ring"})
GRID = frozenset({"grid"})

DIRECT_CHIPS = 72
"""The largest domain sold in which every chip can write to every other (GB200 NVL72)."""

_GATHERS = (
    Algorithm("ring", ring_gather, ANY, "near", steady=True),
    Algorithm("halving-doubling", doubling_gather, EXCHANGES, power_of_two=True),
    Algorithm("direct", direct_gather, PAIRS, largest=DIRECT_CHIPS),
    Algorithm("bidirectional-ring", bidirectional_gather, PAIRS, "near"),
    Algorithm("bidirectional-ring", grid_gather, RING, "near"),
    Algorithm("all-dimensions", grid_gather, GRID, "near"),
)

ALGORITHMS: dict[str, tuple[Algorithm, ...]] = {
    "all_reduce": (
        Algorithm("ring", ring_all_reduce, ANY, "near", steady=True),
        Algorithm("halving-doubling", doubling_all_reduce, EXCHANGES, power_of_two=True),
        Algorithm("double-tree", tree_all_reduce, SWITCHED, "near"),
        Algorithm("one-shot", one_shot_all_reduce, PAIRS, largest=DIRECT_CHIPS),
        Algorithm("two-shot", two_shot_all_reduce, PAIRS, largest=DIRECT_CHIPS),
        Algorithm("in-switch", in_switch_all_reduce, SWITCHED, "near", in_switch=True),
        Algorithm("bidirectional-ring", bidirectional_all_reduce, PAIRS, "near"),
        Algorithm("bidirectional-ring", grid_all_reduce, RING, "near"),
        Algorithm("all-dimensions", grid_all_reduce, GRID, "near"),
    ),
    "all_gather": _GATHERS,
    "reduce_scatter": _GATHERS,
    "all_to_all": (
        Algorithm("pairwise", pairwise_all_to_all, ANY, step_per_partner=True),
        Algorithm("bruck", bruck_all_to_all, EXCHANGES, power_of_two=True, forwards=True),
        Algorithm("direct", direct_gather, PAIRS, largest=DIRECT_CHIPS),
        Algorithm("bidirectional-ring", grid_all_to_all, RING),
        Algorithm("all-dimensions", grid_all_to_all, GRID),
    ),
    "broadcast": (
        Algorithm("double-tree", tree_broadcast, SWITCHED, "near"),
        Algorithm("scatter-gather", scatter_gather_broadcast, PAIRS),
        Algorithm("direct", direct_broadcast, PAIRS, largest=DIRECT_CHIPS),
        Algorithm("in-switch", in_switch_broadcast, SWITCHED, "near", in_switch=True),
        Algorithm("chain", chain_broadcast, CIRCUITS, "near", steady=True),
        Algorithm("bidirectional-ring", grid_broadcast, RING, "near"),
        Algorithm("all-dimensions", grid_broadcast, GRID, "near"),
    ),
    "send": (
        Algorithm("send", send, ANY, "one", steady=True),
        Algorithm("send", grid_send, RING | GRID, "one", steady=True),
    ),
}
"""The algorithms of every kind of collective; of equally fast ones, the first is taken."""
