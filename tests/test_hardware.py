"""Chips, platforms and units: the catalogue, what it refuses, and how groups lie on levels."""

import dataclasses
import doctest
import importlib
import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hardware
from hardware import (
    Chip,
    Level,
    Link,
    Memory,
    Platform,
    SpecError,
    format_number,
    format_quantity,
    list_chips,
    list_platforms,
    load_chip,
    load_package,
    load_platform,
    load_tier,
    parse_quantity,
)
from hardware.catalogue import near_cube
from hardware.chip import DTYPES
from hardware.placement import places, spread

GOOD_CHIP = """\
name = "toy"
source = "our imagination"
vendor = "us"
vector = "10 TFLOP/s"
max_scale_up = 8
[matrix]
bf16 = "100 TFLOP/s"
[[memory]]
name = "HBM"
capacity = "16 GiB"
bandwidth = "1 TB/s"
[scale_up]
bandwidth = "100 GB/s"
latency = "1 us"
"""

GOOD_PLATFORM = """\
name = "toys"
source = "our imagination"
chip = "toy.toml"
[[levels]]
name = "node"
size = 8
link = "scale_up"
"""


@pytest.fixture
def toy(tmp_path):
    """Write a chip with some of its text replaced, and load it."""
    path = tmp_path / "toy.toml"

    def load(*edits):
        text = GOOD_CHIP
        for old, new in edits:
            assert old in text
            text = text.replace(old, new, 1)
        path.write_text(text, encoding="utf8")
        return load_chip(str(path))

    return load


@pytest.fixture
def toys(tmp_path, toy):
    """Write a platform with some of its text replaced, and load it."""
    toy()
    path = tmp_path / "toys.toml"

    def load(*edits):
        text = GOOD_PLATFORM
        for old, new in edits:
            assert old in text
            text = text.replace(old, new, 1)
        path.write_text(text, encoding="utf8")
        return load_platform(str(path))

    return load


def one_line(error):
    message = str(error.value)
    assert isinstance(error.value, SpecError)
    assert "\n" not in message
    assert len(message) < 400
    return message


# ------------------------------------------------------------------------ the catalogue


@pytest.mark.parametrize("name", list_chips())
def test_every_chip_loads_and_names_its_source(name):
    chip = load_chip(name)
    assert chip.name == name
    assert len(chip.source) > 10
    assert chip.scale_up is None or chip.scale_up.latency_source
    assert chip.scale_out is None or chip.scale_out.latency_source
    assert all(math.isfinite(chip.peak(dtype)) and chip.peak(dtype) > 0 for dtype in DTYPES)
    assert chip.peak("bf16") >= chip.vector


@pytest.mark.parametrize("name", list_platforms())
def test_every_platform_loads_and_names_its_source(name):
    platform = load_platform(name)
    assert platform.name == name
    assert len(platform.source) > 10
    assert platform.num_chips == math.prod(level.size for level in platform.levels)
    assert all(level.link.latency_source for level in platform.levels)


@pytest.mark.parametrize("name", list_chips())
def test_every_chip_makes_platforms_of_itself(name):
    chip = load_chip(name)
    assert load_platform(f"{name}:1").num_chips == 1
    assert load_platform(f"{name}:{chip.max_scale_up}").num_chips == chip.max_scale_up
    if chip.scale_out is not None:
        assert load_platform(f"{name}:{2 * chip.max_scale_up}").num_chips == 2 * chip.max_scale_up


# The figures every other file of this field has: dense bf16 TFLOP/s, GB/s.
KNOWN = {
    "a100-sxm-80gb": (312, 2039),
    "h100-sxm": (989.4, 3350),
    "h200-sxm": (989.4, 4800),
    "b200-sxm": (2250, 8000),
    "gb200": (2500, 8000),
    "mi300x": (1307.4, 5300),
    "tpu-v5p": (459, 2765),
    "trainium2": (667, 2900),
}


@pytest.mark.parametrize(("name", "figures"), KNOWN.items())
def test_headline_figures(name, figures):
    chip = load_chip(name)
    assert (chip.peak("bf16") / 1e12, chip.memory_bandwidth / 1e9) == pytest.approx(figures)


