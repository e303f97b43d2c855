"""How fast is the search for the best plan, beside simulating its plans one by one.

Run it with ``python benchmarks/search.py``; it takes one core.
"""

import time

import numpy as np

from frontends import load_model
from hardware import load_platform
from opgraph import best_plans

SAMPLE, SEED = 60, 0


def main() -> None:
    """Print seconds of a search for DeepSeek-V3 on 72 chips, and of its rows by themselves."""
    model, platform = load_model("deepseek-v3"), load_platform("gb200-nvl72")
    begin = time.perf_counter()
    search = best_plans(model, platform)
    took = time.perf_counter() - begin
    rows = np.random.default_rng(SEED).choice(len(search.table), SAMPLE, replace=False)
    begin = time.perf_counter()
    for row in rows:
        assert search.report(row).tpot > 0
    alone = (time.perf_counter() - begin) / SAMPLE
    print(f"search           {took:8.1f} s for {search.candidates:,} plans and batches")
    print(f"one by one       {alone * search.candidates:8.1f} s ({SAMPLE} of them timed)")
    print(f"search over that {alone * search.candidates / took:8.0f} ×")


if __name__ == "__main__":
    main()
