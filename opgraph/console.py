"""What the command line writes: tables and JSON to a terminal, tables, plots and traces to files.

Files are written under a temporary name beside their place and moved into it when complete.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from rich.console import Console

    from hardware import Package
    from opgraph.explore import Search
    from opgraph.report import Report
    from opgraph.timeline import Timeline

_MILLI = 1e3
_PLOT_SIZE = (10, 3)  # inches
# operators in the table of a phase: what fits a screen beside the other figures
_TOP = 8


def print_report(report: "Report") -> None:
    """Print the figures and, per phase, the longest operators."""
    from rich.table import Table

    from hardware import format_number

    console = console_on(sys.stdout)
    console.print(str(report), highlight=False, soft_wrap=True)
    for timeline in (report.prefill, report.decode):
        title = f"{timeline.name}: {format_number(float(timeline.time) * _MILLI)} ms"
        table = Table(title=title, box=None)
        for name, justify in _OPERATOR_COLUMNS.items():
            table.add_column(name, justify=justify)
        rows = _merged(timeline)
        for row in rows[:_TOP]:
            table.add_row(
                row["name"], f"{row['count']}", format_number(row["time_us"]),
                f"{row['share']:.1%}", row["limiter"], row["algorithm"],
            )  # fmt: skip
        if len(rows) > _TOP:
            rest = sum(row["share"] for row in rows[_TOP:])
            table.add_row(f"{len(rows) - _TOP} more", "", "", f"{rest:.1%}", "", "")
        console.print(table)


def _merged(timeline: "Timeline") -> list[dict[str, Any]]:
    """Operators of one name, limiter and algorithm as one row, whichever layer and stage they are
    of; the longest first. Times are means; shares are of the time of all stages.
    """
    rows = timeline.rows()
    stages = len({row["stream"].rpartition(" ")[0] for row in rows})
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        *places, operator = row["name"].split(".")
        named = [word for place in places if (word := place.rstrip("0123456789-"))]
        name = ".".join([*named, operator])
        groups.setdefault((name, row["limiter"], row["algorithm"]), []).append(row)
    merged = []
    for (name, limiter, algorithm), alike in groups.items():
        count = sum(row["count"] for row in alike)
        time = sum(row["time_us"] * row["count"] for row in alike) / count
        share = sum(row["share"] for row in alike) / stages
        merged.append({"name": name, "count": count, "time_us": time, "share": share,
                       "limiter": limiter, "algorithm": algorithm})  # fmt: skip
    return sorted(merged, key=lambda row: -row["share"])


_OPERATOR_COLUMNS: dict[str, Any] = {
    "operator": "left", "count": "right", "µs each": "right", "share": "right",
    "limiter": "left", "algorithm": "left",
}  # fmt: skip


def print_search(search: "Search", title: str, top: int) -> None:
    """Print the best plans, the Pareto front, and why the others cannot be."""
    from collections import Counter

    best = search.report(0)  # says why, if there is none
    shown = {"the best plans": search.table.head(top), "Pareto front": _thinned(search.pareto, top)}
    console = console_on(sys.stdout)
    console.print(f"{title}: {search.candidates:,} plans and batches priced", highlight=False)
    for name, table in shown.items():
        rows = [
            {
                "plan": search.name_of(row),
                "batch": int(row["batch"]),
                **{title: f"{row[column]:,.{digits}f}" for title, column, digits in _PLAN_COLUMNS},
            }
            for _, row in table.iterrows()
        ]
        print_table(name, rows)
    reasons = Counter(reason for _, reason in search.infeasible)
    for reason, count in reasons.most_common(3):
        plans = "1 plan" if count == 1 else f"{count} plans"
        console.print(f"{plans} cannot be: {reason}", highlight=False, soft_wrap=True)
    console.print(f"best: {search.name_of(search.table.iloc[0])}: {best.verdict}", highlight=False)


# title, column, digits after the point
_PLAN_COLUMNS = (
    ("TTFT ms", "ttft_ms", 1),
    ("TPOT ms", "tpot_ms", 2),
    ("tokens/s per user", "tokens_per_s_per_user", 1),
    ("tokens/s per chip", "tokens_per_s_per_chip", 1),
    ("GB per chip", "memory_GB", 1),
)


def _thinned(table: "pd.DataFrame", most: int) -> "pd.DataFrame":
    """No more than *most* rows, evenly chosen, the first and the last among them."""
    if len(table) <= most:
        return table
    places = {round(i * (len(table) - 1) / max(most - 1, 1)) for i in range(most)}
    return table.iloc[sorted(places)]


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows of equal keys."""
    from rich.table import Table

    table = Table(title=title, box=None, title_justify="left")
    for name, value in rows[0].items():
        table.add_column(
            name, justify="left" if isinstance(value, str) else "right", overflow="fold"
        )
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    console_on(sys.stdout).print(table)


