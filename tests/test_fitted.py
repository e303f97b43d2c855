"""Levels of fidelity: operators priced by fitted kernels."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hardware
from frontends import load_model
from hardware import SpecError, load_chip, load_platform
from opgraph import Plan, Workload, shapes, simulate
from opgraph.cost import LEVELS, LIMITERS, cost_model
from opgraph.kernels import (
    KERNELS,
    CollectiveShape,
    GemmShape,
    kernel_chip,
    load_calibration,
    price,
)
from opgraph.kernels.kernel import Limiter

FITTED = LEVELS[1:]
FOLDER = Path(hardware.__file__).parent / "data" / "calibration"
MEASURED = ["dgx-a100", "dgx-h100", "dgx-h200", "dgx-b200", "gb200-nvl72"]
MODELS = ["llama-3.1-8b", "gemma-2-27b", "mixtral-8x7b", "deepseek-v3", "qwen3-next-80b-a3b",
          "mamba2-2.7b", "gpt-oss-20b"]  # fmt: skip


def step(model="llama-3.1-8b", platform="dgx-h100", tp=2, cost="corrected", **work):
    return simulate(
        load_model(model), load_platform(platform), Plan(tp=tp), Workload(**work), cost=cost
    )


def test_limiters_are_those_of_the_kernels():
    words = [limiter.name.lower().replace("_", " ") for limiter in Limiter]
    # what is fetched from a farther tier is no kernel
    assert (*words, "tier bandwidth") == LIMITERS


@pytest.mark.parametrize("level", FITTED)
@pytest.mark.parametrize("model", MODELS)
def test_every_family_has_a_time_and_an_interval(model, level):
    report = step(model, cost=level, batch=8, prompt=512)
    for timeline in (report.prefill, report.decode):
        assert 0 < timeline.time < math.inf
        low, high = timeline.interval
        assert 0 < low <= timeline.time <= high < math.inf
        for row in timeline.rows():
            assert 0 <= row["low_us"] <= row["high_us"] < math.inf
            assert row["limiter"] in LIMITERS
            assert row["provenance"]


@pytest.mark.parametrize("platform", MEASURED)
def test_what_is_fitted_is_slower_than_the_ideal(platform):
    times = {level: step(platform=platform, cost=level, batch=16).tpot for level in LEVELS}
    assert all(times["ideal"] < times[level] < 8 * times["ideal"] for level in FITTED)


def test_results_say_what_they_rest_on():
    report = step(batch=4)
    assert report.to_dict()["cost_model"] == "corrected"
    kinds = {row["kind"]: row["provenance"] for row in report.decode.rows()}
    assert kinds["gemm"] == kinds["attention"] == kinds["all_reduce"] == "measured"
    assert {row["provenance"] for row in step(cost="ideal").decode.rows()} == {"ideal"}


def test_a_mixture_of_experts_is_one_kernel():
    rows = {row["name"]: row for row in step("mixtral-8x7b", batch=8).decode.rows()}
    assert rows["layer.dispatch"]["time_us"] == rows["layer.combine"]["time_us"] == 0
    up, down = (rows[f"layer.experts_{part}"]["time_us"] for part in ("gate_up", "down"))
    # gate and up are two of the three matrices
    assert up == pytest.approx(2 * down, rel=1e-9)


@pytest.mark.parametrize("level", FITTED)
def test_arrays_give_what_each_point_gives(level):
    batch = np.array([1, 5, 33, 200])
    grid = step(cost=level, batch=batch, prompt=700, output=9)
    for index, size in enumerate(batch):
        one = step(cost=level, batch=int(size), prompt=700, output=9)
        assert grid.ttft[index] == pytest.approx(one.ttft, rel=1e-9)
        assert grid.tpot[index] == pytest.approx(one.tpot, rel=1e-4)


def test_one_chip_talks_to_nobody_also_in_arrays():
    plan = np.array([1, 2])
    both = simulate(
        load_model("llama-3.1-8b"), load_platform("dgx-h100"), Plan(tp=plan), cost="tiled"
    )
    assert both.tpot[0] == pytest.approx(step(tp=1, cost="tiled").tpot, rel=1e-6)


def test_more_bandwidth_is_not_slower():
    rates = np.geomspace(1e12, 10e12, 7)
    report = simulate(
        load_model("llama-3.1-8b"),
        load_platform("dgx-h100").with_chip(memory_bandwidth=rates),
        cost="tiled",
    )
    assert np.all(np.diff(report.tpot) <= 1e-12)


@pytest.mark.parametrize(
    ("name", "host", "kind", "book"),
    [
        ("l4", True, "gemm", "transfer-gddr"),  # Ada with GDDR, as the L40S
        ("a100-pcie-80gb", True, "gemm", "transfer"),  # stacked memory
        ("a100-pcie-80gb", True, "all_to_all", "transfer-gddr"),  # links past a host
        ("mi300x", False, "all_to_all", "transfer"),
        ("h100-sxm", False, "all_to_all", "h100-sxm"),
        ("h100-sxm", True, "all_to_all", "transfer-gddr"),  # which nobody measured on it
    ],
)
def test_what_nobody_measured_is_taken_from_chips_of_its_kind(name, host, kind, book):
    where = load_platform("dgx-h100")
    level = where.levels[0]
    link = replace(level.link, through_host=host)
    where = replace(where, chip=load_chip(name), levels=(replace(level, link=link),))
    # a collective of four chips that engines have no kernel of their own for
    size = {"m": [512], "n": [512], "k": [512]} if kind == "gemm" else {
        "chips": [4], "bytes": [2**30]}  # fmt: skip
    found = shapes.price(kind, size, where, cost_model("tiled"))
    fits = load_calibration(FOLDER / f"{book}.toml", KERNELS)
    if kind == "gemm":
        fit, shape = fits["gemm", "bf16"], GemmShape(512.0, 512.0, 512.0)
    else:
        fit = fits["all_to_all", "any"]
        shape = CollectiveShape(2.0**30, 4.0, link.bandwidth, "all_to_all", host)
    time = price(KERNELS[kind], shape, kernel_chip(where.chip), "tiled", fit).time
    assert found["time_us"][0] == pytest.approx(1e6 * time, rel=1e-9)
    words = "measured" if book == name else "transferred"
    assert found["provenance"] == [words]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("GDDR6", True), ("gddr6x", True), ("24 GB of GDDR7", True), ("HBM3", False)],
)
def test_a_memory_says_in_its_name_that_it_is_gddr(name, expected):
    chip = load_chip("l4")
    chip = replace(chip, memory=(replace(chip.memory[0], name=name),), energy=None)
    assert kernel_chip(chip).has_gddr == expected


def test_figures_that_nobody_measured_are_not_called_measured():
    asked = {"m": [64], "n": [4096], "k": [4096]}
    sold, changed = load_platform("dgx-h100"), load_platform("dgx-h100").with_chip(clock="1 GHz")
    one, other = (shapes.price("gemm", asked, where, cost_model("corrected"))
                  for where in (sold, changed))  # fmt: skip
    assert one["provenance"] == ["measured"]
    assert other["provenance"] == ["transferred from other figures"]
    width = [math.log(found["high_us"][0] / found["low_us"][0]) for found in (one, other)]
    assert width[1] > 1.5 * width[0]
    sent = {"chips": [4], "bytes": [2**20]}
    links = sold.with_link("node", bandwidth="100 GB/s")
    for where, words in ((changed, "measured"), (links, "transferred from other links")):
        found = shapes.price("all_to_all", sent, where, cost_model("corrected"))
        assert found["provenance"] == [words]


def test_in_a_sweep_only_the_changed_points_are_less_sure():
    sold = load_chip("h100-sxm").memory_bandwidth
    rates = np.array([sold, 2 * sold])
    many = simulate(
        load_model("llama-3.1-8b"),
        load_platform("dgx-h100").with_chip(memory_bandwidth=rates),
        cost="corrected",
    )
    for index, rate in enumerate(rates):
        where = load_platform("dgx-h100").with_chip(memory_bandwidth=float(rate))
        one = simulate(load_model("llama-3.1-8b"), where, cost="corrected")
        ends = [end[index] for end in many.tpot_interval]
        assert ends == pytest.approx(list(one.tpot_interval), rel=1e-4)


def test_no_product_may_outrun_its_roofline_but_where_a_cache_lets_it():
    sizes = {"m": [1, 16, 512, 4096], "n": [8192] * 4, "k": [8192] * 4, "dtype": ["fp8"] * 4}
    ideal, found = (shapes.price("gemm", sizes, load_platform("l4:1"), cost_model(level))
                    for level in ("ideal", "tiled"))  # fmt: skip
    floor = np.minimum(found["time_us"], ideal["time_us"])
    assert np.all(np.array(found["low_us"]) >= floor * (1 - 1e-12))
    assert np.any(np.array(found["low_us"]) == floor)


def test_a_chip_that_nobody_measured_says_so():
    report = step(platform="mi300x-platform")
    words = {row["provenance"] for row in report.decode.rows()}
    assert "measured" not in words


@pytest.mark.parametrize(
    ("model", "words"),
    [("deepseek-v3", "measured"), ("glm-5", "transferred from other head sizes")],
)
def test_latent_attention_of_other_sizes_than_measured_says_so(model, words):
    expanded = load_model(model, absorb=False)
    report = simulate(expanded, load_platform("dgx-h200"), Plan(tp=8), cost="corrected")
    rows = {row["kind"]: row for row in report.prefill.rows()}
    assert rows["attention"]["provenance"] == words


def test_latent_attention_is_priced_at_its_own_sizes():
    """Keys of 192 + 64 and values of 256 are 1.6 times the FLOP of 128 + 64 and 128."""
    asked = {"phase": ["prefill"], "batch": [4], "seq": [8192], "heads": [16]}
    where = load_platform("dgx-h200")
    ours, theirs = (
        shapes.price("mla", {**asked, **sizes}, where, cost_model("tiled"))
        for sizes in ({}, {"nope": [192], "value_dim": [256]})
    )
    assert theirs["flop"][0] / ours["flop"][0] == pytest.approx((192 + 64 + 256) / (192 + 128))
    assert 1.4 < theirs["time_us"][0] / ours["time_us"][0] < 1.9
    assert (ours["provenance"], theirs["provenance"]) == (
        ["measured"], ["transferred from other head sizes"])  # fmt: skip
    width = [math.log(found["high_us"][0] / found["low_us"][0]) for found in (ours, theirs)]
    assert width[1] > width[0]


def test_a_product_narrower_than_the_chip_multiplies_is_unpacked_to_16_bits():
    """As engines do: the activation stays in 16 bits, the weights keep their four."""
    shape = {"m": [4096], "n": [8192], "k": [8192]}
    cost = cost_model("ideal")
    hopper, blackwell = load_platform("dgx-h100"), load_platform("dgx-b200")
    narrow, wide = (
        shapes.price("gemm", {**shape, "dtype": [dtype]}, hopper, cost)
        for dtype in ("nvfp4", "bf16")
    )
    assert narrow["time_us"] == wide["time_us"]
    assert narrow["bytes"][0] == 2 * 2 * 4096 * 8192 + 8192 * 8192 * 0.5625
    native = shapes.price("gemm", {**shape, "dtype": ["nvfp4"]}, blackwell, cost)
    seconds = 2 * 4096 * 8192 * 8192 / blackwell.chip.peak("fp4")
    assert native["time_us"][0] == pytest.approx(1e6 * seconds)
    fitted = shapes.price("gemm", {**shape, "dtype": ["nvfp4"]}, hopper, cost_model("tiled"))
    assert "bf16" in fitted["provenance"][0] or "w4a16" in fitted["provenance"][0]


def test_a_layer_of_experts_is_priced_as_in_a_model():
    """`op moe` and the two products of DeepSeek-V3's layer are one kernel."""
    rows = {
        row["name"]: row for row in step("deepseek-v3", "dgx-h200", tp=8, batch=64).decode.rows()
    }
    inside = sum(rows[f"layers3-60.experts_{part}"]["time_us"] for part in ("gate_up", "down"))
    found = shapes.price(
        "moe", {"tokens": [64], "hidden": [7168], "ffn": [2048], "experts": [256], "topk": [8],
                "tp": [8], "dtype": ["fp8-block"]}, load_platform("dgx-h200"),
        cost_model("corrected"),
    )  # fmt: skip
    assert found["time_us"][0] == pytest.approx(inside, rel=1e-6)
    assert found["flop"][0] == 3 * 2 * 64 * 8 * 7168 * 2048 / 8
    assert found["provenance"] == ["measured"]


