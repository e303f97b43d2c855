"""Collective costs against closed forms worked out by hand, and the rules all of them keep."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware import Level, Link, SpecError, algorithm_name, collective, load_platform
from hardware.algorithms import ALGORITHMS, Algorithm
from hardware.level import Span
from hardware.offers import applicable, offers

A, B = 2e-6, 100e9  # s, B/s: latency and bandwidth of the links below
KINDS = sorted(ALGORITHMS)
MB = 1e6


def level(topology="switch", size=8, shape=(), in_switch=False, bandwidth=B, latency=A):
    return Level("l", size, Link(bandwidth, latency), topology, shape, in_switch)


WIRINGS = {
    "switch": level(),
    "in-switch": level(in_switch=True),
    "full": level("full"),
    "ring": level("ring"),
    "mesh": level("mesh", 8, (2, 4)),
    "torus": level("torus", 64, (4, 4, 4)),
}
wirings = pytest.mark.parametrize("wired", WIRINGS.values(), ids=WIRINGS)
kinds = pytest.mark.parametrize("kind", KINDS)


def rivals(kind, nbytes, wired, n):
    return {offer.names[0]: offer for offer in offers(kind, nbytes, Span(wired, n))}


def cost(kind, nbytes, wired, n):
    return collective(kind, nbytes, [Span(wired, n)])


# Closed forms: (kind, algorithm, steps, bytes sent) for 1 MB on 8 chips.
ON_A_SWITCH = [
    ("all_reduce", "ring", 14, 1.75 * MB),  # 2·7 steps of an eighth
    ("all_reduce", "bidirectional-ring", 8, 1.75 * MB),  # parts meet after 4 steps
    ("all_reduce", "halving-doubling", 6, 1.75 * MB),  # 1/2+1/4+1/8, there and back
    ("all_reduce", "double-tree", 6, 2 * MB),  # up once, down once
    ("all_reduce", "one-shot", 1, 7 * MB),  # all to each of 7
    ("all_reduce", "two-shot", 2, 1.75 * MB),
    ("all_reduce", "in-switch", 2, 1.125 * MB),  # all up, an eighth to be copied
    ("all_gather", "ring", 7, 0.875 * MB),
    ("all_gather", "bidirectional-ring", 4, 0.875 * MB),
    ("all_gather", "halving-doubling", 3, 0.875 * MB),  # 1/8+2/8+4/8
    ("all_gather", "direct", 1, 0.875 * MB),
    ("reduce_scatter", "ring", 7, 0.875 * MB),
    ("reduce_scatter", "bidirectional-ring", 4, 0.875 * MB),
    ("reduce_scatter", "halving-doubling", 3, 0.875 * MB),
    ("reduce_scatter", "direct", 1, 0.875 * MB),
    ("all_to_all", "pairwise", 7, 0.875 * MB),
    ("all_to_all", "bruck", 3, 1.5 * MB),  # three times half
    ("all_to_all", "direct", 1, 0.875 * MB),
    ("broadcast", "double-tree", 3, MB),
    ("broadcast", "scatter-gather", 3 + 7, 1.75 * MB),
    ("broadcast", "direct", 2, 1.75 * MB),
    ("broadcast", "in-switch", 1, MB),
    ("send", "send", 1, MB),
]


@pytest.mark.parametrize(("kind", "name", "steps", "sent"), ON_A_SWITCH)
def test_closed_forms_on_a_switch(kind, name, steps, sent):
    offer = rivals(kind, MB, WIRINGS["in-switch"], 8)[name]
    assert offer.latency_time == pytest.approx(steps * A)
    assert offer.sent == pytest.approx(sent)
    assert offer.bandwidth_time == pytest.approx(sent / B)
    assert offer.time == pytest.approx(steps * A + sent / B)


def test_every_algorithm_on_a_switch_has_a_closed_form():
    listed = {(kind, name) for kind, name, *_ in ON_A_SWITCH}
    registered = {
        (kind, algorithm.name)
        for kind, algorithms in ALGORITHMS.items()
        for algorithm in algorithms
        if "switched" in algorithm.families
    }
    assert listed == registered


@pytest.mark.parametrize("n", [2, 3, 5, 8, 64])
def test_ring_moves_the_least_an_all_reduce_can(n):
    wired = level(size=n)
    assert rivals("all_reduce", MB, wired, n)["ring"].sent == pytest.approx(2 * (n - 1) / n * MB)


def test_a_ring_all_gather_round_a_ring_keeps_both_links_busy():
    gathered = cost("all_gather", MB, WIRINGS["ring"], 8)
    assert gathered.time == pytest.approx(4 * A + 0.875 * MB / B)  # parts meet half way


def test_part_of_a_ring_is_a_line_at_half_the_rate():
    gathered = cost("all_gather", MB, WIRINGS["ring"], 4)
    assert gathered.time == pytest.approx(3 * A + 0.75 * MB / (B / 2))


def test_all_to_all_round_a_ring_is_bound_by_its_bisection():
    # 4 chips send half of 1 MB each to the other half, over 2 links of B/2 each.
    exchanged = cost("all_to_all", MB, WIRINGS["ring"], 8)
    assert exchanged.bandwidth_time == pytest.approx(4 * 0.5 * MB / (2 * B / 2))


def test_all_to_all_in_a_torus_is_bound_by_its_bisection():
    # 32 chips send half of 1 MB each over the cut: 16 rings, 2 links of B/6 each.
    exchanged = cost("all_to_all", MB, WIRINGS["torus"], 64)
    assert exchanged.bandwidth_time == pytest.approx(32 * 0.5 * MB / (16 * 2 * B / 6))


def test_all_reduce_in_a_torus_goes_along_all_dimensions_at_once():
    reduced = cost("all_reduce", MB, WIRINGS["torus"], 64)
    assert reduced.latency_time == pytest.approx(2 * (2 + 2 + 2) * A)  # both ways
    assert reduced.bandwidth_time == pytest.approx(2 * 63 / 64 * MB / B)


def test_a_group_in_a_torus_is_the_most_compact_box():
    layout = WIRINGS["torus"].layout(8)
    assert sorted(layout.members.sides) == [2, 2, 2]
    assert layout.near == pytest.approx(1 / 2)  # three dimensions, one of two links in each
    layout = WIRINGS["torus"].layout(16)
    assert sorted(layout.members.sides) == [2, 2, 4]
    assert layout.near == pytest.approx(2 / 3)  # one dimension closed, one link in the others


def test_a_group_among_fully_connected_chips_uses_the_links_between_its_members():
    pair = cost("all_gather", MB, WIRINGS["full"], 2)
    assert pair.bandwidth_time == pytest.approx(0.5 * MB / (B / 7))
    assert cost("send", MB, WIRINGS["full"], 2).bandwidth_time == pytest.approx(MB / (B / 7))
    assert cost("all_gather", MB, WIRINGS["full"], 8).bandwidth_time == pytest.approx(
        0.875 * MB / B
    )


@kinds
@wirings
def test_one_chip_costs_nothing(kind, wired):
    for n in (1, np.array([1, 1])):
        alone = cost(kind, MB, wired, n)
        assert np.all(np.asarray(alone[:4]) == 0)
    assert collective(kind, MB, ())[:4] == (0, 0, 0, 0)


@kinds
@wirings
def test_an_empty_buffer_costs_nothing(kind, wired):
    assert cost(kind, 0, wired, 8).time == 0


@kinds
@wirings
def test_more_bytes_never_take_less_time(kind, wired):
    times = cost(kind, np.geomspace(1, 1e12, 200), wired, 8).time
    assert np.all(np.diff(times) >= 0)


@kinds
@wirings
def test_the_choice_is_never_slower_than_any_algorithm(kind, wired):
    for nbytes in np.geomspace(1, 1e10, 12):
        for n in (2, 4, 8):
            best = cost(kind, float(nbytes), wired, n)
            others = rivals(kind, float(nbytes), wired, n)
            assert best.time == min(rival.time for rival in others.values())
            assert others[algorithm_name(best)].time == best.time


@wirings
def test_an_all_reduce_is_no_faster_than_a_reduce_scatter(wired):
    nbytes = np.geomspace(1, 1e10, 50)
    assert np.all(
        cost("all_reduce", nbytes, wired, 8).time
        >= cost("reduce_scatter", nbytes, wired, 8).time * (1 - 1e-12)
    )


@kinds
@wirings
def test_time_is_latency_and_bandwidth(kind, wired):
    priced = cost(kind, np.geomspace(1, 1e10, 9), wired, np.array([8]))
    assert priced.time == pytest.approx(priced.latency_time + priced.bandwidth_time, rel=1e-12)


@kinds
@wirings
def test_faster_links_scale_the_time(kind, wired):
    fast = Level(
        "l", wired.size, Link(3 * B, A / 3), wired.topology, wired.shape, wired.in_switch_reduction
    )
    assert cost(kind, MB, fast, 8).time == pytest.approx(cost(kind, MB, wired, 8).time / 3)


def test_halving_doubling_needs_a_power_of_two():
    assert "halving-doubling" not in rivals("all_reduce", MB, WIRINGS["switch"], 6)
    times = rivals("all_reduce", MB, WIRINGS["switch"], np.array([6, 8]))["halving-doubling"].time
    assert times[0] == math.inf
    assert times[1] < math.inf


def test_in_switch_reduction_needs_switches_that_add():
    assert "in-switch" not in rivals("all_reduce", MB, WIRINGS["switch"], 8)
    assert algorithm_name(cost("all_reduce", 1e9, WIRINGS["in-switch"], 8)) == "in-switch"


def test_direct_algorithms_stop_at_the_largest_domain_sold():
    assert "one-shot" not in rivals("all_reduce", MB, level(size=128), 128)


def test_every_kind_has_an_algorithm_for_every_wiring_and_any_number_of_chips():
    for kind in KINDS:
        for wired in WIRINGS.values():
            for n in (2, 3, 4.5, 7, 8):
                assert math.isfinite(cost(kind, MB, wired, n).time)


def test_an_unknown_kind_says_which_there_are():
    with pytest.raises(SpecError, match="did you mean 'all_reduce'"):
        collective("allreduce", MB, [Span(WIRINGS["switch"], 8)])


# Several levels: nodes of 4 on fast links, 3 nodes on slow ones.
INNER, OUTER = level(size=4, bandwidth=4 * B), level(size=3)
NESTED = [Span(INNER, 4), Span(OUTER, 3)]


def test_a_hierarchical_all_reduce_works_within_across_and_within():
    nbytes = 1e9
    reduced = collective("all_reduce", nbytes, NESTED)
    inside = A + 0.75 * nbytes / (4 * B)  # direct reduce-scatter, and as much to gather
    across = 2 * A + 4 / 3 * (nbytes / 4) / B  # two shots on the quarter a chip keeps
    assert reduced.time == pytest.approx(2 * inside + across)
    assert algorithm_name(reduced) == "hierarchical(direct+two-shot+direct)"


def test_a_hierarchical_all_gather_goes_across_first():
    nbytes = 1e9
    gathered = collective("all_gather", nbytes, NESTED)
    across = A + 2 / 3 * (nbytes / 4) / B
    inside = A + 0.75 * nbytes / (4 * B)
    assert gathered.time == pytest.approx(across + inside)
    assert algorithm_name(gathered) == "hierarchical(direct+direct)"


def test_a_straight_all_to_all_uses_all_levels_at_once():
    slow = level(size=3, bandwidth=B / 100)
    exchanged = collective("all_to_all", 1e9, [Span(INNER, 4), Span(slow, 3)])
    across = A + 8 / 12 * 1e9 / (B / 100)  # what goes to the 8 chips of the other nodes
    assert exchanged.time == pytest.approx(across)
    assert exchanged.sent == pytest.approx(11 / 12 * 1e9)
    assert algorithm_name(exchanged) == "straight(direct+direct)"


def test_many_small_parts_are_gathered_within_before_they_go_across():
    many = [Span(level(size=8), 8), Span(level(size=128), 128)]
    exchanged = collective("all_to_all", 256.0, many)
    inside = A + 7 / 8 * 256 / B  # direct
    across = 7 * A + 7 / 2 * 256 / B  # Bruck: log2 128 steps, half of the buffer in each
    assert exchanged.time == pytest.approx(inside + across)
    assert algorithm_name(exchanged) == "hierarchical(direct+bruck)"


def test_small_messages_go_flat_over_the_outermost_links():
    assert algorithm_name(collective("all_reduce", 8.0, NESTED)) == "one-shot"


def test_a_send_crosses_the_outermost_link_only():
    assert collective("send", MB, NESTED).time == pytest.approx(A + MB / B)


@kinds
def test_a_level_of_one_changes_nothing(kind):
    plain = collective(kind, MB, [Span(INNER, 4)])
    ones = collective(
        kind, np.array([MB]), [Span(INNER, np.array([4])), Span(OUTER, np.array([1]))]
    )
    assert ones.time[0] == pytest.approx(plain.time, rel=1e-12)


PLATFORMS = ["dgx-h100-superpod", "h100-sxm:64", "mi300x:32", "trn2-ultraserver", "tpu-v5e-pod"]


@pytest.mark.parametrize("name", PLATFORMS)
@kinds
def test_arrays_give_what_scalars_give(name, kind):
    platform = load_platform(name)
    sizes = np.array([1, 2, 3, 4, 6, 8, 9, 16, 32])
    nbytes = np.geomspace(1, 1e9, 7)[:, None]
    priced = collective(kind, nbytes, platform.spans(sizes))
    for i, size in enumerate(nbytes[:, 0]):
        for j, n in enumerate(sizes):
            one = collective(kind, float(size), platform.spans(int(n)))
            here = [np.broadcast_to(column, (7, 9))[i, j] for column in priced[:4]]
            assert here == pytest.approx(list(one[:4]), rel=1e-12)
            index = np.broadcast_to(priced.algorithm, (7, 9))[i, j]
            assert n == 1 or priced.names[index] == algorithm_name(one)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    name=st.sampled_from(PLATFORMS),
    nbytes=st.floats(1, 1e12),
    n=st.integers(2, 32),
    factor=st.floats(1, 100),
)
def test_better_links_and_smaller_buffers_never_take_longer(kind, name, nbytes, n, factor):
    platform = load_platform(name)
    priced = collective(kind, nbytes, platform.spans(n)).time
    assert 0 < priced < math.inf
    assert collective(kind, nbytes / factor, platform.spans(n)).time <= priced * (1 + 1e-12)
    outer = platform.levels[-1]
    better = platform.with_link(
        outer.name, outer.link.bandwidth * factor, outer.link.latency / factor
    )
    assert collective(kind, nbytes, better.spans(n)).time <= priced * (1 + 1e-12)


def test_link_arrays_sweep():
    platform = load_platform("dgx-h100").with_link("node", bandwidth=np.geomspace(1e9, 1e12, 5))
    times = collective("all_reduce", 1e9, platform.spans(8)).time
    assert times.shape == (5,)
    assert np.all(np.diff(times) < 0)


def test_the_algorithm_of_an_array_is_an_index_into_the_names():
    priced = cost("all_reduce", np.array([8.0, 1e9]), WIRINGS["in-switch"], 8)
    assert [priced.names[i] for i in priced.algorithm] == ["one-shot", "in-switch"]


def test_an_algorithm_is_one_function_and_one_line(monkeypatch):
    free = Algorithm("free", lambda nbytes, n: (0 * n, 0 * nbytes), frozenset({"full"}))
    monkeypatch.setitem(ALGORITHMS, "all_reduce", (*ALGORITHMS["all_reduce"], free))
    applicable.cache_clear()
    try:
        assert algorithm_name(cost("all_reduce", MB, WIRINGS["full"], 8)) == "free"
    finally:
        applicable.cache_clear()
