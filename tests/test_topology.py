"""Topologies and the algorithms in them: closed forms, flows routed one by one, bounds."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware import (
    Group,
    Level,
    Link,
    Platform,
    Protocol,
    SpecError,
    load_chip,
    load_platform,
    load_protocols,
)
from hardware.algorithms import ALGORITHMS
from hardware.collectives import collective
from hardware.grid import box
from hardware.level import Span
from hardware.offers import offers
from hardware.topology import TOPOLOGIES

A, B, HOP = 2e-6, 100e9, 50e-9
LINK, PASSING = Link(B, A), Link(B, A, "", HOP)
MB = 1e6

LEVELS = {
    "switch": Level("l", 16, LINK),
    "full": Level("l", 16, LINK, "full"),
    "ring": Level("l", 16, LINK, "ring"),
    "torus": Level("l", 64, LINK, "torus", (4, 4, 4)),
    "torus-2d": Level("l", 32, LINK, "torus", (4, 8)),
    "mesh": Level("l", 16, LINK, "mesh", (4, 4)),
    "mesh-3d": Level("l", 24, LINK, "mesh", (2, 3, 4)),
    "wafer": Level("l", 84, PASSING, "wafer", (7, 12)),
    "fat-tree": Level("l", 64, PASSING, "fat-tree", (8, 8), oversubscription=4.0),
    "fat-tree-3": Level("l", 128, PASSING, "fat-tree", (8, 4, 4), oversubscription=2.0),
    "dragonfly": Level("l", 144, PASSING, "dragonfly", (4, 4, 9), oversubscription=2.0),
    "photonic": Level("l", 32, LINK, "photonic", reconfiguration=20e-6),
}
levels = pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
kinds = pytest.mark.parametrize("kind", sorted(ALGORITHMS))


def by_name(kind, level, n, nbytes=MB, apart=1):
    return {offer.names[0]: offer for offer in offers(kind, nbytes, Span(level, n, apart))}


def test_every_topology_is_tested():
    assert {level.topology for level in LEVELS.values()} == set(TOPOLOGIES)


# Closed forms for 1 MB: topology, kind, algorithm, n, latencies, hop latencies beyond them,
# and the bytes that a chip's whole bandwidth would carry in the time.
FORMS = [
    # a ring of 16: two links of half the bandwidth, both ways, parts meet after 8 steps
    ("ring", "all_gather", "bidirectional-ring", 16, 8, 0, 15 / 16),
    ("ring", "reduce_scatter", "bidirectional-ring", 16, 8, 0, 15 / 16),
    ("ring", "all_reduce", "bidirectional-ring", 16, 16, 0, 30 / 16),
    ("ring", "all_to_all", "bidirectional-ring", 16, 8, 0, 16 / 4),
    ("ring", "broadcast", "bidirectional-ring", 16, 15, 0, 1),
    ("ring", "send", "send", 16, 1, 0, 2),
    # an arc of it: end to end, one link
    ("ring", "all_gather", "bidirectional-ring", 4, 3, 0, 2 * 3 / 4),
    ("ring", "all_reduce", "bidirectional-ring", 4, 6, 0, 4 * 3 / 4),
    ("ring", "all_to_all", "bidirectional-ring", 4, 3, 0, 2 * 4 / 4),
    # 4 × 4 × 4: six links, all busy; 16 MB/16 over the cut of 16 rings
    ("torus", "all_gather", "all-dimensions", 64, 6, 0, 63 / 64),
    ("torus", "all_reduce", "all-dimensions", 64, 12, 0, 126 / 64),
    ("torus", "reduce_scatter", "all-dimensions", 64, 6, 0, 63 / 64),
    ("torus", "all_to_all", "all-dimensions", 64, 6, 0, 32 / 2 / (16 * 2 / 6)),
    ("torus", "broadcast", "all-dimensions", 64, 9, 0, 1),
    ("torus", "send", "send", 64, 1, 0, 6),
    # a 4 × 4 mesh: lines, half of the links
    ("mesh", "all_gather", "all-dimensions", 16, 6, 0, 2 * 15 / 16),
    ("mesh", "reduce_scatter", "all-dimensions", 16, 6, 0, 2 * 15 / 16),
    ("mesh", "all_reduce", "all-dimensions", 16, 12, 0, 4 * 15 / 16),
    ("mesh", "all_to_all", "all-dimensions", 16, 6, 0, 8 / 2 / (4 / 4)),
    ("mesh", "broadcast", "all-dimensions", 16, 6, 0, 2),
    ("mesh", "send", "send", 16, 1, 0, 4),
    # 7 × 12 dies: a step along each dimension, 6 + 11 links passed
    ("wafer", "all_gather", "all-dimensions", 84, 2, 15, 2 * 83 / 84),
    ("wafer", "reduce_scatter", "all-dimensions", 84, 2, 15, 2 * 83 / 84),
    ("wafer", "all_reduce", "all-dimensions", 84, 4, 30, 4 * 83 / 84),
    ("wafer", "all_to_all", "all-dimensions", 84, 2, 15, 42 / 2 / (7 / 4)),
    ("wafer", "broadcast", "all-dimensions", 84, 2, 15, 2),
    ("wafer", "send", "send", 84, 1, 0, 4),
    # 8 leaves of 8, a quarter of the bandwidth up: exchanges send 56/63 there, rings little
    ("fat-tree", "all_gather", "ring", 64, 63, 126, 63 / 64),
    ("fat-tree", "all_gather", "bidirectional-ring", 64, 32, 64, 63 / 64),
    ("fat-tree", "all_gather", "halving-doubling", 64, 6, 12, 4 * 56 / 64),
    ("fat-tree", "all_gather", "direct", 64, 1, 2, 4 * 56 / 64),
    ("fat-tree", "reduce_scatter", "direct", 64, 1, 2, 4 * 56 / 64),
    ("fat-tree", "all_reduce", "ring", 64, 126, 252, 126 / 64),
    ("fat-tree", "all_reduce", "double-tree", 64, 12, 24, 2),
    ("fat-tree", "all_reduce", "two-shot", 64, 2, 4, 8 * 56 / 64),
    ("fat-tree", "all_to_all", "direct", 64, 1, 2, 4 * 56 / 64),
    ("fat-tree", "all_to_all", "pairwise", 64, 63, 126, 4 * 56 / 64),
    ("fat-tree", "all_to_all", "direct", 8, 1, 0, 7 / 8),  # one leaf
    ("fat-tree", "broadcast", "double-tree", 64, 6, 12, 1),
    ("fat-tree-3", "all_to_all", "pairwise", 128, 127, 4 * 127, 2 * 120 / 128),
    ("fat-tree-3", "all_to_all", "direct", 32, 1, 2, 2 * 24 / 32),  # one pod
    # 9 groups of 4 routers of 4: half of the bandwidth between groups, four routers passed
    ("dragonfly", "all_to_all", "pairwise", 144, 143, 3 * 143, 2 * 128 / 144),
    ("dragonfly", "all_to_all", "direct", 16, 1, 1, 15 / 16),  # one group
    ("dragonfly", "all_to_all", "direct", 4, 1, 0, 3 / 4),  # one router
    ("dragonfly", "all_reduce", "ring", 144, 286, 3 * 286, 286 / 144),
    # circuits: 10 latencies for each time that partners change
    ("photonic", "all_gather", "ring", 32, 31 + 10, 0, 31 / 32),
    ("photonic", "all_gather", "halving-doubling", 32, 5 * 11, 0, 31 / 32),
    ("photonic", "reduce_scatter", "ring", 32, 31 + 10, 0, 31 / 32),
    ("photonic", "reduce_scatter", "halving-doubling", 32, 5 * 11, 0, 31 / 32),
    ("photonic", "all_reduce", "ring", 32, 62 + 10, 0, 62 / 32),
    ("photonic", "all_reduce", "halving-doubling", 32, 10 * 11, 0, 62 / 32),
    ("photonic", "all_to_all", "pairwise", 32, 31 * 11, 0, 31 / 32),
    ("photonic", "all_to_all", "bruck", 32, 5 * 11, 0, 5 / 2),
    ("photonic", "broadcast", "chain", 32, 31 + 10, 0, 1),
    ("photonic", "send", "send", 32, 1 + 10, 0, 1),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form[:4])))
def test_closed_forms(form):
    topology, kind, name, n, steps, hops, volume = form
    offer = by_name(kind, LEVELS[topology], n)[name]
    assert offer.latency_time == pytest.approx(steps * A + hops * HOP)
    assert offer.bandwidth_time == pytest.approx(volume * MB / B)
    assert offer.time == pytest.approx(offer.latency_time + offer.bandwidth_time)


@pytest.mark.parametrize("topology", ["ring", "torus", "mesh", "wafer", "photonic"])
@kinds
def test_all_algorithms_have_closed_forms(topology, kind):
    tested = {name for where, what, name, *_ in FORMS if (where, what) == (topology, kind)}
    assert set(by_name(kind, LEVELS[topology], LEVELS[topology].size)) == tested


NEAR = {"ring", "bidirectional-ring", "double-tree", "in-switch", "send"}


@pytest.mark.parametrize(
    ("wired", "hops", "slower"),
    [
        (Level("l", 8, LINK, "full"), 0, 1),
        # half of the members, of 7 others 4 elsewhere, at a third: 12/7 of the time
        (Level("l", 8, PASSING, "fat-tree", (4, 2), True, 3.0), 2, 12 / 7),
        (Level("l", 8, PASSING, "dragonfly", (2, 2, 2), True, 3.0), 3, 12 / 7),
        (Level("l", 8, PASSING, "fat-tree", (4, 2), True, 1.0), 2, 1),
    ],
    ids=["full", "fat-tree", "dragonfly", "full-bisection"],
)
@kinds
def test_algorithms_of_a_switch_elsewhere(kind, wired, hops, slower):
    """Steps and bytes of a switch (test_collectives), with more hops and fewer links."""
    plain = by_name(kind, Level("l", 8, LINK, in_switch_reduction=True), 8)
    for name, offer in by_name(kind, wired, 8).items():
        steps = plain[name].latency_time / A
        assert offer.latency_time == pytest.approx(steps * (A + hops * HOP))
        one_link = 7 if (wired.topology, name) == ("full", "send") else 1
        times = 1 if name in NEAR else slower
        assert offer.bandwidth_time == pytest.approx(plain[name].bandwidth_time * times * one_link)


# Bisection and diameter, counted on paper: bandwidths of one member that cross, and links.
CUTS = {
    "switch": (8, 1), "full": (8 * 8 / 15, 1), "ring": (2 / 2, 8), "torus": (16 * 2 / 6, 6),
    "torus-2d": (4 * 2 / 4, 6), "mesh": (4 / 4, 6), "mesh-3d": (6 / 6, 6), "wafer": (7 / 4, 17),
    "fat-tree": (32 / 4, 3), "fat-tree-3": (64 / 2, 5), "dragonfly": (72 / 2, 4),
    "photonic": (16, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", LEVELS)
def test_bisection_and_diameter(name):
    cut, diameter = CUTS[name]
    assert LEVELS[name].bisection == pytest.approx(cut * B)
    assert LEVELS[name].diameter == diameter


@levels
@pytest.mark.parametrize("nbytes", [1.0, 1e4, 1e7, 1e10])
def test_nothing_beats_the_ports_and_the_bisection(level, nbytes):
    n = level.size
    half = n // 2
    crossing = {"all_to_all": half * (n - half) / n, "all_gather": half / n, "all_reduce": 1.0,
                "reduce_scatter": half / n, "broadcast": 1.0}  # fmt: skip
    leaving = {"all_to_all": (n - 1) / n, "all_gather": (n - 1) / n, "broadcast": 1.0,
               "reduce_scatter": (n - 1) / n, "all_reduce": 2 * (n - 1) / n}  # fmt: skip
    for kind, share in crossing.items():
        for offer in offers(kind, nbytes, Span(level, n)):
            assert offer.bandwidth_time * (1 + 1e-12) >= share * nbytes / level.bisection
            assert offer.bandwidth_time * (1 + 1e-12) >= leaving[kind] * nbytes / B
            assert offer.latency_time >= A


def torus_loads(shape, members, wraps):
    """Bytes over each directed link if every member sends one byte to every other.

    Dimension by dimension; half of what is as far both ways round goes each way.
    """
    loads = Counter()
    for source, target in itertools.permutations(members, 2):
        place = list(source)
        for axis, length in enumerate(shape):
            ahead = (target[axis] - place[axis]) % length
            ways = [(1, ahead, 1.0)] if 2 * ahead < length else [(-1, length - ahead, 1.0)]
            if 2 * ahead == length:
                ways = [(1, ahead, 0.5), (-1, ahead, 0.5)]
            if not wraps:
                step = target[axis] - place[axis]
                ways = [(int(np.sign(step)), abs(step), 1.0)]
            for direction, links, part in ways:
                here = list(place)
                for _ in range(links):
                    loads[(tuple(here), axis, direction)] += part
                    here[axis] = (here[axis] + direction) % length
            place[axis] = target[axis]
    return loads


@pytest.mark.parametrize(
    ("topology", "shape"),
    [("torus", (8,)), ("torus", (4, 4)), ("torus", (4, 8)), ("torus", (4, 2, 6)),
     ("mesh", (4,)), ("mesh", (4, 4)), ("mesh", (2, 6)), ("mesh", (2, 4, 4))],
)  # fmt: skip
def test_an_exchange_takes_as_long_as_the_busiest_link_of_routed_messages(topology, shape):
    n = math.prod(shape)
    level = Level("l", n, LINK, topology, shape)
    members = list(itertools.product(*map(range, shape)))
    busiest = max(torus_loads(shape, members, topology == "torus").values())
    link = B / (2 * len(shape))
    priced = by_name("all_to_all", level, n)["all-dimensions"]
    # The model's k/4 is exact where the longest side is even, as all of these are.
    assert priced.bandwidth_time == pytest.approx(busiest * MB / n / link)


@pytest.mark.parametrize(("length", "apart"), [(8, 2), (16, 4), (12, 3)])
def test_groups_that_lie_between_each_other_share_their_links(length, apart):
    level = Level("l", length, LINK, "ring")
    n = length // apart
    loads = Counter()
    for first in range(apart):
        members = [(first + i * apart,) for i in range(n)]
        loads.update(torus_loads((length,), members, wraps=True))
    priced = by_name("all_to_all", level, n, apart=apart)["bidirectional-ring"]
    assert priced.bandwidth_time == pytest.approx(max(loads.values()) * MB / n / (B / 2))


def test_the_steps_of_a_ring_that_passes_parts_on_both_ways():
    for n in range(2, 20):
        known = [{i} for i in range(n)]
        steps = 0
        while any(len(parts) < n for parts in known):
            known = [known[i] | known[i - 1] | known[(i + 1) % n] for i in range(n)]
            steps += 1
        level = Level("l", n, LINK, "ring")
        gathered = by_name("all_gather", level, n)["bidirectional-ring"]
        assert gathered.latency_time == pytest.approx(steps * A)


def test_flows_over_the_leaves_of_a_fat_tree():
    level = LEVELS["fat-tree"]
    for n, apart in ((64, 1), (16, 1), (8, 8), (16, 4), (12, 1)):
        # members per leaf: evenly over as few leaves as hold them
        room = max(8 // apart, 1)
        leaves = math.ceil(n / room)
        inside = n // leaves
        out = (n - inside) / n * MB  # of a chip, to other leaves, all chips at once
        expected = max(out * 4 / B, (n - 1) / n * MB / B)
        priced = by_name("all_to_all", level, n, apart=apart)["pairwise"]
        assert priced.bandwidth_time == pytest.approx(expected)


def test_a_ring_over_leaves_is_slow_only_where_its_groups_fill_the_uplinks():
    level = LEVELS["fat-tree"]  # a leaf of 8 has links up for 2
    for apart, slower in ((1, 1), (2, 1), (4, 2), (8, 4)):
        n = 64 // apart
        ring = by_name("all_gather", level, n, apart=apart)["ring"]
        assert ring.bandwidth_time == pytest.approx(slower * (n - 1) / n * MB / B)


@levels
@kinds
def test_arrays_give_what_scalars_give(level, kind):
    sizes = np.array([n for n in (1, 2, 3, 4, 6, 8, 12, 16) if n <= level.size])
    nbytes = np.array([1.0, 1e5, 1e9])[:, None]
    priced = collective(kind, nbytes, [Span(level, sizes)])
    for i, size in enumerate(nbytes[:, 0]):
        for j, n in enumerate(sizes):
            one = collective(kind, float(size), [Span(level, int(n))])
            assert priced.time[i, j] == pytest.approx(one.time, rel=1e-12)
            assert np.broadcast_to(priced.sent, (3, len(sizes)))[i, j] == pytest.approx(one.sent)


@levels
@kinds
def test_arrays_of_gaps_give_what_scalars_give(level, kind):
    gaps = np.array([1, 2, 4])
    priced = collective(kind, MB, [Span(level, np.array([[2], [4]]), gaps)])
    for i, n in enumerate((2, 4)):
        for j, apart in enumerate(gaps):
            one = collective(kind, MB, [Span(level, n, int(apart))])
            assert np.broadcast_to(priced.time, (2, 3))[i, j] == pytest.approx(one.time, rel=1e-12)


@settings(max_examples=200, deadline=None)
@given(
    level=st.sampled_from(list(LEVELS.values())),
    kind=st.sampled_from(sorted(ALGORITHMS)),
    nbytes=st.floats(1, 1e11),
    factor=st.floats(1, 100),
    n=st.sampled_from([2, 4, 8, 16]),
)
def test_more_bytes_and_slower_links_never_take_less(level, kind, nbytes, factor, n):
    def time(nbytes=nbytes, **link):
        figures = {"bandwidth": B, "latency": A, "hop_latency": level.link.hop_latency} | link
        wired = Platform("p", "s", load_chip("h100-sxm"), (level,))
        wired = wired.with_link("l", **{k: v for k, v in figures.items() if k != "hop_latency"})
        return wired.collective(kind, nbytes, Group(n)).time

    assert time(nbytes * factor) >= time() * (1 - 1e-12)
    assert time(bandwidth=B / factor) >= time() * (1 - 1e-12)
    assert time(latency=A * factor) >= time() * (1 - 1e-12)


@pytest.mark.parametrize("name", ["switch", "fat-tree", "fat-tree-3", "dragonfly", "photonic"])
@kinds
def test_more_chips_never_take_less(name, kind):
    """Elsewhere they may: more members have more links between them, or close a ring."""
    sizes = [n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n <= LEVELS[name].size]
    nbytes = np.geomspace(1, 1e10, 20)
    times = [collective(kind, nbytes, [Span(LEVELS[name], n)]).time for n in sizes]
    for few, more in itertools.pairwise(times):
        assert np.all(more >= few * (1 - 1e-12))


@pytest.mark.parametrize("name", ["mesh", "wafer"])
@kinds
def test_more_chips_of_a_mesh_never_take_less(name, kind):
    nbytes = np.geomspace(1, 1e10, 20)
    times = [collective(kind, nbytes, [Span(LEVELS[name], n)]).time for n in (4, 16)]
    assert np.all(times[1] >= times[0] * (1 - 1e-12))


@levels
@kinds
def test_members_farther_apart_are_never_faster(level, kind):
    times = [collective(kind, MB, [Span(level, 4, apart)]).time for apart in (1, 2, 4)]
    if level.family != "grid":  # there, four blocks can close a ring where four members cannot
        assert times == sorted(times)
    else:
        assert times[2] >= times[0] / 2


@pytest.mark.parametrize(
    ("kind", "names"),
    [("all_reduce", "two-shot"), ("all_gather", "direct"), ("reduce_scatter", "direct")],
)
def test_equal_levels_are_as_good_as_one(kind, names):
    """Bytes: within (m-1)/m and across (k-1)/k of a share 1/m are (mk-1)/mk together."""
    inner, outer = Level("in", 4, Link(B, 0.0)), Level("out", 4, Link(B, 0.0))
    flat = by_name(kind, LEVELS["switch"], 16)[names]
    levelled = collective(kind, MB, [Span(inner, 4), Span(outer, 4)])
    assert levelled.bandwidth_time == pytest.approx(flat.bandwidth_time, rel=1e-12)


# What a level cannot be.
@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"topology": "fat-tree", "shape": (8, 2)}, "needs the 'hop_latency' of its links"),
        ({"topology": "wafer", "shape": (4, 4)}, "needs the 'hop_latency' of its links"),
        ({"topology": "wafer", "shape": (2, 2, 4)}, "it needs 2 sides whose product is its size"),
        ({"topology": "fat-tree", "shape": (16,)}, "needs at least 2 sides whose product"),
        ({"topology": "dragonfly", "shape": (4, 4)}, "it needs 3 sides"),
        ({"topology": "photonic"}, "needs its time of 'reconfiguration'"),
        ({"reconfiguration": 1e-6}, "a switch and has no circuits; leave 'reconfiguration' out"),
        ({"oversubscription": 2.0}, "oversubscription is left out, not 2.0"),
        ({"topology": "ring", "shape": (16,)}, "it needs no shape"),
    ],
)
def test_a_level_that_cannot_be(figures, message):
    with pytest.raises(SpecError, match=message):
        Level("l", 16, LINK, **figures)


@pytest.mark.parametrize("ratio", [0.5, 0, -1, math.nan])
def test_an_oversubscription_that_cannot_be(ratio):
    with pytest.raises(SpecError, match="oversubscription"):
        Level("l", 16, PASSING, "fat-tree", (8, 2), oversubscription=ratio)


def test_oversubscription_may_be_an_array():
    level = Level("l", 64, PASSING, "fat-tree", (8, 8), oversubscription=np.array([1.0, 2.0, 8.0]))
    times = collective("all_to_all", 1e9, [Span(level, 64)]).time
    assert times.shape == (3,)
    assert np.all(np.diff(times) > 0)


def test_a_level_wired_in_another_way():
    rack = Platform("p", "s", load_chip("h100-sxm"), (LEVELS["fat-tree"],))
    wider = rack.with_level("l", oversubscription=1.0)
    assert wider.levels[0].bisection == 4 * rack.levels[0].bisection
    torus = rack.with_level("l", topology="torus", shape=(8, 8), oversubscription=1.0)
    assert torus.collective("send", 1.0, 2).time > 0
    with pytest.raises(SpecError, match="a level has no 'tapering' to replace"):
        rack.with_level("l", tapering=1.0)
    with pytest.raises(SpecError, match="p has no level 'rack'"):
        rack.with_level("rack", size=8)


def test_a_photonic_switch_prefers_partners_that_stay():
    level = LEVELS["photonic"]
    for reconfiguration, name in ((0.0, "halving-doubling"), (1e-3, "ring")):
        wired = Level("l", 32, LINK, "photonic", reconfiguration=reconfiguration)
        found = collective("all_reduce", MB, [Span(wired, 32)])
        assert found.names[found.algorithm] == name
    assert level.bisection == LEVELS["switch"].bisection * 2


def test_blocks_that_do_not_lie_side_by_side_in_a_torus():
    with pytest.raises(SpecError, match="5 blocks of 3 do not lie side by side in a grid of 4 × 4"):
        box(5, (4, 4), wraps=True, apart=3)


def test_a_block_takes_a_box_that_leaves_room_for_the_others():
    inner = box(4, (4, 4), wraps=True)
    assert sorted(inner.sides) == [2, 2]
    outer = box(4, (4, 4), wraps=True, apart=4)
    assert np.prod(outer.apart) == 4
    assert all(s * a <= 4 for s, a in zip(outer.sides, outer.apart, strict=True))
    assert box(2, (3, 8), wraps=True, apart=3).apart in {(3, 1), (1, 3)}


@given(st.integers(1, 64), st.sampled_from([(8, 8), (4, 4, 4), (64,), (2, 32)]), st.booleans())
def test_a_box_holds_its_members(n, shape, wraps):
    found = box(n, shape, wraps=wraps)
    assert math.prod(found.sides) >= n
    assert all(side <= length for side, length in zip(found.sides, shape, strict=True))


# Protocols: NVLink in a node of 8 as NCCL uses it.
NCCL = Level("l", 8, Link(B, A, protocols=load_protocols("nccl", "nvlink")))


def test_small_messages_have_the_floor_of_their_protocol():
    tiny = collective("all_reduce", 8.0, [Span(NCCL, 8)])
    assert tiny.names[tiny.algorithm] == "one-shot/LL"
    assert tiny.time == pytest.approx(3.6e-6 + 0.47e-6 + 7 * 8 / (B / 4))
    ring = by_name("all_reduce", NCCL, 8, nbytes=8.0)["ring/LL"]
    assert ring.latency_time == pytest.approx(3.6e-6 + 14 * 0.47e-6)  # as NCCL's own tuning says


def test_large_messages_take_the_protocol_that_wastes_least():
    names = []
    for nbytes in np.geomspace(1e3, 1e10, 400):
        found = collective("all_reduce", nbytes, [Span(NCCL, 8)])
        names.append(found.names[found.algorithm].partition("/")[2])
    assert [name for name, _ in itertools.groupby(names)] == ["LL", "LL128", "Simple"]
    assert found.bandwidth_time == pytest.approx(2 * 7 / 8 * 1e10 / B)


@kinds
def test_protocols_cost_nothing_among_one_chip_and_arrays_agree(kind):
    sizes, nbytes = np.array([1, 2, 8]), np.array([0.0, 1.0, 1e6, 1e9])[:, None]
    priced = collective(kind, nbytes, [Span(NCCL, sizes)])
    assert np.all(priced.time[:, 0] == 0)
    assert np.all(priced.time[0] == 0)
    for i, j in itertools.product(range(4), range(1, 3)):
        one = collective(kind, float(nbytes[i, 0]), [Span(NCCL, int(sizes[j]))])
        assert priced.time[i, j] == pytest.approx(one.time, rel=1e-12)


def test_protocols_of_a_platform():
    node = load_platform("dgx-h100")
    spoken = node.with_link("node", protocols=load_protocols("nccl", "nvlink"))
    nbytes = np.geomspace(1, 1e10, 30)
    assert np.all(
        spoken.collective("all_reduce", nbytes, 8).time
        > node.collective("all_reduce", nbytes, 8).time * (1 - 1e-12)
    )
    with pytest.raises(SpecError, match="nccl knows no link 'nvlnk'; did you mean 'nvlink'"):
        load_protocols("nccl", "nvlnk")
    with pytest.raises(SpecError, match="unknown protocol 'ncl'; did you mean 'nccl'"):
        load_protocols("ncl", "nvlink")
    with pytest.raises(
        SpecError, match="a link has no 'protocol' to replace; did you mean 'protocols'"
    ):
        node.with_link("node", protocol=())


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ((0, 0, 1.5), "at most 1, not 1.5"),
        ((0, 0, 0), "positive, not 0"),
        ((-1, 0, 1), "start of protocol p must be 0"),
        ((0, math.nan, 1), "step of protocol p must be 0"),
    ],
)
def test_a_protocol_that_cannot_be(figures, message):
    with pytest.raises(SpecError, match=message):
        Protocol("p", *figures)
