"""What does a token take in joules and dollars, on three chips? And does the package stay cool?"""

import dataclasses

import numpy as np

from frontends import load_model
from hardware import load_package, load_platform, slowed
from opgraph import Plan, Workload, simulate

model = load_model("llama-3.1-70b", weights="fp8", kv_cache="fp8")
batch = np.array([1, 8, 32, 128])
work = Workload(batch=batch, prompt=1024, output=256)

print("batch            " + "".join(f"{size:>18}" for size in batch))
for name in ("dgx-h100", "dgx-h200", "dgx-b200"):
    report = simulate(model, load_platform(name), Plan(tp=8), work, cost="corrected")
    columns = (report.energy_per_token, report.dollars_per_million_tokens)
    cells = [
        f"{joules:6.2f} J {dollars:6.2f} $/M" for joules, dollars in zip(*columns, strict=True)
    ]
    print(f"{name:17}" + "".join(f"{cell:>18}" for cell in cells))
    power = "".join(f"{watts:>16.0f} W" for watts in report.decode_energy.power)
    print(f"  decode, a chip {power}")

# a package of two dies of 500 W: on which carrier, and at which clock is it cool enough?
package = load_package("examples/package.toml")
platform = load_platform("dgx-b200")
carriers = {
    "silicon": package,  # 0.1 mm of silicon on a laminate
    "glass": dataclasses.replace(package, interposer="glass", thickness=0.8e-3, below=()),
    "organic": dataclasses.replace(package, interposer="organic", thickness=1.6e-3, below=()),
}
print("\ncarrier  hottest  clock  die to die     bow  interposer  TTFT at that clock")
for carrier, built in carriers.items():
    chip = slowed(platform.chip, built.heat.slowdown)
    warm = simulate(model, dataclasses.replace(platform, chip=chip), Plan(tp=8), Workload(batch=32))
    print(
        f"{carrier:8} {max(built.heat.hottest.values()):5.1f}°C {built.heat.slowdown:6.1%}"
        f"  {built.links[0].bandwidth / 1e12:5.1f} TB/s {built.bow * 1e6:5.0f} µm"
        f"  {built.interposer_cost:8.0f} $  {warm.ttft * 1e3:6.0f} ms"
    )
