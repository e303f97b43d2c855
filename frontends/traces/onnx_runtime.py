"""ONNX Runtime's profile: the nodes of each run of a model."""

from collections.abc import Iterable, Mapping
from typing import Any

from frontends.traces.names import Shape, kind_of, product_flop, shapes_in
from frontends.traces.steps import Span, measured_event, time_of
from hardware import SpecError
from opgraph.timeline import Event, Timeline

RUN = "model_run"
_SUFFIX = "_kernel_time"
MOST_NODES = 2_000_000  # kept in memory


def steps(events: Iterable[Mapping[str, Any]], where: str) -> list[Timeline]:
    """The runs of a model, a timeline each; the names of events are those of nodes.

    The shape of a weight that was packed in advance is not in the profile; a product's FLOP
    follow from what goes in and what comes out.

    Raises
    ------
    SpecError : an event that makes no sense, or no run of a model with nodes in it.
    """
    runs: list[Span] = []
    nodes: list[tuple[Span, Mapping[str, Any]]] = []
    for event in events:
        if event.get("cat") == "Session" and event.get("name") == RUN:
            runs.append(_span(event, where))
        elif event.get("cat") == "Node" and str(event.get("name", "")).endswith(_SUFFIX):
            nodes.append((_span(event, where), _args(event)))
            if len(nodes) > MOST_NODES:
                raise SpecError(f"{where}: over {MOST_NODES} nodes; profile fewer runs")
    nodes.sort(key=lambda node: node[0].start)
    found = [_timeline(run, nodes) for run in sorted(runs, key=lambda run: run.start)]
    found = [timeline for timeline in found if timeline.events]
    if not found:
        raise SpecError(f"{where}: no {RUN!r} with nodes in it")
    return found


def _span(event: Mapping[str, Any], where: str) -> Span:
    start, end = time_of(event, where)
    return Span(start, end, event.get("tid"), str(event.get("name")))


def _args(event: Mapping[str, Any]) -> Mapping[str, Any]:
    args = event.get("args")
    return args if isinstance(args, dict) else {}


def _timeline(run: Span, nodes: list[tuple[Span, Mapping[str, Any]]]) -> Timeline:
    events = [
        _event(span, args, run.start) for span, args in nodes if run.start <= span.start < run.end
    ]
    providers = {str(args.get("provider", "unknown")) for _, args in nodes}
    source = {"runtime": "ONNX Runtime", "provider": ", ".join(sorted(providers))}
    return Timeline(RUN, tuple(events), run.end - run.start, source=source)


def _event(span: Span, args: Mapping[str, Any], origin: float) -> Event:
    name = span.name.removesuffix(_SUFFIX)
    called = str(args.get("op_name", ""))
    kind = kind_of(called)
    flop = _flop(called, args) if kind == "gemm" else 0.0
    block = name.rpartition("/")[0]
    return measured_event(name, kind, span, origin, flop=flop, block=block)


def _flop(called: str, args: Mapping[str, Any]) -> float:
    inputs, outputs = (_shapes(args.get(f"{side}_type_shape")) for side in ("input", "output"))
    if len(inputs) > 1 and (known := product_flop(called, inputs)):
        return known
    if not inputs or not outputs:
        return 0.0
    return product_flop(called, [inputs[0], (inputs[0][-1], outputs[0][-1])])


def _shapes(listed: Any) -> list[Shape]:
    """The shapes of ``[{"float": [1, 64, 1024]}, …]``."""
    typed = listed if isinstance(listed, list) else []
    return shapes_in([shape for each in typed if isinstance(each, dict) for shape in each.values()])
