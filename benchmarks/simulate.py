"""How fast is a simulation: one warm call, and points per second over a grid, on one core.

Run it with ``python benchmarks/simulate.py``; elementwise NumPy takes one core.
"""

import statistics
import time

import numpy as np

from frontends import load_model
from hardware import load_platform
from opgraph import Plan, Workload, simulate

CALLS, REPEATS = 50, 5
# what the peer GenZ takes per point on one core: 24 points a second (its own published loop)
PEER_POINTS_PER_SECOND = 24


def main() -> None:
    """Print µs per warm scalar call and points per second of the (1000 × 1000) grid."""
    model, platform = load_model("llama-3.1-70b"), load_platform("dgx-h100")
    workload = Workload(batch=32, prompt=2048, output=256)
    simulate(model, platform, Plan(tp=8), workload)

    def scalar() -> float:
        begin = time.perf_counter()
        for _ in range(CALLS):
            simulate(model, platform, Plan(tp=8), workload)
        return (time.perf_counter() - begin) / CALLS

    bandwidth = np.geomspace(1e12, 30e12, 1000)[:, None]
    batches = Workload(batch=np.arange(1, 1001)[None, :], prompt=2048, output=256)
    architects = platform.with_chip(memory_bandwidth=bandwidth)

    def grid() -> float:
        begin = time.perf_counter()
        report = simulate(model, architects, Plan(tp=8), batches)
        assert report.tpot.shape == (1000, 1000)
        return (time.perf_counter() - begin) / report.tpot.size

    one = statistics.median(scalar() for _ in range(REPEATS))
    point = statistics.median(grid() for _ in range(REPEATS))
    print(f"scalar simulate   {one * 1e6:10,.0f} µs per call")
    print(f"1000 × 1000 grid  {1 / point:10,.0f} points per second")
    print(f"grid over scalar  {one / point:10,.0f} × per point")
    print(f"grid over GenZ    {1 / point / PEER_POINTS_PER_SECOND:10,.0f} × (at 24 points/s)")


if __name__ == "__main__":
    main()
