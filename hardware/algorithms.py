"""Collective algorithms: for each, the steps it takes and the bytes it sends.

An algorithm is one pure function from the buffer size and the number of chips to

    steps     messages sent one after the other, each of which costs a latency
    volume    bytes per chip on its links, in the busier direction

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
Klenk: B. Klenk et al., "An in-network architecture for accelerating shared-memory
multiprocessor collectives", ISCA 2020.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from hardware.arithmetic import floor, is_power_of_two, larger, log2_up, product
from hardware.units import Number
from hardware.wiring import Sides

Cost: TypeAlias = tuple[Number, Number]
"""Steps, and volume in bytes."""


# Every one of n chips reaches every other: a switch, or links between all pairs.


def ring_gather(nbytes: Number, n: Number) -> Cost:
    """All-gather or reduce-scatter: every chip passes one part on per step (Thakur, 4.1)."""
    return n - 1, nbytes * (n - 1) / n


def ring_all_reduce(nbytes: Number, n: Number) -> Cost:
    """Reduce-scatter, then all-gather on a ring: the least volume possible (Patarasuk)."""
    return 2 * (n - 1), 2 * nbytes * (n - 1) / n


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


# Links to neighbours only: a ring, mesh or torus. The buffer is cut in as many parts as
# there are dimensions, and each part takes them in another order, so that all links are
# busy (Jain).

_AVERAGE_ARC = 4  # of a ring: two ways round are at most a half and on average a quarter


def grid_gather(nbytes: Number, sides: Sides) -> Cost:
    """All-gather or reduce-scatter along one dimension after the other."""
    n = product(sides)
    return _hops(sides), nbytes * (n - 1) / n


def grid_all_reduce(nbytes: Number, sides: Sides) -> Cost:
    """Reduce-scatter, then all-gather along one dimension after the other."""
    n = product(sides)
    return 2 * _hops(sides), 2 * nbytes * (n - 1) / n


def grid_broadcast(nbytes: Number, sides: Sides) -> Cost:
    """Pass the message on along one dimension after the other, pipelined."""
    return _hops(sides), nbytes * (product(sides) > 1)


def grid_all_to_all(nbytes: Number, sides: Sides) -> Cost:
    """Route every part along one dimension after the other, both ways round.

    On a ring of k a byte crosses k/4 links on average; the longest side sets the pace of
    all dimensions in use. An open line takes twice that: half of its links do the work.
    """
    used: Number = 0
    longest: Number = 1
    for side in sides:
        used, longest = used + (side > 1), larger(longest, side)
    links_crossed = longest / _AVERAGE_ARC
    return sum(floor(side / 2) for side in sides), nbytes * used * links_crossed


def grid_send(nbytes: Number, sides: Sides) -> Cost:
    """One message to a neighbour."""
    return send(nbytes, product(sides))


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One line of the registry: a cost function, and where the algorithm works.

    largest: the most chips it is used for. one_link: it uses one link of a chip, where
    the wiring gives a chip several. step_per_partner: a chip sends to one other after the
    other. forwards: chips pass on what is for others, so it needs equal members.
    """

    name: str
    cost: Callable[[Number, Any], Cost]
    topologies: frozenset[str]
    power_of_two: bool = False
    in_switch: bool = False
    largest: float = math.inf
    one_link: bool = False
    step_per_partner: bool = False
    forwards: bool = False

    def allows(self, n: Number) -> Any:
        """Whether a group of *n* chips can use it: a truth value, or an array of them."""
        fits = n <= self.largest
        return fits & is_power_of_two(n) if self.power_of_two else fits


SWITCH = frozenset({"switch"})
PAIRS = frozenset({"switch", "full"})
GRID = frozenset({"ring", "mesh", "torus"})

DIRECT_CHIPS = 72
"""The largest domain sold in which every chip can write to every other (GB200 NVL72)."""

_RING_GATHER = Algorithm("ring", ring_gather, PAIRS)
_DOUBLING_GATHER = Algorithm("halving-doubling", doubling_gather, SWITCH, power_of_two=True)
_DIRECT_GATHER = Algorithm("direct", direct_gather, PAIRS, largest=DIRECT_CHIPS)
_GRID_GATHER = Algorithm("ring", grid_gather, GRID)

ALGORITHMS: dict[str, tuple[Algorithm, ...]] = {
    "all_reduce": (
        Algorithm("ring", ring_all_reduce, PAIRS),
        Algorithm("halving-doubling", doubling_all_reduce, SWITCH, power_of_two=True),
        Algorithm("double-tree", tree_all_reduce, SWITCH),
        Algorithm("one-shot", one_shot_all_reduce, PAIRS, largest=DIRECT_CHIPS),
        Algorithm("two-shot", two_shot_all_reduce, PAIRS, largest=DIRECT_CHIPS),
        Algorithm("in-switch", in_switch_all_reduce, SWITCH, in_switch=True),
        Algorithm("ring", grid_all_reduce, GRID),
    ),
    "all_gather": (_RING_GATHER, _DOUBLING_GATHER, _DIRECT_GATHER, _GRID_GATHER),
    "reduce_scatter": (_RING_GATHER, _DOUBLING_GATHER, _DIRECT_GATHER, _GRID_GATHER),
    "all_to_all": (
        Algorithm("pairwise", pairwise_all_to_all, PAIRS, step_per_partner=True),
        Algorithm("bruck", bruck_all_to_all, SWITCH, power_of_two=True, forwards=True),
        Algorithm("direct", direct_gather, PAIRS, largest=DIRECT_CHIPS),
        Algorithm("ring", grid_all_to_all, GRID),
    ),
    "broadcast": (
        Algorithm("double-tree", tree_broadcast, SWITCH),
        Algorithm("scatter-gather", scatter_gather_broadcast, PAIRS),
        Algorithm("direct", direct_broadcast, PAIRS, largest=DIRECT_CHIPS),
        Algorithm("in-switch", in_switch_broadcast, SWITCH, in_switch=True),
        Algorithm("ring", grid_broadcast, GRID),
    ),
    "send": (
        Algorithm("send", send, PAIRS, one_link=True),
        Algorithm("send", grid_send, GRID, one_link=True),
    ),
}
"""The algorithms of every kind of collective; of equally fast ones, the first is taken."""


def _hops(sides: Sides) -> Number:
    return sum(side - 1 for side in sides)
