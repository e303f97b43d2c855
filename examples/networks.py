"""Where a group lies is what its collectives cost: placement, topologies, links that are shared."""

import numpy as np

from hardware import Group, Level, Link, Platform, algorithm_name, load_chip, load_platform

MB = 1e6

# Eight chips of one node, then one chip of each of eight nodes.
nodes = load_platform("dgx-h100:8")
for stride in (1, 2, 4, 8):
    group = Group(8, stride)
    cost = nodes.collective("all_reduce", 64 * MB, group)
    members = " × ".join(f"{ways:g}" for ways in nodes.group(group.size, group.stride))
    print(f"stride {stride}: {members} chips, {cost.time * 1e6:6.1f} µs  {algorithm_name(cost)}")

# What an exchange among 64 chips sends over each level, and what four at once take.
print("of an all-to-all, by level:", [f"{share:.3f}" for share in nodes.traffic(64)])
alone, four = (nodes.collective("all_to_all", 16 * MB, 64, sharing=n).time for n in (1, 4))
print(f"alone {alone * 1e6:.0f} µs, with three others {four * 1e6:.0f} µs")

# 64 chips under one level, wired in six ways with equal links.
link = Link(bandwidth=450e9, latency=1e-6, hop_latency=0.2e-6)
wirings = (
    Level("rack", 64, link, "switch"),
    Level("rack", 64, link, "fat-tree", (8, 8), oversubscription=4.0),
    Level("rack", 64, link, "dragonfly", (4, 4, 4), oversubscription=2.0),
    Level("rack", 64, link, "torus", (4, 4, 4)),
    Level("rack", 64, link, "wafer", (8, 8)),
    Level("rack", 64, link, "photonic", reconfiguration=10e-6),
)
print("topology    bisection  all-reduce              all-to-all    (16 MB)")
for level in wirings:
    rack = Platform("rack", "this example", load_chip("h100-sxm"), (level,))
    reduce, exchange = (rack.collective(kind, 16 * MB, 64) for kind in ("all_reduce", "all_to_all"))
    print(
        f"{level.topology:10} {level.bisection / 1e12:5.1f} TB/s "
        f"{reduce.time * 1e6:6.0f} µs {algorithm_name(reduce):16}"
        f"{exchange.time * 1e6:6.0f} µs {algorithm_name(exchange)}"
    )

# Everything broadcasts: pipeline neighbours at four distances over a thousand link speeds.
speeds = np.geomspace(25e9, 800e9, 1000)
sent = nodes.with_link("cluster", bandwidth=speeds).send(MB, np.array([[1], [4], [8], [16]]))
print("send 1 MB, distance × link speed:", sent.time.shape)
