"""The census of a report's communication: which collectives, how many, how large."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from hardware import Number
from opgraph.operator import Collective, Send
from opgraph.point import Phase
from opgraph.report import Report
from opgraph.sizes import Axes, Sizes
from opgraph.timeline import Event

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "phase", "collective", "axes", "group_size", "dims", "shape", "dtype", "bytes", "algorithm",
    "time_us", "per_step", "count",
)  # fmt: skip
_MICRO = 1e6


def census(report: Report) -> "pd.DataFrame":
    """One row for each phase, group and kind of message; see `Report.communication`."""
    import pandas as pd

    work = report.point.workload
    steps: dict[Phase, tuple[Number, Number]] = {
        "prefill": (work.prompt, 1),
        "decode": (work.context, work.output - 1),
    }
    rows = [
        (phase, *message, per_step, per_step * count)
        for phase, (context, count) in steps.items()
        for message, per_step in _messages(report, phase, context).items()
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _messages(report: Report, phase: Phase, context: Number) -> Counter[tuple[Any, ...]]:
    """How many of each message a step has, over all stages, in program order."""
    timeline = report.prefill if phase == "prefill" else report.decode
    timeline.need_one_point("communication")
    sizes = report.point.sizes(phase, context)
    operators = {op.name: op for op, _ in report.point.graph(phase).operators}
    found: Counter[tuple[Any, ...]] = Counter()
    for event in timeline.events:
        operator = operators[event.name]
        if isinstance(operator, Collective | Send) and event.work.sent:
            axes = tuple(axis for axis in report.point.plan.mesh if axis in operator.axes)
            found[_message(operator, axes, event, sizes)] += event.count
    return found


def _message(
    operator: Collective | Send, along: Axes, event: Event, sizes: Sizes
) -> tuple[Any, ...]:
    """What makes two messages of a phase alike: the columns between it and the counts."""
    message = operator.message
    # a gather is priced by its result: what each chip brings is its part of that
    parts = event.group_size if event.kind == "all_gather" else 1
    return (
        event.kind,
        " ".join(along),
        int(event.group_size),
        " ".join(message.dims),
        tuple(_plain(sizes.local(dim, axes)) for dim, axes in message.layout.items()),
        str(message.format),
        _plain(event.work.sent / parts),
        event.algorithm,
        float(event.time) * _MICRO,
    )


def _plain(number: Number) -> int | float:
    """A whole number as an integer; a share of one as it is."""
    value = float(number)
    return int(value) if value.is_integer() else value
