"""Does it pay to overlap DeepSeek-V3's transfers with its computing, and Llama-3.1-70B's?"""

from frontends import load_model
from hardware import load_platform
from opgraph import Plan, Workload, simulate

CASES = (
    ("deepseek-v3", "dgx-h200:4", {"ep": 32}, Workload(batch=4096, prompt=1024, output=256)),
    ("llama-3.1-70b", "dgx-h100", {"tp": 8}, Workload(batch=64, prompt=2048, output=256)),
)

print("model          overlap     prefill ms  exposed ms  decode ms  exposed ms")
for name, platform, plan, workload in CASES:
    for overlap in ("", "two-batch", "chunked"):
        report = simulate(
            load_model(name), load_platform(platform), Plan(**plan, overlap=overlap), workload
        )
        prefill, decode = report.prefill, report.decode
        print(
            f"{name:13}  {overlap or 'none':10}  {prefill.time * 1e3:10.0f}"
            f"  {prefill.exposed * 1e3:10.1f}  {decode.time * 1e3:9.2f}"
            f"  {decode.exposed * 1e3:10.2f}"
        )
