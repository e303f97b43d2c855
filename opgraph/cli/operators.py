"""The command that prices operators, one or a table of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opgraph.cli.options import (
    AsJson,
    Cost,
)
from opgraph.console import (
    print_json,
    print_table,
    read_csv,
    write_csv,
)

if TYPE_CHECKING:
    from hardware import Platform

app = typer.Typer()


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
        column = name[2:].replace("-", "_")
        if column in pairs:
            raise SpecError(f"{name} is given twice")
        pairs[column] = value
    return pairs
