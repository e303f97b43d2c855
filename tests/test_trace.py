"""Traces: what `save` writes, `check` and any reader that nests IEEE doubles accept."""

import gzip
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frontends import load_model
from hardware import SpecError, load_platform
from opgraph import Event, Plan, Report, Timeline, Workload, simulate, trace

CASES = [("llama-3.1-70b", 8, 32), ("llama-3.1-8b", 1, 1), ("gemma-2-27b", 2, 4)]


def report(model: str = "llama-3.1-8b", tp: int = 1, batch: Any = 1) -> Report:
    workload = Workload(batch=batch, prompt=2048, output=256)
    return simulate(load_model(model), load_platform("dgx-h100"), Plan(tp=tp), workload)


def slices(path: Path) -> list[dict[str, Any]]:
    return [event for event in document(path)["traceEvents"] if event["ph"] == "X"]


def document(path: Path) -> dict[str, Any]:
    raw = path.read_bytes()
    found: dict[str, Any] = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    return found


def one_line(error: pytest.ExceptionInfo[SpecError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("model", "tp", "batch"), CASES)
def test_saved_traces_are_sound_and_complete(
    tmp_path: Path, model: str, tp: int, batch: int
) -> None:
    made = report(model, tp, batch)
    path = tmp_path / "both.json.gz"
    trace.save(path, [made.prefill, made.decode])
    executions = sum(event.count for t in (made.prefill, made.decode) for event in t.events)
    assert trace.check(path) == executions + 2  # an annotation for each step


@pytest.mark.parametrize(("model", "tp", "batch"), CASES)
def test_durations_sum_to_the_makespan(tmp_path: Path, model: str, tp: int, batch: int) -> None:
    step = report(model, tp, batch).decode  # nothing overlaps in it: the times add up
    trace.save(tmp_path / "decode.json", [step])
    durations = [s["args"]["dur_ns"] for s in slices(tmp_path / "decode.json")][1:]
    assert sum(durations) == pytest.approx(step.time * 1e9, abs=len(durations))
    rows = {event.name: event for event in step.events}
    for piece in slices(tmp_path / "decode.json")[1:]:
        assert piece["args"]["dur_ns"] == pytest.approx(rows[piece["name"]].time * 1e9, abs=1)
        assert round(piece["dur"] * 1000) in (piece["args"]["dur_ns"], piece["args"]["dur_ns"] - 1)


def test_no_slice_reaches_the_next_in_doubles(tmp_path: Path) -> None:
    path = tmp_path / "decode.json"
    trace.save(path, [report("llama-3.1-70b", 8, 32).decode] * 3)
    for track in {piece["tid"] for piece in slices(path)}:
        on_track = [piece for piece in slices(path) if piece["tid"] == track]
        for before, after in itertools.pairwise(on_track):
            assert before["ts"] + before["dur"] <= after["ts"]


def test_steps_follow_one_another_under_their_annotations(tmp_path: Path) -> None:
    made = report()
    path = tmp_path / "two.json"
    trace.save(path, [made.prefill, made.decode])
    spans = [piece for piece in slices(path) if piece["cat"] == "user_annotation"]
    assert [span["name"] for span in spans] == ["prefill", "decode"]
    for span in spans:
        end = span["ts"] + span["args"]["dur_ns"] / 1000 + 1e-3
        inside = [p for p in slices(path) if p["args"]["phase"] == span["name"]]
        assert all(span["ts"] <= p["ts"] and p["ts"] + p["dur"] <= end for p in inside)
    assert spans[1]["ts"] * 1000 == pytest.approx(made.prefill.time * 1e9, abs=1)


def test_header_and_arguments_are_those_that_tools_read(tmp_path: Path) -> None:
    path = tmp_path / "decode.json"
    trace.save(path, [report("llama-3.1-70b", 8, 32).decode])
    header = document(path)
    assert header["schemaVersion"] == 1
    assert header["displayTimeUnit"] == "ms"
    assert header["deviceProperties"][0]["name"] == "h100-sxm"
    assert header["opgraph"]["simulated"] is True
    reduce = next(p for p in slices(path) if p["name"] == "layer.out.all_reduce")
    assert reduce["args"]["Collective name"] == "all_reduce"
    assert reduce["args"]["dtype"] == "bf16"
    assert reduce["args"]["In msg nelems"] == 32 * 8192  # batch × model, one token each
    gemms = [p for p in slices(path) if p["name"] == "layer.gate_up"]
    assert [p["args"]["layer"] for p in gemms] == list(range(80))
    assert gemms[0]["args"]["limiter"] == "memory"
    assert gemms[0]["args"]["flop"] == 2 * 32 * 8192 * 2 * 28672 / 8
    numbers = [p["args"]["correlation"] for p in slices(path)[1:]]
    assert len(set(numbers)) == len(numbers)
    assert all(p["args"]["stream"] == p["tid"] for p in slices(path)[1:])


def test_the_same_timelines_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.json.gz", "b.json.gz", "c.json", "d.json"):
        trace.save(tmp_path / name, [report().decode])
    contents = [(tmp_path / name).read_bytes() for name in ("a.json.gz", "b.json.gz")]
    assert contents[0] == contents[1]
    assert (tmp_path / "c.json").read_bytes() == (tmp_path / "d.json").read_bytes()
    assert gzip.decompress(contents[0]) == (tmp_path / "c.json").read_bytes()


def test_times_that_round_to_nothing_keep_their_place(tmp_path: Path) -> None:
    starts = np.arange(4) * 1e-10
    events = [Event(f"e{i}", "norm", 1e-10, starts[i : i + 1]) for i in range(4)]
    events.append(Event("nothing", "norm", 0.0, starts[:1]))
    trace.save(tmp_path / "t.json", [Timeline("tiny", tuple(events), 4e-10)])
    assert trace.check(tmp_path / "t.json") == 5
    assert [p["args"]["dur_ns"] for p in slices(tmp_path / "t.json")[1:]] == [1, 1, 1, 1]


def test_streams_overlap_on_tracks_of_their_own(tmp_path: Path) -> None:
    at = np.zeros(1)
    events = [Event(s, "gemm", 1e-6, at, stream=s) for s in ("compute", "communication", "copy")]
    trace.save(tmp_path / "t.json", [Timeline("step", tuple(events), 1e-6)])
    assert trace.check(tmp_path / "t.json") == 4
    found = slices(tmp_path / "t.json")
    assert len({p["tid"] for p in found}) == 4
    assert found[-1]["cat"] == "gpu_memcpy"
    names = {e["args"].get("name") for e in document(tmp_path / "t.json")["traceEvents"]}
    assert {"stream 1 compute", "stream 2 communication", "stream 3 copy"} <= names


@pytest.mark.parametrize("name", ["t.txt", "t", "t.json.zip", ".json", "t.pftrace"])
def test_other_endings_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match=r"\.json or \.json\.gz") as error:
        trace.save(tmp_path / name, [report().decode])
    one_line(error)


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    long = "x" * 300
    for name in ("missing/t.json", "folder.json", f"{long}.json", "nul\0.json"):
        with pytest.raises(SpecError, match="cannot write") as error:
            trace.save(tmp_path / name, [report().decode])
        one_line(error)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SpecError, match="cannot write") as error:
        trace.save(tmp_path / "t.json", [report().decode])
    one_line(error)


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.json"
    path.write_text("before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SpecError, match="No space left") as error:
        trace.save(path, [report().decode])
    one_line(error)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_single_step_is_refused(tmp_path: Path) -> None:
    many = report(batch=np.arange(1, 4)).decode
    endless = Timeline("step", (), 1e7)
    for timelines, words in (
        ([many], "3 design points"),
        ([endless], "s of a step|fit"),
        ([], "no"),
    ):
        with pytest.raises(SpecError, match=words) as error:
            trace.save(tmp_path / "t.json", timelines)
        one_line(error)
    assert not list(tmp_path.iterdir())


def named(*events: dict[str, Any]) -> str:
    meta = [
        {"ph": "M", "name": kind, "pid": 0, "tid": 1, "args": {"name": "x"}}
        for kind in ("process_name", "thread_name")
    ]
    return json.dumps({"traceEvents": [*meta, *events]})


def piece(name: str, ts: Any, dur: Any, **more: Any) -> dict[str, Any]:
    return {"ph": "X", "name": name, "pid": 0, "tid": 1, "ts": ts, "dur": dur, **more}


def test_slices_that_nest_or_touch_are_sound(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    nested = [
        piece("outer", 0, 10),
        piece("inner", 2, 3),
        piece("last", 5, 5),
        piece("next", 10, 1),
    ]
    path.write_text(named(*reversed(nested)))
    assert trace.check(path) == 4


def test_an_overlap_is_found_and_named(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    trace.save(path, [report().decode])
    broken = document(path)
    victim = [e for e in broken["traceEvents"] if e["ph"] == "X"][5]
    victim["dur"] += 0.002
    path.write_text(json.dumps(broken))
    with pytest.raises(SpecError, match=f"'{victim['name']}'.* and .*overlap") as error:
        trace.check(path)
    one_line(error)


def test_an_overlap_by_rounding_is_found(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(named(piece("a", 0.1, 0.2), piece("b", 0.3, 1)))  # 0.1 + 0.2 > 0.3
    with pytest.raises(SpecError, match=r"'a'.*'b'.*overlap"):
        trace.check(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (named(piece("a", -1, 1)), "ts=-1"),
        (named(piece("a", 0, float("nan"))), "dur=nan"),
        (named(piece("a", float("inf"), 0)), "ts=inf"),
        (named(piece("a", 10**400, 0)), "ts="),
        (named(piece("a", "0", 0)), "ts='0'"),
        (named(piece("a", True, 0)), "ts=True"),
        (named({"ph": "X", "name": "a", "pid": 0, "tid": 1, "ts": 0}), "dur=None"),
        (named(piece("a", 0, 1, tid=[1])), "'pid' and 'tid'"),
        (named(piece("a", 0, 1, tid=2)), "has no name"),
        (json.dumps([piece("a", 0, 1)]), "has no name"),
        ('{"traceEvents": 3}', "list of events"),
        ("[1, 2]", "list of events"),
        ("3", "list of events"),
        ("{", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "not JSON"),
        ("", "not JSON"),
    ],
)
def test_unsound_traces_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(SpecError, match=words) as error:
        trace.check(path)
    one_line(error)


def test_unreadable_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.json.gz").write_bytes(gzip.compress(b"[]" * 999)[:-9])
    (tmp_path / "latin.json").write_bytes(b'["\xff"]')
    (tmp_path / "bomb.json.gz").write_bytes(gzip.compress(b" " * 20_000_000))
    for name in ("missing.json", ".", "bad.json.gz", "latin.json", "bomb.json.gz"):
        with pytest.raises(SpecError) as error:
            trace.check(tmp_path / name)
        one_line(error)
    monkeypatch.setattr(trace, "LARGEST_TRACE", 1000)
    (tmp_path / "large.json").write_text(" " * 1001 + "[]")
    with pytest.raises(SpecError, match="too large"):
        trace.check(tmp_path / "large.json")
