"""The part of the command line that measures, and sets measurements beside predictions."""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opgraph.console import (
    print_json,
    print_table,
    replacing,
    save_figure,
    write_csv,
)

if TYPE_CHECKING:
    from hardware import Platform
    from opgraph import Timeline
    from validation.capture import Step
    from validation.compare import Comparison

app = typer.Typer()
_MICRO = 1e6
_PLOT_SIZE = (11, 3.2)  # inches


class Device(StrEnum):
    """Where it is measured."""

    cpu = "cpu"
    cuda = "cuda"


class Phase(StrEnum):
    """The two kinds of step."""

    prefill = "prefill"
    decode = "decode"


Where = Annotated[Device, typer.Option(help="the processor, or the first NVIDIA GPU")]
Threads = Annotated[int, typer.Option(min=1, help="threads of the processor that compute")]
Model = Annotated[str | None, typer.Argument(help="a name of `opgraph list models`")]
StepPhase = Annotated[Phase | None, typer.Option(help="prefill or decode")]
Batch = Annotated[int | None, typer.Option("--batch", "-b", min=1, help="sequences")]
Tokens = Annotated[int | None, typer.Option(min=1, help="of each prompt, or of the whole context")]
Layers = Annotated[int | None, typer.Option(min=1, help="layers in place of the model's own")]
Vocab = Annotated[int | None, typer.Option(min=1, help="vocabulary in place of the model's own")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON and nothing else")]


@app.command("measure-chip")
def measure_chip(
    out: Annotated[Path, typer.Option("--out", "-o", help="the chip's TOML file")],
    device: Where = Device.cpu,
    threads: Threads = 1,
) -> None:
    """Measure what this machine reaches, and write it as a chip's TOML."""
    from hardware.specs import check_name
    from validation.chipmeter import measure_chip

    name = check_name(out.name.removesuffix(".toml"))
    with replacing(out) as temporary:
        chip = measure_chip(device.value, threads)
        temporary.write_text(chip.toml(name), encoding="utf-8")
    rates = {f"{dtype}_GFLOP_per_s": rate / 1e9 for dtype, rate in chip.matrix.items()}
    rates["fp32_GFLOP_per_s"] = chip.vector / 1e9
    moved = {"bandwidth_GB_per_s": chip.bandwidth / 1e9, "launch_us": chip.launch * _MICRO}
    print_table(f"{chip.machine.name}, written to {out}", [{"chip": name, **rates, **moved}])


@app.command("measure-kernels")
def measure_kernels(
    kernel: Annotated[str, typer.Argument(help="a table: gemm, attention_decode, norm …")],
    out: Annotated[Path, typer.Option("--out", "-o", help="the CSV to write")],
    device: Where = Device.cpu,
    threads: Threads = 1,
) -> None:
    """Time a kernel over a grid of shapes: a table for `opgraph calibrate --table`."""
    from hardware import SpecError
    from hardware.errors import nearest
    from validation.machine import this_machine
    from validation.microbenchmarks import EFFORTS, KERNELS
    from validation.stopwatch import Stopwatch

    if kernel not in KERNELS:
        raise SpecError(f"no kernel {kernel!r}{nearest(kernel, KERNELS)}")
    this_machine(device.value, threads)
    timed = KERNELS[kernel].rows(Stopwatch(device.value), EFFORTS[device.value])
    rows = list(timed)
    write_csv(out, {name: [row[name] for row in rows] for name in rows[0]})
    print(f"{len(rows)} shapes, written to {out}")


@app.command()
def capture(
    model: Annotated[str, typer.Argument(help="a name of `opgraph list models`, or an ONNX file")],
    out: Annotated[Path, typer.Option("--out", "-o", help="the folder for the trace")],
    phase: Annotated[Phase, typer.Option(help="prefill or decode")] = Phase.prefill,
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, help="sequences")] = 1,
    tokens: Annotated[int, typer.Option(min=1, help="of each prompt, or of the context")] = 512,
    layers: Layers = None,
    vocab: Vocab = None,
    device: Where = Device.cpu,
    threads: Threads = 1,
    repeats: Annotated[int, typer.Option(min=1, help="steps that are timed")] = 7,
    size: Annotated[
        list[str] | None, typer.Option(metavar="NAME=N", help="of an ONNX file's inputs")
    ] = None,
) -> None:
    """Run a step of a model with random weights under PyTorch's profiler; write its trace.

    Of an .onnx file, run it by ONNX Runtime with random inputs and write its profile.
    """
    from hardware import SpecError
    from validation.capture import Step, capture
    from validation.sessions import capture_onnx, read_sizes

    if not out.is_dir():
        raise SpecError(f"--out {out}: there is no such folder")
    if model.endswith(".onnx"):
        path = Path(model)
        print(capture_onnx(path, out, read_sizes(size or ()), threads=threads, repeats=repeats))
        return
    step = Step(model=model, phase=phase.value, batch=batch, tokens=tokens,
                layers=layers or 0, vocab=vocab or 0)  # fmt: skip
    print(capture(step, out, device=device.value, threads=threads, repeats=repeats))


