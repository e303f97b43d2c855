"""Physical sense of every fitted kernel: more chip is never slower, ideal is a floor."""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import hardware
from hardware import SpecError, load_chip
from opgraph.kernels import (
    KERNELS,
    AttentionShape,
    CollectiveShape,
    DispatchShape,
    GemmShape,
    LinearShape,
    MlaShape,
    Routing,
    StreamShape,
    declared,
    interval,
    kernel_chip,
    load_calibration,
    price,
    route,
)
from opgraph.kernels.interval import widened
from opgraph.kernels.kernel import Limiter, soft_max

FOLDER = Path(hardware.__file__).parent / "data" / "calibration"
TRACES = Path(__file__).parents[1] / "validation" / "traces"
# A GEMM's k is split so that the parts fill the cores: with more cores there are more parts, and
# for few small shapes their merging costs more than they save. Measured on 20,000 shapes and five
# chips: at most 2.7 %, and over half a percent in four shapes of a thousand.
SPLIT_STEP, SPLIT_STEP_SELDOM, SELDOM = 0.03, 0.005, 0.01
ROUNDING = 1e-6
N = 400
TYPICAL = {"transfer": "h100-sxm", "transfer-gddr": "l40s"}  # chips of the kinds


def chip_of(name):
    """A chip of the catalogue, or the machine that steps were captured on."""
    own = TRACES / f"{name}.toml"
    return kernel_chip(load_chip(str(own) if own.exists() else name))


def sizes(rng, low, high):
    """Sizes at random on a log scale."""
    return np.round(np.exp(rng.uniform(np.log(low), np.log(high), N)))


def gemms(op, rng, link):
    return GemmShape(sizes(rng, 1, 32768), sizes(rng, 128, 65536), sizes(rng, 128, 65536))


def attentions(op, rng, link):
    context = sizes(rng, 16, 65536)
    prefill = op.endswith("prefill")
    # every fourth prompt follows what is cached, and every fourth layer has a window
    seq = np.where(rng.random(N) < 0.25, sizes(rng, 1, 16), context) if prefill else np.ones(N)
    kv = 2 ** rng.integers(0, 4, N) * 1.0
    size = rng.choice([64.0, 96.0, 128.0, 192.0, 256.0], N)
    window = np.where(rng.random(N) < 0.25, sizes(rng, 64, 8192), 0.0)
    return AttentionShape(sizes(rng, 1, 64), seq, context, kv * sizes(rng, 1, 8), kv, size, window)


def latents(op, rng, link):
    context = sizes(rng, 16, 32768)
    seq = context if op.endswith("prefill") else np.ones(N)
    return MlaShape(sizes(rng, 1, 64), seq, context, 2 ** rng.integers(0, 8, N) * 1.0)


def experts(op, rng, link):
    count = 2 ** rng.integers(5, 9, N) * 1.0
    tokens, hidden, ffn = sizes(rng, 1, 16384), sizes(rng, 1024, 8192), sizes(rng, 256, 4096)
    return route(tokens, hidden, ffn, Routing(count, 8.0, 2 ** rng.integers(0, 5, N) * 1.0))


def exchanges(op, rng, link):
    return DispatchShape(sizes(rng, 1, 65536), 7168.0, 8.0, 8.0, link)


def streams(op, rng, link):
    return StreamShape(sizes(rng, 1, 65536), sizes(rng, 128, 65536))


def scans(op, rng, link):
    return LinearShape(sizes(rng, 1, 64), sizes(rng, 1, 8192), 16.0, 32.0, 128.0, 128.0)


def collectives(op, rng, link):
    operation = "all_reduce" if op == "custom_all_reduce" else op
    return CollectiveShape(sizes(rng, 256, 1e9), rng.choice([2.0, 4.0, 8.0], N), link, operation)


SHAPES = {
    "gemm": gemms, "moe": experts, "dispatch": exchanges, "combine": exchanges,
    "quantise": streams, **dict.fromkeys(("attention_prefill", "attention_decode"), attentions),
    **dict.fromkeys(("mla_prefill", "mla_decode"), latents),
    **dict.fromkeys(("gdn_chunk", "gdn_recurrent", "conv1d", "conv1d_update"), scans),
}  # fmt: skip


