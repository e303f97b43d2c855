"""Measured traces, as timelines: PyTorch's profiler, ONNX Runtime's profile, our own exports."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from frontends.traces import kineto, onnx_runtime, own
from frontends.traces.document import Document
from frontends.traces.steps import chosen
from hardware import SpecError
from opgraph.timeline import Timeline

__all__ = ["load_steps", "load_trace"]

OWN = "opgraph"  # the entry in which our exports and captures say what they are


def load_trace(path: str | Path, step: str | None = None) -> Timeline:
    """A measured step as a timeline, the median of all steps of its name.

    Parameters
    ----------
    path : a Chrome trace of PyTorch's profiler (``cpu_op``, ``user_annotation``, ``kernel`` …), a
        profile of ONNX Runtime, or a trace written by ``Timeline.save_trace``; gzipped or not, of
        any size: it is streamed.
    step : the name of the step, which may be left out where all have one: what annotates them
        (``ProfilerStep``, a ``record_function``), ``model_run`` of ONNX Runtime, the phase of an
        export, ``trace`` where nothing is annotated.

    A trace with GPU kernels gives a timeline of kernels, each named after the operator that
    launched it; one without, a timeline of operators. ``work.flop`` of a matrix product comes from
    its operands' shapes where the trace has them; ``block`` is the innermost annotation.

    Raises
    ------
    SpecError : the file cannot be read, is no trace, holds a time that is none, or has no such
        step; one line that names the file and the event.
    """
    return chosen(load_steps(path), step, f"trace {Path(path).name!r}")


def load_steps(path: str | Path) -> list[Timeline]:
    """Every step of a trace, in its order; see `load_trace`."""
    document = Document(Path(path))
    events = iter(document)
    first = next(events, None)
    if first is None:
        raise SpecError(f"{document.where}: no event is in it")
    return _read(document, chain([first], events), first)


def _read(
    document: Document, events: Iterator[Mapping[str, Any]], first: Mapping[str, Any]
) -> list[Timeline]:
    stated = document.head.get(OWN)
    known = {str(k): str(v) for k, v in stated.items()} if isinstance(stated, dict) else {}
    if "simulated" in known:
        return own.steps(events, known, document.where)
    if not document.head and _is_onnx_runtime(first):
        return onnx_runtime.steps(events, document.where)
    recording = kineto.Recording(document.where).read(events)
    # what stands after the events is known only now
    return kineto.steps(recording, {**_devices(document.head.get("deviceProperties")), **known})


def _is_onnx_runtime(event: Mapping[str, Any]) -> bool:
    return event.get("cat") in ("Session", "Node", "Api")


def _devices(listed: Any) -> dict[str, str]:
    devices: Iterable[Any] = listed if isinstance(listed, list) else []
    names = [str(each["name"]) for each in devices if isinstance(each, dict) and "name" in each]
    return {"device": names[0]} if names else {}
