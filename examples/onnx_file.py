"""A file of onnxruntime-genai: its operators, weights of 4 bits; on one chip and on four."""

from frontends import from_onnx
from hardware import load_platform
from opgraph import Plan, Workload, simulate

model = from_onnx("tests/data/onnx/genai-llama-int4.onnx")
print(f"{model.num_parameters:,} parameters, attention {model.attention}")
print(next(str(t) for t, _ in model.weights if "o_proj" in t.name))

for tp in (1, 4):
    report = simulate(model, load_platform("dgx-h100"), Plan(tp=tp), Workload(batch=8, prompt=512))
    print(f"tp={tp}  TTFT {report.ttft * 1e6:6.1f} µs  TPOT {report.tpot * 1e6:5.1f} µs")