def test_experts_dealt_out_to_more_chips_take_less_each():
    shape = {"tokens": [4096] * 3, "hidden": [7168] * 3, "ffn": [2048] * 3, "experts": [256] * 3,
             "topk": [8] * 3, "ep": [1, 8, 64]}  # fmt: skip
    for cost in ("ideal", "corrected"):
        found = shapes.price("moe", shape, load_platform("dgx-h200"), cost_model(cost))
        assert found["time_us"] == sorted(found["time_us"], reverse=True)


def test_an_unknown_level_is_refused():
    with pytest.raises(SpecError, match="did you mean 'tiled'"):
        step(cost="tile")


def test_every_kernel_is_declared():
    assert {"gemm", "attention_prefill", "attention_decode", "moe", "all_reduce"} <= set(KERNELS)


def test_rows_go_to_their_experts_by_kernels_made_for_that():
    """An exchange in a decode step is the low-latency kernel's, in a prefill the other's."""
    report = simulate(
        load_model("deepseek-v3"), load_platform("dgx-h200"), Plan(ep=8), Workload(batch=256),
        cost="tiled",
    )  # fmt: skip
    for timeline in (report.prefill, report.decode):
        found = {e.algorithm: float(e.time) for e in timeline.events if e.kind == "all_to_all"}
        assert set(found) == {"dispatch", "combine"}
    few = [e for e in report.decode.events if e.kind == "all_to_all"]
    # 32 tokens a chip: DeepEP's low-latency kernels take tens of microseconds (its README, 2025)
    assert all(1e-5 < float(e.time) < 2e-4 for e in few)


