"""The command line: reads words, calls the library, prints tables or JSON.

Exit codes: 0 an answer (that a model does not fit is one), 2 input that makes no sense.
"""

import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opgraph.console import (
    console_on,
    print_json,
    print_package,
    print_report,
    print_search,
    print_table,
    progress,
    read_csv,
    save_figure,
    save_plot,
    save_trace,
    write_csv,
)
from validation.cli import app as measuring

if TYPE_CHECKING:
    import pandas as pd

    from hardware import Platform
    from opgraph import Plan
    from opgraph.report import Report

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

BAD_INPUT = 2
_GIGA, _MILLI, _MICRO = 1e9, 1e3, 1e6


class Listing(StrEnum):
    """What can be listed."""

    models = "models"
    chips = "chips"
    platforms = "platforms"


class Phase(StrEnum):
    """The two kinds of step."""

    prefill = "prefill"
    decode = "decode"


def _whole(text: str | int) -> int:
    """A whole number; a message with the user's own word otherwise."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None


ModelName = Annotated[str, typer.Argument(help="a name of `opgraph list models`, or a config.json")]
PlatformName = Annotated[
    str, typer.Option("--platform", "-p", help="a name, a TOML file, or CHIP:N such as h100-sxm:8")
]
Degree = Annotated[int, typer.Option("--tp", parser=_whole, metavar="N", help="tensor parallelism")]
Copies = Annotated[
    int,
    typer.Option("--dp", parser=_whole, metavar="N", help="data parallelism: copies of the model"),
]
Stages = Annotated[int, typer.Option("--pp", parser=_whole, metavar="N", help="pipeline stages")]
ExpertChips = Annotated[
    int, typer.Option("--ep", parser=_whole, metavar="N", help="chips that experts are split over")
]
ContextChips = Annotated[
    int, typer.Option("--cp", parser=_whole, metavar="N", help="context parallelism")
]
AttentionCopies = Annotated[
    int | None,
    typer.Option(
        "--attention-dp",
        parser=_whole,
        metavar="N",
        help="copies of attention within a stage; as many as --ep needs if not given",
    ),
]
SequenceParallel = Annotated[
    bool, typer.Option("--sp/--no-sp", help="sequence parallelism among the --tp chips")
]
Microbatches = Annotated[
    int | None,
    typer.Option(parser=_whole, metavar="N", help="parts of the batch; --pp if not given"),
]
Interleave = Annotated[
    int, typer.Option(parser=_whole, metavar="N", help="pieces of the model on each stage")
]
Redundant = Annotated[
    int,
    typer.Option(
        "--redundant-experts", parser=_whole, metavar="N", help="copies of popular experts"
    ),
]
Overlap = Annotated[
    str, typer.Option(help="transfers under what is computed beside them: two-batch or chunked")
]
Chunks = Annotated[int, typer.Option(parser=_whole, metavar="N", help="parts of a chunked product")]
Order = Annotated[
    str | None,
    typer.Option(help="axes from neighbouring chips outwards: tp,cp,attention_dp,pp,dp"),
]
Layers = Annotated[str | None, typer.Option(help="layers of each stage: 20,20,20,20")]
Batch = Annotated[
    int, typer.Option("--batch", "-b", parser=_whole, metavar="N", help="sequences in flight")
]
Prompt = Annotated[
    int, typer.Option("--prompt", parser=_whole, metavar="N", help="tokens of each prompt")
]
Output = Annotated[
    int, typer.Option("--output", parser=_whole, metavar="N", help="tokens generated for each")
]
Weights = Annotated[
    str | None, typer.Option(help="format of the weights: fp8, int4-g128, nvfp4, fp8/bf16 …")
]
KVCache = Annotated[str | None, typer.Option("--kv-cache", help="format of the KV cache: fp8 …")]
Images = Annotated[
    int, typer.Option("--images", parser=_whole, metavar="N", help="images in each prompt")
]
Skew = Annotated[float, typer.Option(help="Zipf exponent of the experts' popularity")]
Absorb = Annotated[
    bool | None, typer.Option(help="latent attention in the latent space; where it pays if unset")
]
LoraRank = Annotated[
    int, typer.Option(parser=_whole, metavar="N", help="rank of adapters applied at run time")
]
LoraCount = Annotated[int, typer.Option(parser=_whole, metavar="N", help="adapters in memory")]
KVKept = Annotated[float, typer.Option(help="share of cached positions that is kept")]
Window = Annotated[
    int, typer.Option(parser=_whole, metavar="N", help="tokens that full attention looks back")
]
Cost = Annotated[
    str, typer.Option("--cost", help="the cost model: ideal, calibrated, tiled or corrected")
]
ReserveShare = Annotated[
    float, typer.Option("--reserve", help="share of the chip's memory that is left alone")
]
OffloadWeights = Annotated[
    float, typer.Option("--offload-weights", help="share of the weights in a farther tier")
]
OffloadKV = Annotated[
    float, typer.Option("--offload-kv", help="share of the KV cache in a farther tier")
]
TierName = Annotated[str, typer.Option("--tier", help="that tier; the platform's nearest if unset")]
HostStep = Annotated[float, typer.Option(help="µs that the host takes before each step")]
HostOperator = Annotated[float, typer.Option(help="least µs of an operator launched by the host")]
Plot = Annotated[Path | None, typer.Option(help="write a picture as PNG, SVG or PDF")]
PriceOf = Annotated[str | None, typer.Option(help="$ per chip-hour, or: list, ownership")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON and nothing else")]


@app.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    """Simulate LLM inference on multi-chip platforms, operator by operator."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def simulate(
    model: ModelName,
    platform: PlatformName,
    tp: Degree = 1,
    pp: Stages = 1,
    ep: ExpertChips = 1,
    dp: Copies = 1,
    cp: ContextChips = 1,
    attention_dp: AttentionCopies = None,
    sp: SequenceParallel = False,
    microbatches: Microbatches = None,
    interleave: Interleave = 1,
    layers: Layers = None,
    redundant_experts: Redundant = 0,
    overlap: Overlap = "",
    chunks: Chunks = 4,
    order: Order = None,
    batch: Batch = 1,
    prompt: Prompt = 2048,
    output: Output = 256,
    images: Images = 0,
    skew: Skew = 0.0,
    weights: Weights = None,
    kv_cache: KVCache = None,
    absorb: Absorb = None,
    lora_rank: LoraRank = 0,
    lora_count: LoraCount = 1,
    kv_kept: KVKept = 1.0,
    window: Window = 0,
    host_step_us: HostStep = 0.0,
    host_operator_us: HostOperator = 0.0,
    reserve: ReserveShare = 0.0,
    offload_weights: OffloadWeights = 0.0,
    offload_kv: OffloadKV = 0.0,
    tier: TierName = "",
    cost: Cost = "ideal",
    communication: Annotated[
        bool, typer.Option("--communication", help="also what the chips send each other")
    ] = False,
    price: PriceOf = None,
    as_json: AsJson = False,
    plot: Plot = None,
    trace: Annotated[
        Path | None, typer.Option(help="write both steps as .json or .json.gz")
    ] = None,
) -> None:
    """Latency, throughput and memory of a model on a platform, and what limits them."""
    report = _report(locals())
    if price is not None:
        from hardware.price import read_price

        report = replace(report, price=read_price(price, report.point.platform.chip))
    if plot:
        save_plot(report.decode, plot)
    if trace:
        save_trace([report.prefill, report.decode], trace)
    messages: list[Any] = report.communication().to_dict("records") if communication else []
    if as_json:
        print_json(report.to_dict() | ({"communication": messages} if communication else {}))
    else:
        print_report(report)
        if messages:
            print_table("communication", messages)


