"""Plots: drawn without a screen, legible at the size they have, and saying what they show."""

import itertools
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from frontends import load_model
from hardware import SpecError, load_platform
from opgraph import Calibrated, Efficiency, Event, Plan, Report, Timeline, Workload, plots, simulate

KINDS = ("gemm", "attention", "norm", "rotary", "activation", "all_reduce")
HALF = Calibrated(dict.fromkeys(KINDS, Efficiency(0.6, 0.7, 3e-6)))


@pytest.fixture(autouse=True)
def _no_screen() -> Iterator[None]:
    before = _settings()
    with mpl.rc_context(), plt.style.context("default"):
        plt.switch_backend("agg")
        yield
    plt.close("all")
    assert _settings() == before


def _settings() -> dict[str, Any]:
    """All but the backend, which is chosen when the first figure is made."""
    return {name: value for name, value in dict(mpl.rcParams).items() if name != "backend"}


def report(model: str = "llama-3.1-70b", tp: int = 8, batch: Any = 32, **more: Any) -> Report:
    workload = Workload(batch=batch, prompt=2048, output=256)
    return simulate(load_model(model), load_platform("dgx-h100"), Plan(tp=tp), workload, **more)


def event(name: str, time: float, starts: Any, **more: Any) -> Event:
    starts = np.atleast_1d(np.asarray(starts, float)) * 1e-6
    more["slack"] = more.get("slack", 0.0) * 1e-6
    return Event(
        name, "gemm", time * 1e-6, starts, **{"limiter": "memory", "count": len(starts), **more}
    )


def overlapped(layers: int = 80) -> Timeline:
    """Each stream in use, with and without slack: 60 µs a layer."""
    at = 60.0 * np.arange(layers)
    wire: dict[str, Any] = {"block": "layer", "limiter": "network bandwidth"}
    latency = {**wire, "limiter": "network latency"}
    events = (
        event("embed", 5, 0, block="stem"),
        event("layer.qkv", 12, at + 5, block="layer", limiter="compute"),
        event("layer.router", 0.3, at + 17, block="layer", slack=3),
        event("layer.prefetch", 30, at + 6, stream="copy", slack=20, **wire),
        event("layer.shared_expert", 8, at + 17.3, block="layer", limiter="compute", slack=6),
        event("layer.dispatch", 12, at + 17.3, stream="communication", **wire),
        event("layer.experts", 28, at + 29.3, block="layer"),
        event("layer.combine", 7.7, at + 57.3, stream="communication", **latency),
        event("head", 30, 60 * layers + 5, block="head"),
    )
    return Timeline("decode", events, (60 * layers + 35) * 1e-6)


def crowded() -> Timeline:
    """Names that fit nowhere, and that would be mathematics to matplotlib."""
    name = "a_very_" + "long_" * 60
    longest = [event(f"{name}{i}$^", 1 + i / 1000, i) for i in range(91, 100)]
    return Timeline("$step_", (*(event(f"n{i}", 0.01, i) for i in range(91)), *longest), 101e-6)


# simulated once each
CASES: dict[str, Callable[[], Timeline]] = {
    "decode": lambda: report().decode,
    "prefill": lambda: report().prefill,
    "8b": lambda: report("llama-3.1-8b", 1).decode,
    "8b, batch 1": lambda: report("llama-3.1-8b", 1, 1).decode,
    "gemma": lambda: report("gemma-2-27b", 2).decode,
    "calibrated": lambda: report(batch=1, cost=HALF).decode,
    "overlapped": overlapped,
    "two layers": lambda: overlapped(2),
    "crowded": crowded,
    "one": lambda: Timeline("decode", (event("only", 3, 0),), 3e-6),
    "short": lambda: Timeline("d", (event("big", 999, 0), event("a", 1e-3, 999)), 999.001e-6),
    "zero": lambda: Timeline("decode", (event("z", 0, 0),), 0.0),
    "nothing": lambda: Timeline("decode", (), 0.0),
    "measured": lambda: Timeline("m", (event("k", 9, 0, stream="stream 7", limiter=""),), 9e-6),
}

CASES = {name: cache(make) for name, make in CASES.items()}


