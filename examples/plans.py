"""How to spread DeepSeek-V3 over H200 nodes: plans by hand, what they exchange, the best one."""

from frontends import load_model
from hardware import load_platform
from opgraph import Plan, Workload, best_plans, simulate

model = load_model("deepseek-v3")
workload = Workload(batch=512, prompt=2048, output=256)

print("plan                     chips   TPOT ms  tokens/s/chip  GB/chip")
for name, nodes, plan in (
    ("tp8 ep8", 1, Plan(tp=8, ep=8)),
    ("attention dp, ep8", 1, Plan(ep=8)),
    ("attention dp, ep16", 2, Plan(ep=16)),
    ("attention dp, ep32", 4, Plan(ep=32)),
    ("ep64", 8, Plan(ep=64)),
    ("ep72, 32 copies", 9, Plan(ep=72, redundant_experts=32)),
    ("two stages of ep16", 4, Plan(ep=16, pp=2)),
):
    platform = load_platform(f"dgx-h200:{nodes}" if nodes > 1 else "dgx-h200")
    report = simulate(model, platform, plan, workload)
    print(
        f"{name:<24}{report.num_chips:6}{report.tpot * 1e3:10.2f}"
        f"{report.throughput_per_chip:15.0f}{report.memory.total / 1e9:9.1f}"
        + ("" if report.fits else "  does not fit")
    )

report = simulate(model, load_platform("dgx-h200:4"), Plan(ep=32), workload)
census = report.communication()
print("\nwhat a decode step of ep32 exchanges")
print(
    census[census["phase"] == "decode"][
        ["collective", "axes", "group_size", "bytes", "per_step", "time_us"]
    ].to_string(index=False)
)

search = best_plans(model, load_platform("dgx-h200:2"), workload, slo_tpot=0.03)
print(f"\nbest of {search.candidates} plans and batches on 16 chips at 30 ms per token:")
print(search.name_of(search.table.iloc[0]), "with batch", search.table.iloc[0]["batch"])