@app.command()
def compare(
    trace: Annotated[Path, typer.Argument(help="of PyTorch's profiler or of ONNX Runtime")],
    model: Model = None,
    platform: Annotated[
        str, typer.Option("--platform", "-p", help="a name, a TOML file, or CHIP:1")
    ] = "",
    step: Annotated[str | None, typer.Option(help="of the trace, where it has several")] = None,
    phase: StepPhase = None,
    batch: Batch = None,
    tokens: Tokens = None,
    layers: Layers = None,
    vocab: Vocab = None,
    cost: Annotated[str, typer.Option(help="ideal, calibrated, tiled or corrected")] = "ideal",
    host_step_us: Annotated[float, typer.Option(help="µs of the host before the step")] = 0.0,
    host_operator_us: Annotated[float, typer.Option(help="least µs of an operator")] = 0.0,
    operators: Annotated[bool, typer.Option("--operators", help="every operator, too")] = False,
    plot: Annotated[Path | None, typer.Option(help="both timelines as PNG, SVG, PDF")] = None,
    out: Annotated[Path | None, typer.Option(help="both as one Chrome trace")] = None,
    as_json: AsJson = False,
) -> None:
    """Set a measured step beside the prediction of the same step, operator by operator.

    What ran need not be told of a trace that `opgraph capture` made; what is told replaces it.
    """
    from frontends.traces import load_trace
    from hardware import load_platform
    from opgraph import Host
    from validation.compare import compare
    from validation.replay import predict

    measured = load_trace(trace, step)
    told = {"model": model, "phase": phase and phase.value, "batch": batch, "tokens": tokens,
            "layers": layers, "vocab": vocab}  # fmt: skip
    ran = _ran(measured, {key: value for key, value in told.items() if value is not None})
    host = Host(per_step=host_step_us / _MICRO, per_operator=host_operator_us / _MICRO)
    where: Platform = load_platform(_named(platform))
    found = compare(measured, predict(ran, where, cost=cost, host=host))
    if plot:
        save_figure(found.plot, plot, _PLOT_SIZE)
    if out:
        found.save_trace(out)
    _print(found, operators=operators, as_json=as_json)


def _named(platform: str) -> str:
    from hardware import SpecError

    if not platform:
        raise SpecError("say on what the step is predicted: --platform h200-sxm:1, or a TOML file")
    return platform


def _ran(measured: "Timeline", told: dict[str, Any]) -> "Step":
    """What ran: as the trace says, but for what the user told."""
    from hardware import SpecError
    from validation.capture import Step
    from validation.replay import step_of

    if {"model", "phase", "tokens"} <= set(told):
        return Step(**told)
    try:
        return replace(step_of(measured.source), **told)
    except SpecError:
        missing = [name for name in ("model", "phase", "tokens") if name not in told]
        raise SpecError(
            "the trace does not say what ran: give " + ", ".join(_OPTION[name] for name in missing)
        ) from None


_OPTION = {"model": "the MODEL", "phase": "--phase", "tokens": "--tokens"}


def _print(found: "Comparison", *, operators: bool, as_json: bool) -> None:
    classes, frame = found.classes(), found.to_frame()
    known = frame.astype(object).where(frame.notna(), None)
    rows = [{str(key): value for key, value in row.items()} for row in known.to_dict("records")]
    if as_json:
        print_json({"classes": classes, "rows": rows})
        return
    if operators:
        print_table("operators", [_readable(row) for row in rows])
    title = f"{found.measured.name}: measured {found.measured.source.get('steps', '')} steps"
    print_table(title, [_readable(row) for row in classes])


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    percent = {key: f"{row[key]:+.1%}" if key == "error" else f"{row[key]:.1%}"
               for key in ("error", "share") if row.get(key) is not None}  # fmt: skip
    micro = {key: round(row[key], 1) for key in ("measured_us", "predicted_us")}
    return row | percent | micro


@app.command("validate-traces")
def validate_traces(
    markdown: Annotated[Path | None, typer.Option(help="write the report")] = None,
    as_json: AsJson = False,
) -> None:
    """Compute the errors of the prediction on the captured steps that come with the project."""
    from validation.captured import captured, report, steps, summary

    found = captured()
    if markdown is not None:
        with replacing(markdown) as temporary:
            temporary.write_text(report(found), encoding="utf-8")
    levels, every = (
        [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
        for table in (summary(found), steps(found))
    )
    if as_json:
        print_json({"summary": levels, "rows": every})
    else:
        print_table("error of captured steps in percent", levels)