def _cell(value: Any) -> str:
    from hardware import format_number

    if isinstance(value, float):
        return format_number(value, 6)
    return f"{value:,}" if isinstance(value, int) else str("–" if value is None else value)


def console_on(stream: Any) -> "Console":
    """A console on *stream*; what is piped is not cut to a terminal's width."""
    from rich.console import Console

    # piped output is not cut to a terminal's width
    width = None if stream.isatty() else 200
    return Console(file=stream, width=width)


@contextmanager
def progress(what: str) -> Iterator[Callable[[list[Any]], Iterable[Any]]]:
    """What wraps a list to show on standard error how far it is, on a terminal only."""
    from rich.progress import track

    yield lambda things: track(
        things, what, console=console_on(sys.stderr), transient=True,
        disable=not sys.stderr.isatty(),
    )  # fmt: skip


def print_package(package: "Package") -> None:
    """Print the chiplets with their temperatures, the links, the slowdown and the bow."""
    answer = package.to_dict()
    print_table("chiplets", [_rounded(row) for row in answer["chiplets"]])
    if answer["links"]:
        print_table("links at full rate", [_rounded(row) for row in answer["links"]])
    whole = f"{package.name}: {package.power:g} W on {package.interposer}"
    clock = "cool enough"
    if answer["slowdown"] < 1:
        clock = f"too hot at more than {answer['slowdown']:.1%} of the clock"
    if answer["slowdown"] == 0:
        clock = "too hot even at rest"
    text = f"{whole}, {clock}, bow {answer['bow_um']:.0f} µm over the diagonal"
    dies, carrier = answer["die_cost_dollars"], answer["interposer_cost_dollars"]
    text += f"\ndies {dies:.0f} $ (where the process is said), interposer {carrier:.0f} $"
    console_on(sys.stdout).print(text, highlight=False, soft_wrap=True)


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Numbers to four digits."""
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}


def print_json(value: Any) -> None:
    """Print JSON and nothing else."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def save_plot(timeline: "Timeline", path: Path) -> None:
    """Write the timeline as a picture, by the ending of the name."""
    save_figure(timeline.plot, path)


def save_figure(
    draw: "Callable[[Axes], object]", path: Path, size: tuple[float, float] = _PLOT_SIZE
) -> None:
    """Write what *draw* draws as a picture of *size* inches, by the ending of the name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from hardware import SpecError

    known = {".png", ".svg", ".pdf"}
    if path.suffix.lower() not in known:
        raise SpecError(f"--plot {path}: a plot is written as {', '.join(sorted(known))}")
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.subplots())
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), bbox_inches="tight")


def save_trace(timelines: "list[Timeline]", path: Path) -> None:
    """Write the timelines as a Chrome trace."""
    from opgraph import trace

    trace.save(path, timelines)


def read_csv(path: Path) -> dict[str, list[str]]:
    """The columns of a CSV table."""
    import csv

    from hardware import SpecError

    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a BOM
            reader = csv.DictReader(file, restkey="", restval="", skipinitialspace=True)
            reader.fieldnames = names = [name.strip() for name in reader.fieldnames or ()]
            rows = list(reader)
    except OSError as error:
        raise SpecError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise SpecError(f"{path} is not a CSV table: {error}") from None
    if not rows:
        raise SpecError(f"{path} has no rows: a line of column names and one line a shape")
    if twice := [name for name in names if names.count(name) > 1]:
        raise SpecError(f"{path} has two columns {twice[0]!r}")
    if any("" in row for row in rows):
        line = next(i for i, row in enumerate(rows, start=2) if "" in row)
        raise SpecError(f"{path} line {line} has more cells than there are columns")
    return {name: [row[name] for row in rows] for name in rows[0]}


def write_csv(path: Path | None, columns: dict[str, list[Any]]) -> None:
    """Write columns as CSV: to *path*, or to standard output."""
    import csv

    def write(file: Any) -> None:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))

    if path is None:
        write(sys.stdout)
        return
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        write(file)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside *path*, moved into its place when it is complete."""
    from hardware import SpecError

    if path.is_dir() or not path.parent.is_dir():
        raise SpecError(f"{path} cannot be written: {'a folder' if path.is_dir() else 'no folder'}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if str(error.filename) != str(temporary):
            raise
        raise SpecError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