@pytest.mark.parametrize(
    ("name", "bandwidth"),
    [("dgx-a100", 300), ("dgx-h100", 450), ("dgx-b200", 900), ("mi300x-platform", 448)],
)
def test_links_are_per_direction_per_chip(name, bandwidth):
    assert load_platform(name).levels[0].link.bandwidth == pytest.approx(bandwidth * 1e9)


def test_in_switch_reduction_came_with_the_third_nvswitch():
    assert not load_platform("dgx-a100").levels[0].in_switch_reduction
    assert load_platform("dgx-h100").levels[0].in_switch_reduction
    assert load_platform("gb200-nvl72").levels[0].in_switch_reduction


def test_docstring_examples():
    for module in ("errors", "units", "chip", "catalogue", "technology", "die", "price"):
        assert doctest.testmod(importlib.import_module(f"hardware.{module}")).failed == 0


def test_public_names_exist():
    assert all(hasattr(hardware, name) for name in hardware.__all__)


def test_values_can_be_sent_to_another_process():
    platform = load_platform("h100-sxm:16")
    assert pickle.loads(pickle.dumps(platform)) == platform  # noqa: S301 - our own bytes


# ---------------------------------------------------------------------- what is refused

BAD_CHIPS = {
    "unknown key": (("source =", "sorce ="), "unknown key 'sorce'; did you mean 'source'?"),
    "key of a memory": (("capacity =", "size ="), "unknown key 'size' in memory.0; known: bandw"),
    "key of a link": (
        ("latency =", "latencies ="),
        "'latencies' in scale_up; did you mean 'latency'",
    ),
    "missing key": (('vendor = "us"\n', ""), "'vendor' is missing"),
    "missing in a table": (('latency = "1 us"\n', ""), "'latency' is missing in scale_up"),
    "missing in memory": (
        ('bandwidth = "1 TB/s"\n', ""),
        "'bandwidth' is missing in a memory of toy",
    ),
    "wrong unit": (('"1 TB/s"', '"1 TB"'), "memory.0.bandwidth: '1 TB' is not in B/s"),
    "bits": (('"1 TB/s"', '"1 Tb/s"'), "'1 Tb/s' is not in B/s"),
    "prefix": (('"1 TB/s"', '"1 QB/s"'), "'1 QB/s' is not in B/s"),
    "fraction of a byte": (('"16 GiB"', '"16 mB"'), "'16 mB' is not in B"),
    "binary watts": (("max_scale_up = 8", 'power = "1 GiW"'), "power: '1 GiW' is not in W"),
    "bare text": (('"1 TB/s"', '"1e12"'), "'1e12' has no unit; write '1e12 TB/s'"),
    "bare number": (('"1 TB/s"', "1e12"), "1000000000000.0 needs a unit"),
    "bare integer": (('"1 TB/s"', "12"), "12 needs a unit"),
    "negative": (('"1 TB/s"', '"-1 TB/s"'), "'-1 TB/s' is not between"),
    "zero": (('"1 TB/s"', '"0 TB/s"'), "'0 TB/s' is not between"),
    "negative zero": (('"1 TB/s"', '"-0 TB/s"'), "'-0 TB/s' is not between"),
    "absurd": (('"1 TB/s"', '"1e30 TB/s"'), "'1e30 TB/s' is not between"),
    "tiny": (('"10 TFLOP/s"', '"1e-9 FLOP/s"'), "'1e-9 FLOP/s' is not between"),
    "slow link": (('"1 us"', '"1000 s"'), "'1000 s' is not between"),
    "nan": (('"1 TB/s"', "nan"), "nan needs a unit"),
    "nan text": (('"1 TB/s"', '"nan TB/s"'), "'nan TB/s' is not a quantity"),
    "inf": (('"1 TB/s"', "inf"), "inf needs a unit"),
    "inf text": (('"1 TB/s"', '"inf TB/s"'), "'inf TB/s' is not a quantity"),
    "overflow": (('"1 TB/s"', '"1e400 TB/s"'), "'1e400 TB/s' is not a finite number"),
    "overflow of a number": (('"1 TB/s"', "1e400"), "inf needs a unit"),
    "bool": (('"1 TB/s"', "true"), "True needs a unit"),
    "list": (('"1 TB/s"', '["1 TB/s"]'), "['1 TB/s'] needs a unit"),
    "empty text": (('"1 TB/s"', '""'), "'' is not a quantity"),
    "long text": (('"1 TB/s"', f'"{"1" * 5000} TB/s"'), "is not a quantity"),
    "newline": (('"1 TB/s"', '"1\\nTB\\n"'), "is not in B/s"),
    "date": (('"1 TB/s"', "2024-01-01"), "needs a unit"),
    "string for a table": (
        ("max_scale_up = 8", 'cache = "big"'),
        "cache: expected a table, found 'big'",
    ),
    "text in a list": (("max_scale_up = 8", 'memory = ["x"]'), "toy.toml"),
    "text for a list": (("[[memory]]", "[[matrix.fp8]]"), "toy.toml"),
    "table for a list": (("[[memory]]", "[memory]"), "memory: expected a list"),
    "unknown dtype": (("bf16 =", "bf61 ="), "'bf61' is unknown; did you mean 'bf16'?"),
    "no rates": (('bf16 = "100 TFLOP/s"\n', ""), "toy needs a rate in 'matrix'"),
    "empty source": (('"our imagination"', '" "'), "source: ' ' is not a text"),
    "number for text": (('"our imagination"', "5"), "source: 5 is not a text"),
    "path in a name": (('"toy"', '"../toy"'), "name: '../toy' is not a name"),
    "name too long": (('"toy"', f'"{"t" * 65}"'), "is not a name"),
    "name with a space": (('"toy"', '"my toy"'), "name: 'my toy' is not a name"),
    "float for a count": (("max_scale_up = 8", "max_scale_up = 8.5"), "8.5 is not a whole number"),
    "bool for a count": (("max_scale_up = 8", "max_scale_up = true"), "True is not a whole number"),
    "zero count": (("max_scale_up = 8", "max_scale_up = 0"), "0 is not between 1 and"),
    "huge count": (("max_scale_up = 8", f"max_scale_up = {10**30}"), "is not between 1 and"),
    "topology": (
        ("[scale_up]", '[fabric]\ntopology = "ringg"\n[scale_up]'),
        "did you mean 'ring'?",
    ),
    "flag": (
        ("[scale_up]", "[fabric]\nin_switch_reduction = 1\n[scale_up]"),
        "1 is neither true nor",
    ),
    "same key twice": (('vendor = "us"', 'vendor = "us"\nvendor = "us"'), "is not TOML"),
    "no TOML": (('vendor = "us"', "vendor ="), "is not TOML"),
    "long integer": (("max_scale_up = 8", f"max_scale_up = {'9' * 5000}"), "is not TOML"),
    "no scale-up": (
        ('[scale_up]\nbandwidth = "100 GB/s"\nlatency = "1 us"\n', ""),
        "'scale_up' link",
    ),
}


