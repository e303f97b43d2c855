"""Measured beside predicted: operators found in turn, times that add up, and what cannot match."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from frontends.traces import load_trace
from hardware import SpecError, load_platform
from opgraph import Event, Timeline, Work, cli, trace
from validation.capture import Step
from validation.captured import CHIP, TRACES, captured, classes, report, steps, summary
from validation.compare import BETWEEN, OUTSIDE, compare
from validation.replay import predict, step_of

CHIPS = load_platform("h200-sxm:1")
STEP = Step(model="llama-3.2-1b", phase="prefill", batch=2, tokens=64, layers=2)
MOE = Step(model="mixtral-8x7b", phase="decode", batch=2, tokens=64, layers=2)
DOCS = Path(__file__).parents[1] / "docs"


def eager(predicted, *, slower=1.0, parts=3):
    """A measurement of a prediction: projections apart, norms in pieces, *slower* by a factor."""
    events, at = [], 0.0
    for event in predicted.unroll().events:
        pieces = parts if event.kind in ("gemm", "norm") else 1
        for index in range(pieces):
            time = slower * float(event.time) / pieces
            kind = "elementwise" if event.kind == "norm" else event.kind
            flop = event.work.flop / pieces if event.kind == "gemm" else 0.0
            events.append(
                Event(f"aten{index}", kind, time, np.array([at]), work=Work(flop),
                      provenance="measured")
            )  # fmt: skip
            at += time
    return Timeline("measured step", tuple(events), at, source={})


@pytest.mark.parametrize("step", [STEP, replace(STEP, phase="decode"), MOE], ids=lambda s: s.name)
@pytest.mark.parametrize("parts", [1, 3])
def test_a_prediction_matches_itself_cut_into_pieces(step, parts):
    predicted = predict(step, CHIPS)
    found = compare(eager(predicted, slower=2.0, parts=parts), predicted)
    assert found.error == pytest.approx(-0.5)
    for row in found.rows[:-1]:
        assert row.measured == pytest.approx(2 * row.predicted), row
        assert row.work in (None, pytest.approx(1))
    everything = [name for row in found.rows[:-1] for name in row.operator.split(" + ")]
    experts = [e for e in predicted.unroll().events if e.kind in ("moe", "activation")]
    if step is not MOE:  # of an expert layer the first product stands for all
        assert everything == [event.name for event in predicted.unroll().events]
    else:
        assert len(everything) < len(predicted.unroll().events)
        assert experts


def test_nothing_measured_is_lost():
    predicted = predict(STEP, CHIPS)
    measured = eager(predicted)
    for place in (0, 5, 11, len(measured.events) - 1):
        extra = Event("copy", "copy", 1.0, measured.events[place].starts)
        events = (*measured.events[:place], extra, *measured.events[place:])
        found = compare(replace(measured, events=events, time=measured.time + 2), predicted)
        told = sum(row.measured for row in found.rows)
        assert told == pytest.approx(measured.time + 2)  # and one second outside operators
        assert found.rows[-1].operator == OUTSIDE
        assert found.rows[-1].measured == pytest.approx(1)


def test_what_no_operator_of_the_model_does_has_a_row():
    predicted = predict(STEP, CHIPS)
    measured = eager(predicted, parts=1)
    index = [event.kind for event in measured.events].index("attention") + 1
    mask = Event("mask", "elementwise", 1e-3, measured.events[index].starts)
    events = (*measured.events[:index], mask, *measured.events[index:])
    found = compare(replace(measured, events=events), predicted)
    (row,) = (row for row in found.rows if row.operator == BETWEEN)
    assert (row.measured, row.predicted, row.count) == (1e-3, 0, 1)


def test_a_kernel_that_only_finishes_a_product_belongs_to_it():
    predicted = predict(STEP, CHIPS)
    measured = eager(predicted, parts=1)
    index = [event.kind for event in measured.events].index("gemm") + 1
    finish = Event("splitKreduce", "gemm", 1e-3, measured.events[index].starts)
    events = (*measured.events[:index], finish, *measured.events[index:])
    found = compare(replace(measured, events=events), predicted)
    first = next(row for row in found.rows if row.kind == "gemm")
    assert first.count == 2
    assert first.work == pytest.approx(1)


def test_a_head_over_all_positions_is_told_by_its_work():
    predicted = predict(STEP, CHIPS)
    measured = eager(predicted, parts=1)
    last = max(i for i, event in enumerate(measured.events) if event.kind == "gemm")
    more = replace(measured.events[last], work=measured.events[last].work * STEP.tokens)
    events = (*measured.events[:last], more, *measured.events[last + 1 :])
    found = compare(replace(measured, events=events), predicted)
    head = [row for row in found.rows if row.kind == "gemm"][-1]
    assert head.operator == "head"
    assert head.work == pytest.approx(STEP.tokens)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(STEP, batch=3), "its products do 0.667 times the FLOP"),
        (replace(STEP, tokens=128), "its products do 0.5"),
        (replace(STEP, layers=1), "goes on with aten1 where the prediction ends"),
        (replace(STEP, layers=3), "ends before|it has aten0"),
        (replace(STEP, model="llama-3.2-3b"), "another model"),
        (MOE, "should be, a moe, it has aten0|is not the decode"),
    ],
)
def test_another_model_or_shape_is_refused(other, message):
    with pytest.raises(SpecError, match=message) as error:
        compare(eager(predict(STEP, CHIPS)), predict(other, CHIPS))
    assert "\n" not in str(error.value)


def test_products_without_shapes_are_refused():
    predicted = predict(STEP, CHIPS)
    measured = eager(predicted, parts=1)
    events = tuple(replace(event, work=Work()) for event in measured.events)
    with pytest.raises(SpecError, match="record_shapes"):
        compare(replace(measured, events=events), predicted)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_the_prediction_is_that_of_simulate(phase):
    """A replayed step is the one of the same model, batch and length that `simulate` has."""
    from frontends import load_model
    from opgraph import Workload, simulate

    step = Step(model="qwen3-0.6b", phase=phase, batch=4, tokens=256)
    workload = Workload(batch=4, prompt=256 if phase == "prefill" else 255, output=2)
    made = simulate(load_model("qwen3-0.6b"), CHIPS, workload=workload)
    wanted = made.prefill.time if phase == "prefill" else made.tpot
    assert predict(step, CHIPS).time == pytest.approx(wanted)


def test_a_trace_that_is_no_capture_says_so():
    with pytest.raises(SpecError, match="does not say what ran"):
        step_of({"phase": "prefill"})


def test_the_plot_shows_both_with_their_times():
    predicted = predict(STEP, CHIPS)
    found = compare(eager(predicted, slower=2.0), predicted)
    figure = Figure(figsize=(11, 3))
    FigureCanvasAgg(figure)
    ax = found.plot(figure.subplots())
    title = ax.get_title(loc="left")
    assert "measured step" in title
    assert title.index("measured ") < title.index("predicted ")
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["measured: compute", "predicted: compute"]
    rows = [c.get_paths() for c in ax.collections]
    assert sum(map(len, rows)) == sum(e.count for t in (found.measured, found.predicted)
                                      for e in t.events)  # fmt: skip


def test_the_trace_holds_both_measured_on_top(tmp_path):
    predicted = predict(STEP, CHIPS)
    found = compare(eager(predicted), predicted)
    path = tmp_path / "both.json"
    found.save_trace(path)
    assert trace.check(path) == 2 + len(found.measured.events) + sum(
        event.count for event in predicted.events
    )
    named = {event["pid"]: event["args"]["name"] for event in json.loads(path.read_text())
             ["traceEvents"] if event["name"] == "process_name"}  # fmt: skip
    assert named == {0: "measured", 1: "predicted"}


@pytest.fixture(scope="module")
def captures():
    return captured()


def test_this_cpu_is_predicted_within_15_percent(captures):
    """Geometric mean over captured steps; the fits saw kernels alone, none of these steps."""
    table = summary(captures).set_index("level")
    assert len(captures) >= 20
    for level in ("calibrated", "tiled", "corrected"):
        assert table.loc[level, "geomean_error"] < 15
    assert table.loc["ideal", "bias"] < -40  # what the roofline of the same chip says


def test_classes_account_for_the_whole_step(captures):
    table = classes(captures)
    assert table["share"].sum() == pytest.approx(100, abs=0.5)
    missing = table["missing"].sum()
    profiled = [each.levels["corrected"].error for each in captures]
    assert missing == pytest.approx(-100 * np.mean(profiled), abs=0.5)


def test_the_report_is_that_of_the_committed_captures(captures):
    """Regenerate it with `opgraph validate-traces --markdown docs/measured.md`."""
    assert (DOCS / "measured.md").read_text(encoding="utf-8") == report(captures)
    assert len(steps(captures)) == len(captures)


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["opgraph", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out = capsys.readouterr()
    return end.value.code or 0, out.out, out.err


@pytest.fixture
def capture():
    return TRACES / "qwen3-0.6b-2layers-decode-8x1024.json.gz"


def test_compare_prints_classes_and_writes_plot_and_trace(monkeypatch, capsys, tmp_path, capture):
    plot, both = tmp_path / "both.png", tmp_path / "both.json.gz"
    words = ("--platform", CHIP, "--cost", "tiled", "--plot", plot, "--out", both)
    code, out, _ = run(monkeypatch, capsys, "compare", capture, *words)
    assert code == 0
    assert "gemm" in out
    assert "step" in out
    assert plot.stat().st_size > 5000
    assert trace.check(both) > 50


def test_compare_answers_json_alone(monkeypatch, capsys, capture):
    code, out, _ = run(
        monkeypatch, capsys, "compare", capture, "--platform", CHIP, "--cost", "tiled", "--json"
    )
    answer = json.loads(out)
    assert code == 0
    assert set(answer) == {"classes", "rows"}
    assert answer["classes"][-1]["class"] == "step"
    measured = sum(row["measured_us"] for row in answer["rows"])
    assert measured == pytest.approx(1e6 * load_trace(capture).time)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "say on what"),
        (("--platform", "h200"), "unknown platform 'h200'"),
        (("--platform", "h200-sxm:1", "--batch", 3), "do 2.67 times the FLOP"),
        (("--platform", "h200-sxm:1", "--step", "prefil"), "no step 'prefil'"),
        (("--platform", "h200-sxm:1", "--plot", "x.gif"), "written as .pdf, .png, .svg"),
        (("llama-9", "--platform", "h200-sxm:1"), "no model 'llama-9'"),
    ],
)
def test_nonsense_gets_one_line(monkeypatch, capsys, capture, words, message):
    code, out, err = run(monkeypatch, capsys, "compare", capture, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_trace_of_others_needs_to_be_told_what_ran(monkeypatch, capsys, tmp_path):
    path = tmp_path / "t.json"
    event = {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 1, "dur": 2}
    path.write_text(json.dumps([event]))
    code, _, err = run(monkeypatch, capsys, "compare", path, "--platform", "h200-sxm:1")
    assert code == 2
    assert "give the MODEL, --phase, --tokens" in err