def shape_of(op, form, chip):
    """Random shapes of an operator class, always the same."""
    shape = SHAPES.get(op, collectives)(op, np.random.default_rng(0), chip.link_bandwidth)
    if "through_host" in shape._fields:  # what a chip's fit was made for
        shape = shape._replace(through_host=chip.through_host)
    return shape._replace(dtype=form) if op in ("gemm", "moe") else shape


@cache
def calibration(name):
    return load_calibration(FOLDER / f"{name}.toml", KERNELS)


def cases():
    """Every calibrated (file, chip, class, format)."""
    return [
        (path.stem, TYPICAL.get(path.stem, path.stem), op, form)
        for path in sorted(FOLDER.glob("*.toml"))
        for op, form in calibration(path.stem)
    ]


def more(chip, name):
    """The chip with a quarter more of one thing, the rates per core unchanged."""
    changes = {}
    if name in ("matrix", "cores"):
        changes["matrix"] = {key: 1.25 * value for key, value in chip.matrix.items()}
    if name == "cores":
        changes["vector"] = 1.25 * chip.vector
    if name != "matrix":
        changes[name] = 1.25 * getattr(chip, name)
    return replace(chip, **changes)


@pytest.mark.parametrize(("book", "name", "op", "form"), cases())
@pytest.mark.parametrize("part", ["matrix", "memory_bandwidth", "cores"])
def test_more_is_never_slower(book, name, op, form, part):
    chip, fit = chip_of(name), calibration(book)[op, form]
    shape = shape_of(op, form, chip)
    before = price(KERNELS[op], shape, chip, "tiled", fit).time
    after = price(KERNELS[op], shape, more(chip, part), "tiled", fit).time
    loss = np.asarray(after / before - 1)
    if op == "gemm" and part == "cores":
        assert loss.max() <= SPLIT_STEP
        assert np.mean(loss > SPLIT_STEP_SELDOM) <= SELDOM
    else:
        assert loss.max() <= ROUNDING


@pytest.mark.parametrize(("book", "name", "op", "form"), cases())
def test_ideal_is_a_floor_and_results_are_finite(book, name, op, form):
    chip, fit = chip_of(name), calibration(book)[op, form]
    shape = shape_of(op, form, chip)
    ideal = price(KERNELS[op], shape, chip, "ideal", fit).time
    # a cache too small to hide memory traffic
    bare = replace(chip, cache=replace(chip.cache, capacity=1e4))
    for level in ("calibrated", "tiled", "corrected"):
        time = np.asarray(price(KERNELS[op], shape, bare, level, fit).time)
        assert np.all(np.isfinite(time) & (time > 0))
        assert np.mean(time < 0.8 * ideal) < 0.02, level


def by_octaves(fit, op, octaves):
    """The band of larger shapes, so far outside."""
    bands = fit.bands[KERNELS[op].level("corrected")]
    return widened(bands, np.array([2]), np.array([octaves]))


@pytest.mark.parametrize(("book", "name", "op", "form"), cases())
def test_intervals_hold_a_time_and_widen_outside_what_was_fitted(book, name, op, form):
    chip, fit = chip_of(name), calibration(book)[op, form]
    low, high = interval(KERNELS[op], shape_of(op, form, chip), chip, "corrected", fit)
    assert np.all(np.asarray(low) > 0)
    assert np.all(low <= high)
    assert fit.bands.keys() >= {level for level in KERNELS[op].levels if level != "ideal"}
    for by_relation in fit.bands.values():
        for band in by_relation.values():
            assert 0 < band.low <= 1 <= band.high
    if fit.seen is not None:
        known, far = (by_octaves(fit, op, octaves) for octaves in (0.0, 3.0))
        assert np.all(far.low <= known.low)
        assert np.all(far.high >= known.high)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_parameters_are_within_their_physical_bounds(path):
    for (op, form), fit in calibration(path.stem).items():
        for p in declared(KERNELS[op].parameters):
            value = getattr(fit.tiled, p.name)
            assert p.lower * 0.999 <= value <= p.upper * 1.001, (op, form, p.name)
        assert fit.provenance.startswith(("measured: ", "transferred: "))