@pytest.mark.parametrize("name", ["boost", "clock", "cores", "exponentials", "memory_bandwidth"])
def test_figures_of_a_chip_may_be_arrays(name):
    platform = load_platform("dgx-h200")
    figure = getattr(platform.chip, name)
    model = load_model("llama-3.1-8b")
    plan, work = Plan(tp=2), Workload(batch=8)
    many = simulate(model, platform.with_chip(**{name: figure * np.array([1.0, 1.5])}), plan, work,
                    cost="corrected")  # fmt: skip
    alone = simulate(model, platform, plan, work, cost="corrected")
    assert many.tpot[0] == pytest.approx(alone.tpot, rel=1e-9)
    assert many.ttft[0] == pytest.approx(alone.ttft, rel=1e-9)


def test_collectives_ask_the_link_that_they_cross_whether_it_passes_a_host():
    server = load_platform("l40s-server")
    fabric = server.with_level("node", size=1).replicate(8)  # one card in each node
    work, model = Workload(batch=1, prompt=8192), load_model("llama-3.1-8b")
    inside, across = (simulate(model, each, Plan(tp=8), work, cost="tiled").prefill
                      for each in (server, fabric))  # fmt: skip
    slow, fast = (
        sum(row["time_us"] for row in each.rows() if row["kind"] == "all_reduce")
        for each in (inside, across)
    )
    # eight cards share one host's bridges, and none the ports of eight nodes
    assert slow > 3 * fast
