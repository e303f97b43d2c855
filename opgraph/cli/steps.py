"""Commands about whole models: simulate, trace, plan."""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opgraph.cli.options import (
    AsJson,
    Cost,
    KVCache,
    ModelName,
    Output,
    PlatformName,
    Plot,
    PriceOf,
    Prompt,
    ReserveShare,
    SequenceParallel,
    Skew,
    Weights,
    of_a_report,
    whole,
)
from opgraph.console import (
    print_json,
    print_report,
    print_search,
    print_table,
    progress,
    save_figure,
    save_plot,
    save_trace,
)

if TYPE_CHECKING:
    from opgraph.report import Report

_MILLI = 1e3
app = typer.Typer()


class Phase(StrEnum):
    """The two kinds of step."""

    prefill = "prefill"
    decode = "decode"


@app.command()
@of_a_report
def simulate(
    report: "Report",
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
@of_a_report
def write_trace(
    report: "Report",
    out: Annotated[Path, typer.Option("--out", "-o", help="a .json or .json.gz file")],
    phase: Annotated[Phase | None, typer.Option(help="one phase only")] = None,
) -> None:
    """Write the timeline of a step as a Chrome trace, to open in Perfetto beside a measured one."""
    timelines = [report.prefill, report.decode]
    save_trace([t for t in timelines if phase is None or t.name == phase.value], out)
    print(f"{out}: open it at ui.perfetto.dev")


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
            parser=whole,
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
    top: Annotated[int, typer.Option(parser=whole, metavar="N", help="rows to print")] = 10,
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
    from opgraph.counts import as_count

    as_count("--top", top, of=" of rows")
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