@pytest.mark.parametrize("name", ["l40s", "rtx-pro-6000"])
@pytest.mark.parametrize("op", ["all_reduce", "all_to_all", "custom_all_reduce"])
def test_chips_that_share_a_host_slow_each_other_but_not_a_pair(name, op):
    chip, form = chip_of(name), "bf16" if op == "custom_all_reduce" else "any"
    fit = calibration(name)[op, form]
    shape = shape_of(op, form, chip)._replace(through_host=True)
    roomy = replace(fit, tiled=replace(fit.tiled, shared=10 * fit.tiled.shared))
    for chips in (2.0, 4.0, 8.0):
        now, then = (price(KERNELS[op], shape._replace(chips=chips), chip, "tiled", each).time
                     for each in (fit, roomy))  # fmt: skip
        assert np.all(then <= now)
        assert np.array_equal(then, now) == (chips == 2)


def test_links_past_no_host_are_not_shared():
    chip, fit = chip_of("h100-sxm"), calibration("h100-sxm")["all_reduce", "any"]
    shape = shape_of("all_reduce", "any", chip)._replace(chips=8.0)
    alone, hosted = (price(KERNELS["all_reduce"], shape._replace(through_host=host), chip,
                           "tiled", fit).time for host in (False, True))  # fmt: skip
    assert np.all(alone < hosted)


def test_kernels_start_at_the_highest_clock_and_the_ideal_keeps_to_the_datasheet():
    chip = kernel_chip(load_chip("h100-sxm"))
    assert chip.matrix["bf16"] == 989.4e12
    # 132 cores of 4096 FLOP per clock at 1980 MHz
    assert chip.rate("bf16") == pytest.approx(132 * 4096 * 1.98e9, rel=1e-3)
    assert chip.clock == pytest.approx(1.98e9, rel=1e-3)


def test_two_equal_times_overlap_the_better_the_longer_they_are():
    times = np.array([0.0, 1e-6, 3e-6, 1e-3])
    assert soft_max(1.0, 1.0, 2.0) == pytest.approx(math.sqrt(2))
    joined = soft_max(times, times, 2.0, settle=1e-6)
    # at `settle` the exponent is 2 √2, at three times it 2 √4
    assert joined[:3] == pytest.approx([0, 1e-6 * 2 ** (1 / math.sqrt(8)), 3e-6 * 2**0.25])
    assert joined[3] < 1.02 * times[3]


def test_choices_of_other_ranks_cost_nothing_on_one_and_a_pass_each_on_several():
    chip, kernel = kernel_chip(load_chip("h200-sxm")), KERNELS["moe"]
    start = kernel.parameters()
    shape = route(4096.0, 7168.0, 2048.0, Routing(256.0, 8.0, np.array([1.0, 8.0])))
    none = kernel.tiled(shape, chip, replace(start, foreign_rate=math.inf)).time
    some = kernel.tiled(shape, chip, replace(start, foreign_rate=0.5)).time
    # up and gate out, activation in and out of the product, hidden in and out: 2 bytes each
    passed = 2 * (4096 * 8 * 7 / 8) * (2 * 2048 + 2048 + 2 * 7168) / (0.5 * chip.memory_bandwidth)
    assert some - none == pytest.approx([0, passed], rel=1e-9)
    every = kernel.tiled(shape, chip, replace(start, foreign_products=1.0)).time
    fewer = kernel.tiled(shape, chip, replace(start, foreign_products=1e-3)).time
    assert every[0] == fewer[0]
    assert every[1] > fewer[1]


def tiled(op, shape, name="h200-sxm", **changes):
    """A kernel's time with the starts of its parameters, but for some."""
    kernel = KERNELS[op]
    chip = name if not isinstance(name, str) else kernel_chip(load_chip(name))
    return kernel.tiled(shape, chip, replace(kernel.parameters(), **changes)).time