@pytest.mark.parametrize(("edit", "message"), BAD_CHIPS.values(), ids=BAD_CHIPS)
def test_a_bad_chip_is_explained_in_one_line(toy, edit, message):
    with pytest.raises(SpecError) as error:
        toy(edit)
    text = one_line(error)
    assert message in text
    assert "toy" in text


@pytest.mark.parametrize("line", range(len(GOOD_CHIP.splitlines())))
@pytest.mark.parametrize(
    "junk",
    ["", "1", "-1", "nan", '"x"', "true", "[]", "[[]]", "{}", "{a = 1}", "[{}]", "1979-05-27"],
)
def test_junk_anywhere_is_refused_in_one_line(tmp_path, line, junk):
    lines = GOOD_CHIP.splitlines()
    key, equals, _ = lines[line].partition(" = ")
    lines[line] = f"{key} = {junk}" if equals else junk
    path = tmp_path / "toy.toml"
    path.write_text("\n".join(lines), encoding="utf8")
    try:
        chip = load_chip(str(path))
    except SpecError as error:
        message = str(error)
    else:  # a text may be any text, and a domain of one is fine
        assert (key, junk) in {(text, '"x"') for text in ("name", "source", "vendor")} | {
            ("max_scale_up", "1")
        }
        message = chip.name
    assert "\n" not in message