@app.command("trace")
def write_trace(
    model: ModelName,
    platform: PlatformName,
    out: Annotated[Path, typer.Option("--out", "-o", help="a .json or .json.gz file")],
    phase: Annotated[Phase | None, typer.Option(help="one phase only")] = None,
    tp: Degree = 1,
    pp: Stages = 1,
    ep: ExpertChips = 1,
    dp: Copies = 1,
    cp: ContextChips = 1,
    attention_dp: AttentionCopies = None,
    sp: SequenceParallel = False,
    microbatches: Microbatches = None,
    interleave: Interleave = 1,
    layers: Layers = None,
    redundant_experts: Redundant = 0,
    overlap: Overlap = "",
    chunks: Chunks = 4,
    order: Order = None,
    batch: Batch = 1,
    prompt: Prompt = 2048,
    output: Output = 256,
    images: Images = 0,
    skew: Skew = 0.0,
    weights: Weights = None,
    kv_cache: KVCache = None,
    absorb: Absorb = None,
    lora_rank: LoraRank = 0,
    lora_count: LoraCount = 1,
    kv_kept: KVKept = 1.0,
    window: Window = 0,
    host_step_us: HostStep = 0.0,
    host_operator_us: HostOperator = 0.0,
    reserve: ReserveShare = 0.0,
    offload_weights: OffloadWeights = 0.0,
    offload_kv: OffloadKV = 0.0,
    tier: TierName = "",
    cost: Cost = "ideal",
) -> None:
    """Write the timeline of a step as a Chrome trace, to open in Perfetto beside a measured one."""
    report = _report(locals())
    timelines = [report.prefill, report.decode]
    save_trace([t for t in timelines if phase is None or t.name == phase.value], out)
    print(f"{out}: open it at ui.perfetto.dev")