def test_prefill_has_a_kernel_for_each_head_size():
    shape = AttentionShape(16.0, 8192.0, 8192.0, 64.0, 64.0, np.array([64.0, 96.0, 128.0]))
    whole = tiled("attention_prefill", shape)
    chip = kernel_chip(load_chip("h200-sxm"))
    swift = replace(chip, exponentials=1e3, memory_bandwidth=1e15)
    free = {"tile": 1e-8, "launch": 5e-7, "throttle": 1e-4}
    # long prompts wait for the products alone: twice as long at half the speed, and between the
    # two sizes at three quarters of it
    half = tiled("attention_prefill", shape, swift, compute_64=0.5, **free)
    quick = tiled("attention_prefill", shape, swift, **free)
    assert half / quick == pytest.approx([2, 4 / 3, 1], rel=0.01)
    assert np.all(whole >= quick)
    slow = tiled("attention_prefill", shape, tile_64=3.0)
    assert slow[0] > whole[0]
    assert slow[2] == whole[2]


def test_prefill_tiles_are_as_high_as_the_matrix_instructions_make_them():
    chip = kernel_chip(load_chip("h200-sxm"))
    shape = AttentionShape(64.0, np.array([64.0, 65.0, 129.0]), 8192.0, 64.0, 64.0, 128.0)
    shape = shape._replace(context=shape.seq)
    parts = {"tile": 2e-5, "padding": 1e-3, "written": 0.01}
    wide = tiled("attention_prefill", shape, chip, **parts)
    low = tiled("attention_prefill", shape, replace(chip, matrix_rows=16.0), **parts)
    # tiles of 128 rows, or of 64 that end in half the time: 65 rows need two of those
    assert wide[1] / wide[0] < 1.1
    assert low[1] / low[0] > 1.8
    assert wide[2] / wide[1] > 1.8
    assert low[1] == pytest.approx(wide[1], rel=0.1)


def test_short_rows_share_a_tile_of_twice_the_height():
    chip = replace(kernel_chip(load_chip("l40s")), matrix_rows=16.0)
    shape = AttentionShape(1.0, 128.0, 128.0, 8.0, 8.0, np.array([64.0, 128.0]))
    halves, shorts = (KERNELS["attention_prefill"].features(shape._replace(dtype=form), chip)
                      for form in ("bf16", "fp8"))  # fmt: skip
    # 64 numbers of a byte are the short row: one tile of 128 rows where others take two
    assert list(halves["waves"] - shorts["waves"]) == [1, 0]


def test_prefill_writes_what_is_new_at_the_rate_of_its_passes():
    chip = kernel_chip(load_chip("h200-sxm"))
    shape = AttentionShape(4.0, 256.0, 256.0, 32.0, 8.0, 128.0)
    once, twice = (
        tiled("attention_prefill", shape, chip, written=w, pass_rate=0.5) for w in (1, 2)
    )
    # queries, keys and values of 1024 tokens in 16 bits, read and written
    moved = 2 * 2 * 1024 * (32 + 2 * 8) * 128
    assert twice - once == pytest.approx(moved / (0.5 * chip.memory_bandwidth), rel=1e-9)


def test_a_window_costs_at_its_edges_and_not_where_it_sees_all():
    full = AttentionShape(8.0, 4096.0, 4096.0, 32.0, 8.0, 128.0, np.array([0.0, 4096.0, 1024.0]))
    plain, masked = (tiled("attention_prefill", full, masked=m) for m in (1.0, 3.0))
    assert masked[:2] == pytest.approx(plain[0], rel=1e-12)
    assert masked[2] > 1.1 * plain[2]
    features = KERNELS["attention_prefill"].features(full, kernel_chip(load_chip("h200-sxm")))
    assert list(features["window"] > 0) == [False, False, True]


def test_decode_latencies_are_in_clocks_and_small_groups_have_their_own_tile():
    chip = kernel_chip(load_chip("h200-sxm"))
    short = AttentionShape(1.0, 1.0, 16.0, 8.0, 8.0, 128.0)
    slow = replace(chip, clock=chip.clock / 2, boost=chip.boost)
    bare = {"core_rate": 1.0, "memory_efficiency": 1.05, "write_rate": 50.0}
    ratio = tiled("attention_decode", short, slow, **bare) / tiled("attention_decode", short, chip,
                                                                   **bare)  # fmt: skip
    assert ratio == pytest.approx(2, rel=0.01)
    many = AttentionShape(4096.0, 1.0, 16.0, np.array([24.0, 32.0]), 8.0, 128.0)
    some, few = (tiled("attention_decode", many, few=f) for f in (1.0, 0.1))
    assert few[0] < 0.7 * some[0]  # three heads for each KV head
    assert few[1] == some[1]