def visible(ax: Axes) -> list[Text]:
    legend = ax.get_legend()
    ticks: list[Text] = []
    for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        ticks += [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
        ticks.append(axis.label)
    titles = [ax.title, ax._left_title, ax._right_title]  # type: ignore[attr-defined]
    every = [*ax.texts, *titles, *ticks, *(legend.get_texts() if legend else [])]
    return [text for text in every if text.get_visible() and text.get_text()]


def assert_legible(ax: Axes) -> None:
    figure = ax.figure.canvas.figure
    figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for text in visible(ax)]
    for text, box in boxes:
        inside = box.x0 >= -0.5 and box.y0 >= -0.5
        inside &= box.x1 <= figure.bbox.x1 + 0.5 and box.y1 <= figure.bbox.y1 + 0.5
        assert inside, f"{text!r} is cut off: {box}"
    for (text, box), (other_text, other) in itertools.combinations(boxes, 2):
        overlap = min(box.x1, other.x1) - max(box.x0, other.x0) > 0.5
        overlap &= min(box.y1, other.y1) - max(box.y0, other.y0) > 0.5
        assert not overlap, f"{text!r} overlaps {other_text!r}"


def given(width: float, height: float, **more: Any) -> Axes:
    figure = Figure(figsize=(width, height), **more)
    FigureCanvasAgg(figure)  # it measures texts; without one, measuring takes ten times as long
    return figure.subplots()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("unrolled", [False, True])
def test_timelines_are_legible(case: str, unrolled: bool) -> None:
    ax = CASES[case]().plot(unrolled=unrolled)
    assert isinstance(ax, Axes)
    assert_legible(ax)


@pytest.mark.parametrize("size", [(3, 2), (20, 3), (6.4, 4.8), (2, 6)])
@pytest.mark.parametrize("case", ["decode", "overlapped", "crowded"])
def test_timelines_are_legible_on_axes_given(case: str, size: tuple[float, float]) -> None:
    for more in ({}, {"layout": "constrained"}):
        ax = given(*size, **more)
        assert plots.timeline(CASES[case](), ax) is ax
        assert_legible(ax)
    assert not plt.get_fignums()


def test_tiny_axes_keep_the_names() -> None:
    ax = CASES["decode"]().plot(given(1.5, 1.2))
    assert {"gate_up 42\N{NO-BREAK SPACE}%"} <= {text.get_text() for text in ax.texts}


@pytest.mark.parametrize("case", ["decode", "prefill", "8b", "gemma", "calibrated", "overlapped"])
@pytest.mark.parametrize("unrolled", [False, True])
def test_the_three_longest_are_named(case: str, unrolled: bool) -> None:
    timeline = CASES[case]()
    texts = [text.get_text() for text in timeline.plot(unrolled=unrolled).texts]
    for longest in sorted(timeline.events, key=lambda e: -e.time * e.count)[:3]:
        name = longest.name.removeprefix(longest.block).removeprefix(".")
        assert any(name in text for text in texts), (name, texts)


def test_names_tell_the_layers_of_a_block_apart() -> None:
    texts = [text.get_text() for text in CASES["gemma"]().plot().texts]
    assert any(text.startswith("0.gate_up") for text in texts)
    assert any(text.startswith("1.gate_up") for text in texts)


def bars(ax: Axes) -> dict[tuple[str, bool], float]:
    """(colour of the outline or the fill, hatched) → the summed width of the bars."""
    found: dict[tuple[str, bool], float] = {}
    for drawn in ax.collections:
        if not len(drawn.get_facecolor()):
            continue
        hatched = bool(drawn.get_hatch())
        colour = to_hex((drawn.get_edgecolor() if hatched else drawn.get_facecolor())[0]).upper()
        width = sum(float(np.ptp(path.vertices[:, 0])) for path in drawn.get_paths())
        found[colour, hatched] = found.get((colour, hatched), 0.0) + width
    return found


def test_colours_say_what_limits_and_hatching_says_slack() -> None:
    widths = bars(overlapped().plot())
    compute, memory, network = (plots.COLOURS[name] for name in ("compute", "memory", "network"))
    # of one layer, in µs; embed and head are memory too
    expected = {
        (compute, False): 12, (compute, True): 8, (memory, False): 28 + 5 + 30,
        (memory, True): 0.3, (network, False): 12 + 7.7, (network, True): 30,
    }  # fmt: skip
    assert widths == pytest.approx(expected)
    legend = overlapped().plot().get_legend()
    assert legend is not None
    words = " ".join(text.get_text() for text in legend.get_texts())
    for said in ("limited by compute", "by memory", "by network", "critical path", "has slack"):
        assert said in words


