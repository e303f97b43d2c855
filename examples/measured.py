"""How far is the prediction from a measured decode step, and which operators make that?"""

from pathlib import Path

from frontends.traces import load_trace
from hardware import load_platform
from validation.compare import compare
from validation.replay import predict, step_of

TRACES = Path(__file__).parents[1] / "validation" / "traces"

# PyTorch's own trace of two decoder layers on one core, and the chip file of that core
measured = load_trace(TRACES / "qwen3-1.7b-2layers-decode-8x1024.json.gz")
platform = load_platform(str(TRACES / "epyc-zen5-core.toml"))

print(
    f"{len(measured.events)} operators in {measured.time * 1e3:.1f} ms on {measured.source['name']}"
)
for cost in ("ideal", "corrected"):
    found = compare(measured, predict(step_of(measured.source), platform, cost=cost))
    print(f"\n{cost}: predicted over measured step {1 + found.error:.2f}")
    for row in found.classes()[:3]:
        measured_ms, predicted_ms = row["measured_us"] / 1e3, row["predicted_us"] / 1e3
        print(
            f"  {row['class']:18} measured {measured_ms:5.1f} ms  predicted {predicted_ms:5.1f} ms"
        )