@pytest.mark.parametrize("op", ["attention_decode", "mla_decode"])
def test_a_model_reads_each_layers_cache_from_memory(op):
    sizes = (8.0, 1.0, 4096.0, 64.0)
    shape = MlaShape(*sizes) if op == "mla_decode" else AttentionShape(*sizes, 8.0, 128.0)
    chip = kernel_chip(load_chip("l40s"))
    roomy = replace(chip, cache=replace(chip.cache, capacity=1e12))
    nbytes = 8 * 4096 * (576 if op == "mla_decode" else 2 * 8 * 128) * 2
    slow = {"memory_efficiency": 0.5, "cache_bandwidth": 50.0, "sharpness": 12.0,
            "compute_efficiency": 1.2, "core_rate": 1.0, "block": 10.0, "miss": 20.0,
            "launch": 1.0, "tile": 1.0, "merge": 1.0, "write_rate": 50.0}  # fmt: skip
    one, few, many = (tiled(op, shape._replace(copies=copies), roomy, **slow)
                      for copies in (1.0, 4.0, np.inf))  # fmt: skip
    assert one == few < many
    # all of it at half of memory's bandwidth, and little else
    assert many == pytest.approx(nbytes / (0.5 * chip.memory_bandwidth), rel=0.02)
    assert one < 0.5 * many
    # what does not fit L2 is read from memory anyway
    bare = replace(chip, cache=replace(chip.cache, capacity=1e5))
    one, many = (tiled(op, shape._replace(copies=copies), bare, **slow) for copies in (1.0, np.inf))
    assert one == pytest.approx(many, rel=1e-6)


def test_latent_decode_pays_for_parts_without_work_and_for_narrow_tiles_apart():
    chip = kernel_chip(load_chip("h200-sxm"))
    shape = MlaShape(512.0, 1.0, 8192.0, np.array([16.0, 64.0]))
    calm = {"sharpness": 12.0, "narrow_rows": 1e5}
    near = replace(chip, memory_bandwidth=1e3 * chip.memory_bandwidth)
    some, none = (tiled("mla_decode", shape, near, idle=clocks, **calm) for clocks in (1e6, 100.0))
    # so much of a core's time for each narrow tile
    idle = 512 * np.array([1.0, 4.0]) / chip.cores * (1e6 - 100) / chip.clock
    assert some - none == pytest.approx(idle, rel=1e-3)
    once, again = (tiled("mla_decode", shape, chip, apart=part, **calm) for part in (1e-3, 1.0))
    assert once[0] == again[0]  # one tile reads the cache once
    assert again[1] > 1.5 * once[1]


def test_latent_decode_chooses_its_kernel_by_padded_heads():
    shape = MlaShape(256.0, 1.0, 4096.0, np.arange(17.0, 33.0))
    times = tiled("mla_decode", shape, narrow_rows=25.0)
    assert times.max() / times.min() < 1.2


def test_exchanges_of_few_tokens_take_time_by_their_width():
    shape = DispatchShape(1.0, np.array([2048.0, 8192.0]), 8.0, 8.0, 450e9)
    wide = tiled("combine", shape, row=1e-9, least=1e-8, sharpness=12.0)
    thin = tiled("combine", shape, row=1e-13, least=1e-8, sharpness=12.0)
    assert wide[1] - wide[0] == pytest.approx(6144 * 2 * 1e-9, rel=0.05)
    assert thin[1] - thin[0] < 1e-6


def test_no_bulk_transfer_outruns_its_links():
    shape = CollectiveShape(1e11, np.array([8.0, 72.0, 512.0]), 100e9, "all_gather")
    times = tiled("all_gather", shape, growth=0.5, bulk_efficiency=0.9)
    assert np.all(times > 1e11 / 100e9 * (shape.chips - 1) / shape.chips)


