"""What does memory bandwidth buy, and where does it stop? A grid of chips times batches."""

import numpy as np

from frontends import load_model
from hardware import load_platform
from opgraph import Plan, Workload, simulate

bandwidth = np.geomspace(2e12, 32e12, 5)[:, None]
batch = np.array([1, 16, 256])[None, :]
platform = load_platform("dgx-h100").with_chip(memory_bandwidth=bandwidth)
report = simulate(
    load_model("llama-3.1-70b"),
    platform,
    Plan(tp=8),
    Workload(batch=batch, prompt=2048, output=256),
)

print("TB/s    " + "  ".join(f"TPOT ms, batch {size}" for size in batch.ravel()))
for row, rate in enumerate(bandwidth.ravel()):
    times = "  ".join(
        f"{time * 1e3:{15 + len(str(size))}.2f}"
        for time, size in zip(report.tpot[row], batch.ravel(), strict=True)
    )
    print(f"{rate / 1e12:4.0f}  {times}")