def test_the_good_chip_is_good(toy):
    chip = toy()
    assert (chip.memory_capacity, chip.cores) == (16 * 2**30, None)


BAD_PLATFORMS = {
    "unknown chip": (
        ("toy.toml", "h100-sxmm"),
        "unknown chip 'h100-sxmm'; did you mean 'h100-sxm'?",
    ),
    "chip elsewhere": (("toy.toml", "../toy.toml"), "'../toy.toml' is not a name"),
    "chip missing": (("toy.toml", "other.toml"), "other.toml': No such file"),
    "chip is a number": (('"toy.toml"', "7"), "chip: expected a table, found 7"),
    "unknown link": (
        ('"scale_up"', '"scale_upp"'),
        "unknown link 'scale_upp'; did you mean 'scale_up'",
    ),
    "link the chip lacks": (('"scale_up"', '"scale_out"'), "toy has no scale_out link"),
    "levels are text": (('[[levels]]\nname = "node"', 'levels = "x"\n[y]\nname = "y"'), "levels"),
    "unknown key": (
        ("size = 8", "size = 8\ntopologie = 1"),
        "'topologie' in levels.0; did you mean",
    ),
    "topology": (
        ("size = 8", 'size = 8\ntopology = "star"'),
        "'star' is unknown; known: dragonfly, fat-tree, full, mesh",
    ),
    "no shape": (("size = 8", 'size = 8\ntopology = "torus"'), "its shape is []"),
    "wrong shape": (
        ("size = 8", 'size = 8\ntopology = "torus"\nshape = [3, 3]'),
        "shape is [3, 3]",
    ),
    "shape of a switch": (("size = 8", "size = 8\nshape = [8]"), "its shape is [8]"),
    "negative size": (("size = 8", "size = -8"), "-8 is not between"),
    "missing link": (('link = "scale_up"', ""), "'link' is missing in levels.0"),
}


@pytest.mark.parametrize(("edit", "message"), BAD_PLATFORMS.values(), ids=BAD_PLATFORMS)
def test_a_bad_platform_is_explained_in_one_line(toys, edit, message):
    with pytest.raises(SpecError) as error:
        toys(edit)
    assert message in one_line(error)


def test_a_platform_and_its_chip_can_lie_side_by_side(toys):
    platform = toys()
    assert (platform.num_chips, platform.chip.name) == (8, "toy")