def test_unrolled_draws_every_layer() -> None:
    widths = bars(overlapped().plot(unrolled=True))
    assert widths[plots.COLOURS["compute"], False] == pytest.approx(80 * 12e-3)  # ms


def test_repeated_blocks_are_folded_and_counted() -> None:
    ax = report().decode.plot()
    assert any("layer ×80 · 98" in text.get_text() for text in ax.texts)
    assert ax.get_xlim()[1] == pytest.approx(186, abs=1)  # µs: stem 3.8, layer 83.5, head 98.6


def test_titles_carry_the_answer() -> None:
    title = report().decode.plot().get_title(loc="left").replace("\N{NO-BREAK SPACE}", " ")
    assert title == (
        "decode step 6.79 ms · 92 % memory, 8 % network · "
        "compute busy 92 %, exposed communication 8 %"
    )
    title = overlapped().plot().get_title(loc="left").replace("\N{NO-BREAK SPACE}", " ")
    # a layer: 48.3 of 60 µs computing; of 19.7 communicating, 8 behind the shared expert
    assert title.endswith("compute busy 81 %, exposed communication 19 %")


@pytest.mark.parametrize(
    ("case", "size"),
    [("decode", None), ("prefill", (3, 2.5)), ("gemma", (12, 4)), ("calibrated", (4, 3))],
)
def test_rooflines_are_legible(case: str, size: tuple[float, float] | None) -> None:
    ax = CASES[case]().plot_roofline(given(*size, layout="constrained") if size else None)
    assert_legible(ax)
    texts = " ".join(text.get_text() for text in ax.texts)
    assert "bf16 989 TFLOP/s" in texts
    assert "vector 66.9 TFLOP/s" in texts
    assert "gate_up" in texts


def test_no_point_is_above_its_roof() -> None:
    ax = CASES["calibrated"]().plot_roofline()
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert len(points) == len([e for e in CASES["calibrated"]().events if e.work.flop])
    for point in points:
        (x,), (y,) = point.get_data()
        assert y <= min(989.4e12, x * 3.35e12) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("case", "size"), [*((case, None) for case in CASES), ("overlapped", (3, 2)), ("8b", (3, 2))]
)
def test_waterfalls_are_legible_and_add_up(case: str, size: tuple[float, float] | None) -> None:
    timeline = CASES[case]()
    ax = plots.waterfall(timeline, given(*size) if size else None)
    assert_legible(ax)
    *parts, total = (bar.get_width() for bar in ax.patches)  # type: ignore[attr-defined]
    assert sum(parts) == pytest.approx(total)


def test_a_waterfall_counts_what_is_exposed() -> None:
    words = [text.get_text() for text in plots.waterfall(overlapped(), given(8, 3)).texts]
    # 80 layers of 12 + 8 µs; 28.3 µs and 35 besides; 12 − 8 µs; 7.7 µs; the copy is hidden
    for told in (
        "compute-limited 1.6 ms",
        "memory-limited 2.3 ms",
        "exposed network bandwidth 320 µs",
        "exposed network latency 616 µs",
        "total 4.83 ms",
    ):
        assert any(told in word for word in words), (told, words)


@pytest.mark.parametrize("size", [None, (3, 2), (12, 3)])
@pytest.mark.parametrize("tp", [1, 8])
def test_memory_says_whether_it_fits(tp: int, size: tuple[float, float] | None) -> None:
    made = report(tp=tp)
    ax = plots.memory(made, given(*size, layout="constrained") if size else None)
    assert_legible(ax)
    legend = ax.get_legend()
    assert legend is not None
    told = [text.get_text() for text in legend.get_texts()]
    assert any("too much" in word for word in told) == (tp == 1)
    assert ("does not fit" in ax.get_title(loc="left").replace("\n", " ")) == (tp == 1)
    held = sum(bar.get_width() for bar in ax.patches[:3])  # type: ignore[attr-defined]
    assert held * 1e9 == pytest.approx(made.memory.total)


def test_many_design_points_are_refused() -> None:
    made = report(batch=np.arange(1, 4))
    draw: list[Callable[[], Axes]] = [
        made.decode.plot,
        made.decode.plot_roofline,
        lambda: plots.waterfall(made.decode),
        lambda: plots.memory(made),
    ]
    for plot in draw:
        with pytest.raises(SpecError, match=r"at\(index\)") as error:
            plot()
        assert "\n" not in str(error.value)


def test_rooflines_need_a_chip() -> None:
    with pytest.raises(SpecError, match="no chip"):
        overlapped().plot_roofline()
