"""Commands about how right it is: papers, fits and errors."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opgraph.cli.options import (
    AsJson,
)
from opgraph.console import (
    print_json,
    print_table,
    progress,
)

if TYPE_CHECKING:
    import pandas as pd


app = typer.Typer()


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


def _print_errors(table: "pd.DataFrame") -> None:
    """The errors of `validate` and `calibrate` in few lines."""
    from hardware import SpecError
    from validation.summary import summary

    if not len(table):
        raise SpecError("nothing was measured of that class on that chip")
    print_table("geomean error in percent, median of chips and formats", summary(table))