BAD_FILES = {
    "empty": (b"", "'name' is missing"),
    "binary": (bytes(range(256)), "is not TOML"),
    "nul": (b"\0" * 100, "is not TOML"),
    "large": (b"#" * 2_000_000, "is larger than 1000000 bytes"),
    "deep list": (b"a = " + b"[" * 100_000, "is nested too deeply"),
    "deep key": (b"a." * 5_000 + b"a = 1", "toy.toml"),
    "deep table": (b"a = " + b"{a=" * 50_000, "is nested too deeply"),
    "utf16": ("name = 'ü'".encode("utf16"), "is not TOML"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
@pytest.mark.parametrize("load", [load_chip, load_platform])
def test_a_bad_file_is_explained_in_one_line(tmp_path, load, content, message):
    path = tmp_path / "toy.toml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as error:
        load(str(path))
    assert message in one_line(error)


@pytest.mark.parametrize("load", [load_chip, load_platform])
def test_a_missing_file_or_a_directory_is_explained_in_one_line(tmp_path, load):
    (tmp_path / "folder.toml").mkdir()
    for name, message in (("none.toml", "No such file"), ("folder.toml", "Is a directory")):
        with pytest.raises(SpecError) as error:
            load(str(tmp_path / name))
        assert message in one_line(error)


BAD_NAMES = [
    "", " ", "h100 sxm", "../h100-sxm", "/etc/passwd", "a" * 1000, "h100-sxm\n", "h100\0", "ü", "*",
    "nul\0.toml", "x" * 300 + ".toml",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("load", [load_chip, load_platform])
def test_a_bad_name_is_explained_in_one_line(load, name):
    with pytest.raises(SpecError) as error:
        load(name)
    one_line(error)


BAD_COUNTS = {
    "h100-sxm:0": "not a number from 1 to 1000000",
    "h100-sxm:-8": "not a number",
    "h100-sxm:8.0": "not a number",
    "h100-sxm:1e3": "not a number",
    "h100-sxm:٨": "not a number",
    "h100-sxm:9999999": "not a number",
    "h100-sxm:" + "9" * 9999: "not a number",
    "h100-sxm:": "'' in 'h100-sxm:' is not a number",
    "h100-sxm:12": "12 of h100-sxm do not fill whole domains of 8; use a multiple of 8",
    "h100-sxmm:8": "did you mean 'h100-sxm'",
    "h100-sxm:8:2": "is not a name",
    "groq-rack:2": "groq-rack has no scale_out link",
    "h100-sxm": "'h100-sxm' is a chip; write 'h100-sxm:8'",
    "h100": "did you mean 'dgx-h100'",
}


@pytest.mark.parametrize(("name", "message"), BAD_COUNTS.items(), ids=range(len(BAD_COUNTS)))
def test_a_bad_count_is_explained_in_one_line(name, message):
    with pytest.raises(SpecError) as error:
        load_platform(name)
    assert message in one_line(error)


# -------------------------------------------------------------------------------- units

UNITS = ("s", "B", "B/s", "FLOP", "FLOP/s", "W", "Hz", "J")


@given(st.floats(-1e24, 1e24, allow_subnormal=False), st.sampled_from(UNITS))
def test_what_is_written_reads_back(value, unit):
    text = format_quantity(value, unit, digits=17)
    assert parse_quantity(text, unit) == pytest.approx(value, rel=1e-15, abs=1e-300)


@given(st.floats(1e-12, 1e20), st.sampled_from(UNITS), st.integers(1, 9))
def test_digits_kept_are_right(value, unit, digits):
    text = format_quantity(value, unit, digits)
    assert parse_quantity(text, unit) == pytest.approx(value, rel=10.0 ** (1 - digits))


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("80 GiB", "B", 80 * 2**30),
        ("80 GB", "B", 80e9),
        ("3.35 TB/s", "B/s", 3.35e12),
        ("989.4TFLOP/s", "FLOP/s", 989.4e12),
        ("1.5 us", "s", 1.5e-6),
        ("1.5 µs", "s", 1.5e-6),
        (" 7e2  W ", "W", 700),
        ("1.98 GHz", "Hz", 1.98e9),
        ("2 kJ", "J", 2000),
        ("-3 ms", "s", -3e-3),
    ],
)
def test_quantities(text, unit, value):
    assert parse_quantity(text, unit) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (3.35e12, "B/s", "3.35 TB/s"),
        (999.99e9, "B/s", "1 TB/s"),
        (0, "s", "0 s"),
        (2.5e-6, "s", "2.5 us"),
        (0.25, "B", "0.25 B"),
        (math.inf, "s", "inf s"),
    ],
)
def test_formats(value, unit, text):
    assert format_quantity(value, unit) == text


def test_unknown_unit():
    with pytest.raises(SpecError, match="unknown unit 'FLOPS'"):
        parse_quantity("1 TFLOPS", "FLOPS")


@given(st.text(max_size=80), st.sampled_from(UNITS))
def test_any_text_is_a_finite_number_or_refused(text, unit):
    try:
        value = parse_quantity(text, unit)
    except SpecError as error:
        value, message = 0.0, str(error)
    else:
        message = ""
    assert math.isfinite(value)
    assert "\n" not in message


# -------------------------------------------------------------------------------- chips


def toy_chip(**changes):
    given = {
        "name": "toy",
        "source": "our imagination",
        "vendor": "us",
        "matrix": {"bf16": 100.0},
        "vector": 10.0,
        "memory": (Memory(name="HBM", capacity=16.0, bandwidth=1.0),),
    }
    return Chip(**(given | changes))