@app.command("list")
def list_names(what: Listing, as_json: AsJson = False) -> None:
    """What is in the catalogue: models, chips or platforms."""
    rows = {"models": _model_rows, "chips": _chip_rows, "platforms": _platform_rows}[what.value]()
    if as_json:
        print_json(rows)
    else:
        print_table(what.value, [{k: v for k, v in row.items() if k != "source"} for row in rows])


@app.command()
def reproduce(
    paper: Annotated[str, typer.Argument(help="a paper whose tables are recomputed")],
    as_json: AsJson = False,
) -> None:
    """Recompute a paper's published figures and print them beside ours."""
    from validation.papers import reproduce

    rows = [row.to_dict() for row in reproduce(paper)]
    if as_json:
        print_json({"rows": rows})
    else:
        shown = [{**row, **_verdict(row["difference"], row["passes"])} for row in rows]
        print_table(paper, shown)


def _verdict(difference: float | None, passes: bool) -> dict[str, str]:
    """The last two cells of a paper's row; a prediction has nothing to differ from."""
    if difference is None:
        return {"difference": "–", "passes": "–"}
    return {"difference": f"{difference:+.2%}", "passes": "yes" if passes else "NO"}


@app.command("plan")
def find_plans(
    model: ModelName,
    platform: PlatformName,
    prompt: Prompt = 2048,
    output: Output = 256,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            "-b",
            parser=_whole,
            metavar="N",
            help="the only batch to try; powers of two up to what fits if not given",
        ),
    ] = None,
    slo_ttft: Annotated[
        float | None, typer.Option(metavar="MS", help="longest time to first token, in ms")
    ] = None,
    slo_tpot: Annotated[
        float | None, typer.Option(metavar="MS", help="longest time per output token, in ms")
    ] = None,
    objective: Annotated[
        str, typer.Option(help="what is made best: throughput (per chip), tpot or ttft")
    ] = "throughput",
    top: Annotated[int, typer.Option(parser=_whole, metavar="N", help="rows to print")] = 10,
    sp: SequenceParallel = False,
    cp: Annotated[bool, typer.Option("--cp/--no-cp", help="try context parallelism too")] = False,
    weights: Weights = None,
    kv_cache: KVCache = None,
    skew: Skew = 0.0,
    reserve: ReserveShare = 0.0,
    cost: Cost = "ideal",
    plot: Annotated[
        Path | None, typer.Option(help="write the Pareto front as PNG, SVG, PDF")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rank every plan that uses all chips, at batches up to what fits; the Pareto front too."""
    from frontends import load_model
    from hardware import load_platform
    from opgraph import Plan, Reserve, Workload, best_plans, plots

    axes = ("tp", "pp", "cp", "attention_dp", "dp") if cp else ("tp", "pp", "attention_dp", "dp")
    with progress("pricing plans") as track:
        search = best_plans(
            load_model(model, weights=weights, kv_cache=kv_cache),
            load_platform(platform),
            Workload(prompt=prompt, output=output, skew=skew),
            slo_ttft=float("inf") if slo_ttft is None else slo_ttft / _MILLI,
            slo_tpot=float("inf") if slo_tpot is None else slo_tpot / _MILLI,
            objective=objective,
            batch=batch,
            plan=Plan(sp=sp),
            axes=axes,
            reserve=Reserve(share=reserve),
            cost=cost,
            track=track,
        )
    if plot:
        save_figure(lambda ax: plots.pareto(search, ax), plot)
    if as_json:
        print_json(search.to_dict())
    else:
        print_search(search, f"{model} on {platform}", top)


OpChoice = Annotated[list[str] | None, typer.Option("--op", help="a class only: gemm, moe …")]
ChipChoice = Annotated[list[str] | None, typer.Option("--chip", help="a measured chip only")]


@app.command()
def calibrate(
    chip: ChipChoice = None,
    op: OpChoice = None,
    table: Annotated[
        Path | None, typer.Option(help="CSV of your own measurements, of one --chip and one --op")
    ] = None,
    dtype: Annotated[str, typer.Option(help="number format of that table")] = "bf16",
    out: Annotated[
        Path | None, typer.Option(help="folder to write to; the catalogue's if not given")
    ] = None,
) -> None:
    """Fit the kernels' parameters to measured tables and write one TOML per chip."""
    from hardware import SpecError
    from validation.assess import calibrate, calibrate_own
    from validation.chips import MEASURED
    from validation.classes import CLASSES
    from validation.extras import one_of
    from validation.files import CALIBRATION, EVIDENCE

    ops, folder = one_of(CLASSES, op or (), "class"), out or CALIBRATION
    if table is not None:
        if chip is None or op is None or len(chip) + len(op) != 2:
            raise SpecError("--table is of one chip and one class: give one --chip and one --op")
        rows = calibrate_own(chip[0], op[0], dtype, table, out=folder)
    else:
        chips = one_of(MEASURED, chip or (), "chip")
        proofs = EVIDENCE if out is None else out / "fits"
        with progress("fitting") as track:
            rows = calibrate(ops, chips, out=folder, proofs=proofs, track=track)
    _print_errors(rows)
    print(f"written to {folder}")


@app.command()
def validate(
    op: OpChoice = None,
    chip: ChipChoice = None,
    markdown: Annotated[
        Path | None, typer.Option(help="write the report, its plots in a folder beside it")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compute the errors of the cost model on measured kernels that it was not fitted on."""
    from validation.accuracy import recompute, table_of
    from validation.chips import MEASURED
    from validation.classes import CLASSES
    from validation.extras import one_of
    from validation.report import save_report

    ops = one_of(CLASSES, op or (), "class")
    chips = one_of(MEASURED, chip or (), "chip")
    with progress("computing") as track:
        checked = recompute(ops, chips, track=track)
    if markdown is not None:
        save_report(markdown, checked)
    table = table_of(checked)
    if as_json:
        rows = table.astype(object).where(table.notna(), None).to_dict("records")
        print_json({"rows": rows})
    else:
        _print_errors(table)


@app.command("op", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def price_operator(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(help="gemm, attention, mla, moe, norm, all_reduce …")],
    chip: Annotated[str | None, typer.Option(help="a name of `opgraph list chips`")] = None,
    platform: Annotated[
        str | None, typer.Option("--platform", "-p", help="for collectives")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="CSV of shapes instead of one")] = None,
    out: Annotated[
        Path | None, typer.Option(help="CSV to write; standard output if not given")
    ] = None,
    cost: Cost = "ideal",
    as_json: AsJson = False,
) -> None:
    """Price one operator, or a table of shapes.

    The shape is given by further options, such as `opgraph op gemm --chip h100-sxm --dtype bf16
    --m 4096 --n 8192 --k 8192`; a wrong one is answered with the right ones.
    """
    from hardware import SpecError
    from opgraph.cost import cost_model
    from opgraph.shapes import price

    where = _one_platform(chip, platform)
    given = _pairs(context.args)
    if table and given:
        raise SpecError(f"--table gives the shapes: leave out --{next(iter(given))}")
    columns = read_csv(table) if table else {name: [value] for name, value in given.items()}
    count = len(next(iter(columns.values()), ()))
    places = [f"{table} line {line}" for line in range(2, count + 2)] if table else []
    answer = price(kind, columns, where, cost_model(cost), places=places)
    told = {**columns, **answer} if table else answer
    if as_json:
        rows = [dict(zip(told, row, strict=True)) for row in zip(*told.values(), strict=True)]
        print_json(rows if table else rows[0])
    elif table:
        write_csv(out, told)
    else:
        row = {name: values[0] for name, values in answer.items()}
        print_table(f"{kind} on {where.name}", [row])


@app.command("package")
def show_package(
    spec: Annotated[str, typer.Argument(help="a TOML file, as examples/package.toml")],
    interposer: Annotated[str | None, typer.Option(help="another: silicon, organic, glass")] = None,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """Temperatures, slowdown, links and bow of chiplets on an interposer."""
    from hardware import load_package

    package = load_package(spec, interposer)
    if plot:
        from opgraph.plots import temperatures

        save_figure(lambda ax: temperatures(package, ax), plot, (8, 6))
    if as_json:
        print_json(package.to_dict())
    else:
        print_package(package)


app.add_typer(measuring)


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except _UsageError as error:
        code = _complain(f"{error.format_message()} (see opgraph --help)")
    except (ValueError, OSError) as error:
        code = _complain(str(error))
    except typer.Abort:
        code = 1
    except BrokenPipeError:
        sys.stderr.close()
        code = 1
    sys.exit(code)


# the class of all complaints about options, wherever the library keeps it
_UsageError: Any = typer.BadParameter.__mro__[1]


def _complain(message: str) -> int:
    print(f"opgraph: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT


def _report(options: dict[str, Any]) -> "Report":
    """The report that the options of `simulate` and `trace` ask for."""
    from frontends import Lora, Variant, load_model
    from hardware import load_platform
    from opgraph import Host, Offload, Reserve, Workload, simulate

    def some(*names: str) -> dict[str, Any]:
        return {name: options[name] for name in names}

    rank = options["lora_rank"]
    lora = Lora(rank=rank, count=options["lora_count"]) if rank else None
    variant = Variant(lora=lora, **some("kv_kept", "window"))
    model = load_model(options["model"], **some("weights", "kv_cache", "absorb"), variant=variant)
    return simulate(
        model,
        load_platform(options["platform"]),
        _plan(options),
        Workload(**some("batch", "prompt", "output", "images", "skew")),
        cost=options["cost"],
        host=Host(
            per_step=options["host_step_us"] / _MICRO,
            per_operator=options["host_operator_us"] / _MICRO,
        ),
        reserve=Reserve(share=options["reserve"]),
        offload=Offload(
            weights=options["offload_weights"],
            kv_cache=options["offload_kv"],
            tier=options["tier"],
        ),
    )


def _plan(options: dict[str, Any]) -> "Plan":
    """The plan that the options ask for."""
    from opgraph import Plan

    names = ("tp", "pp", "ep", "dp", "cp", "attention_dp", "sp", "microbatches", "interleave",
             "redundant_experts", "overlap", "chunks")  # fmt: skip
    chosen = {name: options[name] for name in names}
    if options["order"]:
        chosen["order"] = tuple(options["order"].split(","))
    if options["layers"]:
        chosen["layers"] = tuple(_whole(word) for word in options["layers"].split(","))
    return Plan(**chosen)


def _print_errors(table: "pd.DataFrame") -> None:
    """The errors of `validate` and `calibrate` in few lines."""
    from hardware import SpecError
    from validation.summary import summary

    if not len(table):
        raise SpecError("nothing was measured of that class on that chip")
    print_table("geomean error in percent, median of chips and formats", summary(table))


def _one_platform(chip: str | None, platform: str | None) -> "Platform":
    from hardware import SpecError, load_platform

    if (chip is None) == (platform is None):
        raise SpecError("say where: --chip h100-sxm, or --platform dgx-h100 for a collective")
    return load_platform(platform if platform is not None else f"{chip}:1")


def _pairs(words: list[str]) -> dict[str, str]:
    """Options that are not declared: ``--m 4096`` or ``--m=4096``."""
    from hardware import SpecError

    pairs: dict[str, str] = {}
    words = [part for word in words for part in word.split("=", 1)]
    if len(words) % 2:
        raise SpecError(f"{words[-1]} has no value: a shape is given as --m 4096 --n 8192")
    for name, value in zip(words[::2], words[1::2], strict=True):
        if not name.startswith("--"):
            raise SpecError(f"{name!r} is not expected here: a shape is given as --m 4096")
        pairs[name[2:].replace("-", "_")] = value
    return pairs


def _model_rows() -> list[dict[str, Any]]:
    from rich.progress import track

    from frontends import list_models, load_model

    # a catalogue takes over a second to build: show that it moves, on a terminal only
    names = track(list_models(), "reading models", console=console_on(sys.stderr), transient=True)
    models = {name: load_model(name) for name in names}
    return [
        {
            "name": name,
            "family": model.family,
            "num_parameters": model.num_parameters,
            "num_active_parameters": model.num_active_parameters,
            "kv_bytes_per_token": model.kv_bytes_per_token,
            "attention": model.attention,
        }
        for name, model in models.items()
    ]


def _chip_rows() -> list[dict[str, Any]]:
    from hardware import list_chips, load_chip

    return [
        {
            "name": chip.name,
            "bf16_TFLOP_per_s": float(chip.peak("bf16")) / 1e12,
            "fp8_TFLOP_per_s": float(chip.peak("fp8")) / 1e12,
            "memory_GB": float(chip.memory_capacity) / _GIGA,
            "bandwidth_GB_per_s": float(chip.memory_bandwidth) / _GIGA,
            "power_W": chip.power,
            "source": chip.source,
        }
        for chip in map(load_chip, list_chips())
    ]


def _platform_rows() -> list[dict[str, Any]]:
    from hardware import list_platforms, load_platform

    return [
        {
            "name": platform.name,
            "chip": platform.chip.name,
            "num_chips": platform.num_chips,
            "levels": " · ".join(
                f"{level.name} {level.size} {level.topology} "
                f"{float(level.link.bandwidth) / _GIGA:g} GB/s"
                for level in platform.levels
            ),
            "source": platform.source,
        }
        for platform in map(load_platform, list_platforms())
    ]
