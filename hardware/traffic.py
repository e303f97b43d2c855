"""Traffic: the bytes that a collective puts on each level of links, and their joules."""

from collections.abc import Sequence

from hardware.algorithms import ALGORITHMS
from hardware.arithmetic import larger, product, smaller
from hardware.collectives import traffic_shares
from hardware.errors import SpecError, nearest
from hardware.level import Span
from hardware.link import Link
from hardware.technology import technology
from hardware.units import Number

_GATHERED = ("reduce_scatter", "all_gather", "broadcast")  # pass through each level once


def traffic(kind: str, nbytes: Number, spans: Sequence[Span]) -> list[Number]:
    """Return the bytes that each chip sends at each level of *spans*, on average over chips.

    The least that algorithms need (Chan et al., Collective communication, 2007): within a
    level of w members a sum, a gather or a broadcast moves (w - 1)/w of a buffer, of which
    1/w goes on to the next (a sum in the switches sends the buffer to be added and a part
    to be copied, (w + 1)/w, if that is less); of an all-to-all every pair exchanges an equal
    part; what is sent crosses the outermost level. A byte counts once a level, over however
    many hops.
    Raises SpecError for an unknown kind.
    """
    ways = [span.ways for span in spans]
    inside = [product([1, *ways[:i]]) for i in range(len(ways))]
    levels = list(zip(ways, inside, strict=True))
    if kind == "all_reduce":
        sums = [span.level.in_switch_reduction for span in spans]
        return [
            nbytes * (smaller(2 * (w - 1), w + 1) if adds else 2 * (w - 1)) / (w * held)
            for (w, held), adds in zip(levels, sums, strict=True)
        ]
    if kind in _GATHERED:
        return [nbytes * (w - 1) / (w * held) for w, held in levels]
    if kind == "all_to_all":
        return [nbytes * share for share in traffic_shares(ways)]
    if kind == "send":
        return [nbytes * (i == len(ways) - 1) for i in range(len(ways))]
    raise SpecError(f"unknown collective {kind!r}{nearest(kind, ALGORITHMS)}")


def network_energy(kind: str, nbytes: Number, spans: Sequence[Span]) -> Number:
    """Return the joules that a collective takes of each chip: its bytes by the level's J/B."""
    sent = traffic(kind, nbytes, spans)
    return sum(
        volume * link_energy(span.level.link) for volume, span in zip(sent, spans, strict=True)
    )


def chain_energy(nbytes: Number, spans: Sequence[Span]) -> Number:
    """Return the joules of one message between neighbours in a chain through all chips of *spans*.

    The mean over its links, of which as many cross each level as in a broadcast.
    """
    members = product([span.ways for span in spans])
    return network_energy("broadcast", nbytes, spans) * members / larger(members - 1, 1)


def link_energy(link: Link) -> Number:
    """Return the joules per byte sent over *link*; as inside a tray, if it says nothing."""
    return technology().links["tray"].energy if link.energy is None else link.energy