def test_behind_a_host_all_but_a_pair_share_its_bridges():
    chips = np.array([2.0, 4.0, 8.0])
    shape = CollectiveShape(1e9, chips, 32e9, "all_gather", through_host=True)
    bare = {"growth": 1e-3, "pipeline": 0.01, "quick_efficiency": 1e-2}
    alone = tiled("all_gather", shape._replace(through_host=False), **bare)
    crowded = tiled("all_gather", shape, shared=0.1, **bare)
    assert crowded[0] == pytest.approx(alone[0], rel=1e-9)
    # two chips more than a pair, then six, ask for a tenth of a link
    bridges = np.array([2.0, 6.0]) / 0.1 * 1e9 * (1 - 1 / chips[1:]) / 32e9
    # beside a chip's own path, which takes as long as its part of the link
    own = alone[1:] / bridges
    assert crowded[1:] == pytest.approx(bridges * (1 + own**1.5) ** (1 / 1.5), rel=0.02)


def test_bridges_as_long_as_the_own_path_join_it_by_their_exponent():
    shape = CollectiveShape(1e9, 4.0, 32e9, "all_gather", through_host=True)
    plain = {"pipeline": 0.01, "quick_efficiency": 5e-3, "bulk_efficiency": 0.8, "launch": 2e-7}
    # two links' worth beyond a pair over 1.6 are as long as a link at 0.8
    own = 0.75e9 / 32e9 / 0.8
    time = tiled("all_gather", shape, shared=1.6, growth=1e-3, **plain)
    assert time == pytest.approx(own * 2 ** (1 / 1.5), rel=2e-3)
    few = replace(kernel_chip(load_chip("l40s")), link_bandwidth=32e9)
    limiter = (
        KERNELS["all_gather"]
        .tiled(shape, few, replace(KERNELS["all_gather"].parameters(), shared=0.05, **plain))
        .limiter
    )
    assert limiter == Limiter.NETWORK_BANDWIDTH


def test_growth_beyond_four_chips_is_the_bridges_loss_behind_a_host():
    shape = CollectiveShape(1e9, 8.0, 32e9, "all_gather", through_host=True)
    lost, kept = (tiled("all_gather", shape, shared=0.05, growth=g) for g in (0.5, 1e-3))
    assert lost / kept == pytest.approx(math.sqrt(2), rel=0.01)
    lost, kept = (tiled("all_gather", shape, shared=1e3, growth=g) for g in (0.5, 1e-3))
    assert lost / kept == pytest.approx(1, rel=0.01)


def test_large_all_reduces_of_an_engine_are_the_librarys_ring():
    shape = CollectiveShape(2e8, 4.0, 450e9)
    time = tiled("custom_all_reduce", shape, bulk_efficiency=0.5, growth=0.1, pipeline=0.01)
    assert time == pytest.approx(1.5 * 2e8 / (450e9 * 2**0.1 * 0.5), rel=0.03)


def test_half_of_what_the_quick_protocol_sends_through_a_host_are_flags():
    shape = CollectiveShape(1e9, 8.0, 32e9, "all_gather", through_host=True)
    quick = {"bulk_start": 3e-4, "bulk_efficiency": 0.1, "pipeline": 5.0, "quick_efficiency": 1.3}
    bulk = {"quick_efficiency": 5e-3, "bulk_efficiency": 1.3, "pipeline": 0.01}
    slow, fast = (
        tiled("all_gather", shape._replace(nbytes=size), shared=0.05, **kind)
        for size, kind in ((1e6, {**quick, "bulk_start": 1.0}), (1e9, bulk))
    )
    assert (slow / 1e6) / (fast / 1e9) == pytest.approx(1 / 0.6, rel=0.1)


def test_a_pair_behind_a_host_is_a_ring_of_one_switch_and_like_others_in_an_all_to_all():
    shape = CollectiveShape(1e9, 2.0, 32e9, through_host=True)
    for op, gain in (("all_gather", 2), ("all_to_all", 1)):
        asked = shape._replace(operation=op)
        one, two = (tiled(op, asked, pair_efficiency=part, pipeline=0.01) for part in (0.5, 1.0))
        assert one / two == pytest.approx(gain, rel=0.05)


