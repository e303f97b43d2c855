"""Which tensor parallelism serves Llama-3.1-70B best on a DGX H100, and what limits it?"""

from frontends import load_model
from hardware import load_platform
from opgraph import Plan, Workload, simulate

model = load_model("llama-3.1-70b")
platform = load_platform("dgx-h100")

print("tp    TTFT ms  TPOT ms  tokens/s/chip  memory")
for tp in (1, 2, 4, 8):
    report = simulate(model, platform, Plan(tp=tp), Workload(batch=16, prompt=2048, output=256))
    print(
        f"{tp:2}  {report.ttft * 1e3:9.1f}  {report.tpot * 1e3:7.2f}  "
        f"{report.throughput_per_chip:13.1f}  {report.verdict}"
    )
