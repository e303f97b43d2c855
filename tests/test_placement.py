"""Groups placed over levels, against chips laid out and counted one by one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware import Group, Level, Link, Platform, SpecError, load_chip, load_platform
from hardware.placement import places, spread

SLOW, FAST = Link(25e9, 5e-6), Link(400e9, 1e-6)
CLUSTER = Platform(
    "cluster",
    "made up",
    load_chip("h100-sxm"),
    (Level("node", 8, FAST), Level("rack", 4, Link(100e9, 2e-6)), Level("hall", 6, SLOW)),
)
NBYTES = np.geomspace(1, 1e10, 11)


def counted(size, stride, sizes):
    """Members of the first group at each level, where every block lies whole in a domain."""
    chips = {i * stride for i in range(size)}
    ways, reach = [], 1
    for members in sizes:
        inner, reach = reach, reach * members
        domains = {chip // reach for chip in chips}
        ways.append(len({chip // inner for chip in chips}) / len(domains))
    return tuple(ways)


@given(
    st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=3),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.sampled_from([1, 2, 4, 8, 16, 32]),
)
def test_members_are_those_of_chips_laid_out_in_order(sizes, size, stride):
    if size * stride <= math.prod(sizes):
        assert spread(size, places(sizes, stride)) == counted(size, stride, sizes)


@pytest.mark.parametrize(
    ("size", "stride", "members"),
    [
        (8, 1, (8, 1, 1)),
        (8, 8, (1, 4, 2)),
        (12, 1, (6, 2, 1)),
        (9, 1, (4.5, 2, 1)),
        (2, 3, (2, 1, 1)),  # two blocks of 3 in a node of 8, whose other two chips idle
        (3, 3, (1.5, 2, 1)),
        (2, 12, (1, 2, 1)),  # a block of 12 takes two nodes of a rack of four
        (6, 32, (1, 1, 6)),
        (192, 1, (8, 4, 6)),
    ],
)
def test_members_of_groups(size, stride, members):
    assert CLUSTER.group(size, stride) == members


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 64), st.integers(1, 300)
)
def test_no_block_lies_over_two_domains_that_could_hold_it(sizes, stride, size):
    found = places(sizes, stride)
    reach = 1
    for place, members in zip(found, sizes, strict=True):
        reach *= members
        room = math.prod(p.room for p in found[: found.index(place) + 1])
        assert room * stride <= reach or room == 1
    if size <= math.prod(place.room for place in found):
        ways = spread(size, found)
        assert math.prod(ways) == pytest.approx(size)
        assert all(1 <= way <= place.room for way, place in zip(ways, found, strict=True))


def test_arrays_of_sizes_and_strides():
    sizes, strides = np.array([1, 2, 3, 4, 6]), np.array([1, 3, 4, 8, 32])[:, None]
    members = CLUSTER.group(sizes, strides)
    priced = CLUSTER.collective("all_gather", 1e6, Group(sizes, strides))
    for i, stride in enumerate(strides[:, 0]):
        for j, size in enumerate(sizes):
            one = CLUSTER.group(int(size), int(stride))
            assert [np.broadcast_to(m, (5, 5))[i, j] for m in members] == pytest.approx(one)
            time = CLUSTER.collective("all_gather", 1e6, Group(int(size), int(stride))).time
            assert np.broadcast_to(priced.time, (5, 5))[i, j] == pytest.approx(time, rel=1e-12)


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all",
                                  "broadcast", "send"])  # fmt: skip
@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_a_group_moved_to_a_slower_level_is_never_faster(kind, size):
    strides = [stride for stride in (1, 2, 4, 8, 16, 32) if np.prod(CLUSTER.group(6, stride)) == 6]
    times = [CLUSTER.collective(kind, NBYTES, Group(size, stride)).time for stride in strides]
    reached = [
        len(CLUSTER.group(size, s))
        - next(i for i, m in enumerate(reversed(CLUSTER.group(size, s))) if m > 1)
        for s in strides
    ]
    for near, far, inner, outer in zip(times, times[1:], reached, reached[1:], strict=False):
        if inner < outer:
            assert np.all(far >= near * (1 - 1e-12))
    assert times[-1][-1] > 3 * times[0][-1]  # a slower link by 16


def test_an_uneven_all_reduce_moves_the_share_of_the_emptiest_node():
    # 9 chips: 5 in one node, 4 in the other, each of which has a quarter to send across.
    reduced = load_platform("dgx-a100:2").collective("all_reduce", 1e9, Group(9))
    node, cluster = load_platform("dgx-a100:2").levels
    inside = node.link.latency + 4 / 5 * 1e9 / node.link.bandwidth
    across = 2 * cluster.link.latency + 1e9 / 4 / cluster.link.bandwidth
    one_shot = cluster.link.latency + 1e9 / 4 / cluster.link.bandwidth
    assert reduced.time == pytest.approx(2 * inside + min(across, one_shot))


def test_traffic_of_an_all_to_all_by_level():
    assert CLUSTER.traffic(Group(192)) == pytest.approx((7 / 192, 24 / 192, 160 / 192))
    assert CLUSTER.traffic(Group(4, stride=8)) == (0, 3 / 4, 0)
    assert CLUSTER.traffic(Group(9)) == pytest.approx((4 / 9, 5 / 9, 0))


def test_an_exchange_takes_as_long_as_its_busiest_level():
    nbytes = 1e9
    priced = CLUSTER.collective("all_to_all", nbytes, Group(32))
    inside, across, _ = CLUSTER.traffic(Group(32))
    node, rack, _ = (level.link for level in CLUSTER.levels)
    assert priced.bandwidth_time == pytest.approx(
        max(inside * nbytes / node.bandwidth, across * nbytes / rack.bandwidth)
    )


def test_a_send_crosses_the_level_that_the_distance_takes_it_to():
    for distance, link in ((1, FAST), (4, FAST), (8, CLUSTER.levels[1].link), (32, SLOW)):
        sent = CLUSTER.send(1e6, distance)
        assert sent.time == pytest.approx(link.latency + 1e6 / link.bandwidth)


def test_collectives_that_share_links_have_a_part_of_them_each():
    alone = CLUSTER.collective("all_reduce", NBYTES, 32)
    four = CLUSTER.collective("all_reduce", NBYTES, 32, sharing=4)
    slower = CLUSTER.with_link("node", bandwidth=FAST.bandwidth / 4)
    slower = slower.with_link("rack", bandwidth=CLUSTER.levels[1].link.bandwidth / 4)
    assert four.time == pytest.approx(slower.collective("all_reduce", NBYTES, 32).time)
    assert four.sent[-1] == pytest.approx(alone.sent[-1])
    with pytest.raises(SpecError, match="cannot share"):
        CLUSTER.collective("all_reduce", 1e6, 32, sharing=0.5)


def test_a_number_of_chips_is_a_group_of_neighbours():
    assert CLUSTER.collective("all_reduce", 1e6, 16) == CLUSTER.collective(
        "all_reduce", 1e6, Group(16)
    )


@pytest.mark.parametrize(
    "size", [0, -1, 2.5, math.nan, math.inf, "eight", None, True, np.array([])]
)
def test_a_group_of_none(size):
    with pytest.raises(SpecError, match="use numbers from 1 up"):
        Group(size)
    with pytest.raises(SpecError, match="use numbers from 1 up"):
        Group(2, size)


def test_blocks_that_lie_whole_in_nodes_need_room():
    two = load_platform("h100-sxm:16")
    assert two.group(4, 3) == (2, 2)
    room = r"5 chips with stride 3 does not fit h100-sxm:16, whose levels of 8 × 2 have room for 4 "
    with pytest.raises(SpecError, match=room):
        two.group(5, 3)
    with pytest.raises(SpecError, match="does not fit cluster, which has 192"):
        CLUSTER.collective("all_reduce", 1e6, Group(2, 192))
    with pytest.raises(SpecError, match="a group of 5 chips with stride 3 does not fit"):
        two.group(np.array([2, 5, 8]), np.array([8, 3, 1]))  # the first that does not


@pytest.mark.parametrize("nbytes", [-1.0, math.nan, np.array([1.0, -1.0])])
def test_a_buffer_of_none(nbytes):
    with pytest.raises(SpecError, match="bytes is none; use numbers from 0 up"):
        CLUSTER.collective("all_reduce", nbytes, 8)


def test_sizes_and_strides_that_do_not_broadcast():
    with pytest.raises(
        SpecError, match=r"sizes of shape \(2,\) and strides of shape \(3,\) do not"
    ):
        Group(np.array([1, 2]), np.array([1, 2, 4]))


def test_a_group_along_axes_that_are_not_neighbours():
    group = Group.along([(2, 1), (2, 4), (4, 8)])  # chips 0 1 4 5 of each of four nodes
    assert [(s.level.name, s.ways) for s in CLUSTER.place(group)] == [("node", 4), ("rack", 4)]
    assert CLUSTER.traffic(group) == pytest.approx((3 / 16, 12 / 16, 0))
    same = CLUSTER.collective("all_reduce", NBYTES, Group.along([(4, 1), (4, 8)]))
    assert CLUSTER.collective("all_reduce", NBYTES, group).time == pytest.approx(same.time)


@pytest.mark.parametrize("split", [[(2, 1), (4, 2)], [(2, 1), (2, 2), (2, 4)], [(8, 1), (1, 8)]])
@pytest.mark.parametrize("kind", ["all_reduce", "all_to_all", "send"])
def test_a_group_along_neighbouring_axes_is_one_group(split, kind):
    for name in ("dgx-h100:4", "tpu-v5e-pod", "mi300x:32"):
        platform = load_platform(name)
        whole, parts = (
            platform.collective(kind, NBYTES, g) for g in (Group(8), Group.along(split))
        )
        assert parts.time == pytest.approx(whole.time, rel=1e-12)


def test_arrays_along_several_axes():
    inner, outer = np.array([1, 2, 4]), np.array([1, 2, 3])[:, None]
    priced = CLUSTER.collective("all_gather", 1e6, Group.along([(inner, 1), (outer, 8)]))
    for i, j in np.ndindex(3, 3):
        one = Group.along([(int(inner[j]), 1), (int(outer[i, 0]), 8)])
        time = CLUSTER.collective("all_gather", 1e6, one).time
        assert priced.time[i, j] == pytest.approx(time, rel=1e-12)


def test_members_apart_in_a_ring_share_its_links_as_their_mean_says():
    """Pairs 0 1 and 8 9 of a ring of 16: four groups lie side by side, as with 0 4 8 12."""
    ring = Platform("p", "s", load_chip("h100-sxm"), (Level("ring", 16, FAST, "ring"),))
    pairs = ring.collective("all_to_all", 1e9, Group.along([(2, 1), (2, 8)]))
    spread_out = ring.collective("all_to_all", 1e9, Group(4, 4))
    assert pairs.bandwidth_time == pytest.approx(spread_out.bandwidth_time)


def test_a_group_along_no_axis_is_one_chip():
    assert CLUSTER.collective("all_reduce", 1e6, Group.along([])).time == 0