@pytest.mark.parametrize(
    ("has", "dtype", "peak"),
    [
        ({"bf16": 1.0}, "fp4", 1.0),
        ({"bf16": 1.0, "fp8": 2.0}, "fp4", 1.0),
        ({"bf16": 1.0, "fp8": 2.0, "fp6": 3.0}, "fp4", 3.0),
        ({"bf16": 1.0, "fp8": 2.0}, "int8", 1.0),
        ({"bf16": 1.0, "int8": 2.0}, "int4", 2.0),
        ({"bf16": 1.0, "int8": 2.0}, "fp8", 1.0),
        ({"fp16": 1.0}, "bf16", 1.0),
        ({"bf16": 1.0}, "fp16", 1.0),
        ({"bf16": 1.0, "tf32": 0.5}, "fp32", 10.0),
        ({"tf32": 0.5}, "bf16", 0.5),
        ({"fp4": 4.0}, "bf16", 10.0),
    ],
)
def test_a_dtype_without_a_rate_runs_at_the_narrowest_wider_one(has, dtype, peak):
    assert toy_chip(matrix=has).peak(dtype) == peak


def test_a_dtype_that_does_not_exist():
    with pytest.raises(SpecError, match="toy has no peak for 'fp64'; it has bf16"):
        toy_chip().peak("fp64")


def test_replace_takes_arrays():
    bandwidth = np.array([1.0, 2.0, 3.0])
    chip = toy_chip().replace(memory_bandwidth=bandwidth, peak={"fp8": 200.0}, clock=1e9, cores=4)
    assert chip.memory_bandwidth is bandwidth
    assert (chip.peak("fp8"), chip.peak("bf16"), chip.clock, chip.cores) == (200, 100, 1e9, 4)


def test_a_name_in_other_letters_is_found():
    with pytest.raises(SpecError, match="unknown chip or platform 'L4'; did you mean 'l4'"):
        load_platform("L4:1")


def test_more_chips_than_links_join_says_how_many_do(tmp_path):
    text = (Path(hardware.__file__).parent / "data/chips/l4.toml").read_text()
    chip = re.sub(r"(?s)\[scale_out\].*?\n\n", "", text).replace(
        "max_scale_up = 8", "max_scale_up = 2"
    )
    (tmp_path / "mine.toml").write_text(chip)
    assert load_platform(f"{tmp_path / 'mine.toml'}:2").num_chips == 2
    with pytest.raises(SpecError, match="join no more than max_scale_up = 2 of it, not 8"):
        load_platform(f"{tmp_path / 'mine.toml'}:8")
    without = re.sub(r"(?s)\[\[memory\]\].*?\n\n", "", chip)
    (tmp_path / "mine.toml").write_text(without)
    with pytest.raises(SpecError, match="'memory'"):
        load_platform(f"{tmp_path / 'mine.toml'}:2")


def test_replace_takes_lists_of_numbers_and_of_texts():
    chip = toy_chip().replace(memory_bandwidth=[1e12, "2 TB/s"], cores=(4, 8))
    assert chip.memory_bandwidth.tolist() == [1e12, 2e12]
    assert chip.cores.tolist() == [4, 8]
    with pytest.raises(SpecError, match="memory_bandwidth: "):
        toy_chip().replace(memory_bandwidth=["fast"])


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, np.array([1, 0]), np.array([np.nan]),
                                   np.array([]), [[1], [2, 3]]])  # fmt: skip
@pytest.mark.parametrize(
    "name", ["memory_bandwidth", "memory_capacity", "vector", "clock", "power"]
)
def test_replace_refuses_what_no_chip_has(name, value):
    with pytest.raises(SpecError) as error:
        toy_chip().replace(**{name: value})
    assert "must be finite and positive" in one_line(error)


def test_figures_may_be_texts_with_units():
    chip = toy_chip().replace(memory_bandwidth="8 TB/s", peak={"fp8": "2 PFLOP/s"})
    assert (chip.memory_bandwidth, chip.peak("fp8")) == (8e12, 2e15)
    platform = load_platform("dgx-h100").with_link(bandwidth="900 GB/s", latency="2 us")
    assert (platform.levels[0].link.bandwidth, platform.levels[0].link.latency) == (9e11, 2e-6)
    for name, text in (("clock", "fast"), ("power", "3 TB/s"), ("memory_capacity", "80")):
        with pytest.raises(SpecError, match=f"^{name}: '{text}'"):
            toy_chip().replace(**{name: text})
    with pytest.raises(SpecError, match=r"^peak of fp8: '2' has no unit"):
        toy_chip().replace(peak={"fp8": "2"})