def test_a_table_by_rows_takes_tiles_that_nobody_else_would():
    # 128 columns, 512 rows: four tiles of a table for 132 cores, unless k is split
    shape = GemmShape(512.0, 128.0, 16384.0)
    best, between, fixed = (tiled("gemm", shape, table=part) for part in (1e-9, 0.5, 1.0))
    assert best < between < fixed
    chip = kernel_chip(load_chip("h200-sxm"))
    start = KERNELS["gemm"].parameters()
    speed = chip.rate("bf16") / chip.cores * start.compute_efficiency / (1 + 2 * 3 / 128)
    # a tile's products, and what of the rate the load leaves
    products = 2 * 128 * 128 * 16384 / speed
    assert products < fixed < 1.4 * products
    # where every tile is busy all the same, the choice is of no account
    large = GemmShape(8192.0, 8192.0, 8192.0)
    assert tiled("gemm", large, table=1.0) < 1.15 * tiled("gemm", large, table=1e-9)


def test_a_tables_rows_are_the_fewest_that_hold_all():
    shape = GemmShape(np.array([16, 17, 32, 33, 64, 65, 128, 129]), 128.0, 65536.0)
    swift = replace(kernel_chip(load_chip("h200-sxm")), memory_bandwidth=1e17)
    bare = {"launch": 1e-8, "prologue": 1e-9}
    plain = {"step_latency": 0.01, "tile_half": 0.01, "throttle": 1e-4, "cache_rate": 1.0,
             "store_rate": 10.0, "sharpness": 12.0}  # fmt: skip
    times = tiled("gemm", shape, swift, table=1.0, **plain, **bare)
    # twice the rows, twice the work of the one tile; beyond 128 another core has the next
    expected = np.array([1, 2, 2, 4, 4, 8, 8, 8])
    assert times / times[0] == pytest.approx(expected, rel=0.01)
    small = GemmShape(512.0, 128.0, 65536.0)
    between, best, fixed = (
        tiled("gemm", small, swift, table=part, **bare) for part in (0.5, 1e-9, 1.0)
    )
    assert between == pytest.approx(math.sqrt(best * fixed), rel=0.01)


def test_the_quantiser_starts_every_row():
    shape = GemmShape(np.array([1024.0, 2048.0]), 128.0, 128.0, "fp8")
    chip = kernel_chip(load_chip("h200-sxm"))
    few, many = (tiled("gemm", shape, quantise_row=size, quantise_rate=0.5) for size in (1, 1001))
    # 16 bits read and 8 written of a thousand numbers more a row, at half of memory bandwidth
    more = shape.m * 1000 * 3 / (0.5 * chip.memory_bandwidth)
    assert many - few == pytest.approx(more, rel=1e-9)


def test_levels_that_do_not_help_answer_with_the_one_below():
    chip, fit = kernel_chip(load_chip("h100-sxm")), calibration("h100-sxm")["all_reduce", "any"]
    shape = shape_of("all_reduce", "any", chip)
    assert KERNELS["all_reduce"].level("corrected") == "tiled"
    assert KERNELS["conv1d_update"].level("tiled") == "calibrated"
    tiled, corrected = (price(KERNELS["all_reduce"], shape, chip, level, fit).time
                        for level in ("tiled", "corrected"))  # fmt: skip
    assert np.array_equal(tiled, corrected)


def test_a_scalar_and_an_array_agree():
    chip, fit = kernel_chip(load_chip("h100-sxm")), calibration("h100-sxm")["gemm", "bf16"]
    m = np.array([1.0, 100.0, 4096.0])
    many = price(KERNELS["gemm"], GemmShape(m, 4096.0, 4096.0), chip, "corrected", fit).time
    for one, size in zip(many, m, strict=True):
        alone = price(KERNELS["gemm"], GemmShape(size, 4096.0, 4096.0), chip, "corrected", fit)
        assert one == pytest.approx(float(alone.time), rel=1e-12)


def test_a_static_format_leaves_the_quantiser_out():
    chip, fit = kernel_chip(load_chip("h100-sxm")), calibration("h100-sxm")["gemm", "fp8_block"]
    shape = GemmShape(64.0, 4096.0, 4096.0, "fp8_block")
    whole = price(KERNELS["gemm"], shape, chip, "tiled", fit).time
    bare = shape._replace(dtype="fp8_block_static")
    assert price(KERNELS["gemm"], bare, chip, "tiled", fit).time < whole


def test_a_chip_of_unpublished_figures_is_refused_in_one_line():
    with pytest.raises(SpecError, match="tpu-v5p has no 'cache'"):
        kernel_chip(load_chip("tpu-v5p"))