def test_the_only_level_need_not_be_named():
    node = load_platform("dgx-h100")
    assert node.with_link(bandwidth=1e9) == node.with_link("node", bandwidth=1e9)
    assert node.with_level(topology="full").levels[0].topology == "full"
    with pytest.raises(SpecError, match="has several levels; say which: node, cluster"):
        load_platform("dgx-h100:2").with_link(bandwidth=1e9)
    for name in (None, "node"):
        with pytest.raises(SpecError, match="h100-sxm:1 has no links"):
            load_platform("h100-sxm:1").with_link(name, bandwidth=1e9)


@pytest.mark.parametrize("load", [load_platform, load_chip, load_tier, load_package])
@pytest.mark.parametrize("name", [3, None, ["h100-sxm"]])
def test_what_is_no_name_is_refused(load, name):
    with pytest.raises(SpecError) as error:
        load(name)
    assert "is neither a name nor the path of a file" in one_line(error)


def test_a_path_and_a_byte_order_mark_are_fine(tmp_path):
    path = tmp_path / "mine.toml"
    source = Path(hardware.__file__).parent / "data" / "chips" / "h100-sxm.toml"
    path.write_text("\ufeff" + source.read_text(encoding="utf-8"), encoding="utf-8")
    assert load_platform(path).chip == load_chip(path) == load_chip("h100-sxm")


def test_a_machine_prints_as_a_line():
    assert str(load_chip("h100-sxm")) == (
        "h100-sxm: 989 TFLOP/s in bf16, 85.9 GB at 3.35 TB/s, 700 W"
    )
    assert str(load_platform("dgx-h100:4")) == (
        "dgx-h100:4: 32 × h100-sxm, node of 8: switch of 450 GB/s, cluster of 4: switch of 50 GB/s"
    )
    swept = load_chip("h100-sxm").replace(memory_bandwidth=np.array([8e12, 1e12]))
    assert "at 1 TB/s to 8 TB/s" in str(swept)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (12.0, "12"), (0.51239, "0.5124"), (999.96, "1000"), (10223.4, "10,223"),
     (-10223.4, "-10,223"), (1.5e9, "1,500,000,000"), (math.inf, "inf"), (2.5e-7, "2.5e-07")],
)  # fmt: skip
def test_numbers_read_well(value, text):
    assert format_number(value) == text


def test_replace_names_the_nearest():
    with pytest.raises(SpecError, match=r"no 'memory_bandwith' .* did you mean 'memory_bandwidth'"):
        toy_chip().replace(memory_bandwith=1.0)
    with pytest.raises(SpecError, match="unknown dtype 'bf61'"):
        toy_chip().replace(peak={"bf61": 1.0})
    with pytest.raises(SpecError, match="peak maps dtypes"):
        toy_chip().replace(peak=5.0)


def test_chips_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        toy_chip().vector = 5.0


# ---------------------------------------------------------------------------- platforms


def lies(spans):
    return [(span.level.name, span.ways) for span in spans]


def test_spans_innermost_first():
    platform = load_platform("dgx-h100").replicate(4)
    assert lies(platform.spans(16)) == [("node", 8), ("cluster", 2)]
    assert lies(platform.spans(8)) == [("node", 8)]
    assert lies(platform.spans(4, stride=8)) == [("cluster", 4)]
    assert lies(platform.spans(2, stride=4)) == [("node", 2)]
    assert lies(platform.spans(8, stride=4)) == [("node", 2), ("cluster", 4)]
    assert lies(platform.spans(12)) == [("node", 6), ("cluster", 2)]
    assert lies(platform.spans(1)) == []


def test_spans_of_arrays_are_those_of_their_elements():
    platform = load_platform("dgx-h100").replicate(16)
    sizes, strides = np.arange(1, 17), np.array([1, 2, 4, 8])[:, None]
    ways = {span.level.name: span.ways for span in platform.spans(sizes, strides)}
    for i, stride in enumerate(strides[:, 0]):
        for j, size in enumerate(sizes):
            one = dict(lies(platform.spans(int(size), int(stride))))
            assert ways["node"][i, j] == pytest.approx(one.get("node", 1))
            assert ways["cluster"][i, j] == pytest.approx(one.get("cluster", 1))


@given(
    st.lists(st.integers(1, 16), min_size=1, max_size=4),
    st.integers(1, 5000),
    st.integers(1, 64),
)
def test_the_ways_of_a_group_multiply_to_its_size(sizes, count, stride):
    if count > math.prod(place.room for place in places(sizes, stride)):
        return
    ways = spread(count, places(sizes, stride))
    assert math.prod(ways) == pytest.approx(count)
    assert all(1 <= way <= size for way, size in zip(ways, sizes, strict=True))


@pytest.mark.parametrize(("size", "stride"), [(9, 1), (2, 8), (np.array([1, 9]), 1)])
def test_a_group_that_does_not_fit(size, stride):
    with pytest.raises(
        SpecError, match=r"a group of .* chips.* does not fit dgx-h100, which has 8"
    ):
        load_platform("dgx-h100").spans(size, stride)


def test_a_group_of_none():
    with pytest.raises(SpecError, match="use numbers from 1 up"):
        load_platform("dgx-h100").spans(0)


def test_so_many_chips():
    platform = load_platform("h100-sxm:16")
    assert [(level.name, level.size) for level in platform.levels] == [("node", 8), ("cluster", 2)]
    assert platform.levels[1].link == platform.chip.scale_out
    assert platform.name == "h100-sxm:16"
    assert load_platform("h100-sxm×16") == platform
    assert load_platform("dgx-h100:4").num_chips == 32
    assert load_platform("h100-sxm:1").levels == ()


def test_fewer_fully_connected_chips_have_fewer_links():
    assert load_platform("mi300x:4").levels[0].link.bandwidth == pytest.approx(3 * 64e9)


def test_tpu_slices_are_compact_and_close_where_the_hardware_does():
    small, cube = load_platform("tpu-v5p:16").levels[0], load_platform("tpu-v5p:64").levels[0]
    assert (small.topology, small.shape) == ("mesh", (2, 2, 4))
    assert (cube.topology, cube.shape) == ("torus", (4, 4, 4))
    assert load_platform("tpu-v5e:64").levels[0].topology == "mesh"
    assert load_platform("tpu-v5e:256").levels[0].topology == "torus"


@given(st.integers(1, 10_000), st.integers(1, 3))
def test_boxes_hold_their_chips(size, dimensions):
    shape = near_cube(size, dimensions)
    assert math.prod(shape) == size
    assert len(shape) == dimensions


def test_with_chip_and_with_link():
    platform = load_platform("dgx-h100").with_chip(memory_bandwidth=np.array([1e12, 2e12]))
    assert platform.chip.memory_bandwidth.shape == (2,)
    faster = platform.with_link("node", bandwidth=1e12)
    assert faster.levels[0].link.bandwidth == 1e12
    assert faster.levels[0].link.latency == platform.levels[0].link.latency
    with pytest.raises(SpecError, match="no level 'nod'; did you mean 'node'"):
        platform.with_link("nod", bandwidth=1e12)
    with pytest.raises(SpecError, match="finite and positive"):
        platform.with_link("node", bandwidth=-1.0)
    with pytest.raises(SpecError, match="0 or more"):
        platform.with_link("node", latency=np.array([1.0, -1.0]))


def test_replicate():
    platform = load_platform("dgx-h100")
    assert platform.replicate(1) is platform
    assert platform.replicate(2).replicate(3).num_chips == 48
    with pytest.raises(SpecError, match="use a positive number"):
        platform.replicate(0)


def test_levels_of_one_platform_have_different_names():
    node = Level("node", 2, Link(1.0, 1.0))
    with pytest.raises(SpecError, match="different names: node, node"):
        Platform("p", "s", toy_chip(), (node, node))


def test_a_level_holds_something():
    with pytest.raises(SpecError, match="at least 1"):
        Level("node", 0, Link(1.0, 1.0))
    with pytest.raises(SpecError, match="unknown topology 'rin'"):
        Level("node", 2, Link(1.0, 1.0), "rin")
