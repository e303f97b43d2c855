"""Measured tables: what is kept of them, and tables of one's own."""

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from hardware import SpecError, load_chip
from opgraph import cli
from opgraph.kernels import KERNELS, GemmShape, kernel_chip, load_calibration, price
from validation import extras
from validation.calibrate import Case
from validation.datasets import Rule, fastest, load, reference, tuned
from validation.files import CALIBRATION
from validation.peers import interpolated, noise
from validation.splits import Split, splits, subset
from validation.tables import DATASETS
from validation.toml import dump

CHIP = kernel_chip(load_chip("h100-sxm"))


def table(path, **columns):
    """Write a table of GEMMs."""
    rows = {"m": [16, 16, 32], "n": [256, 256, 64], "k": [512, 512, 512],
            "gemm_dtype": ["bfloat16"] * 3, "latency": [0.01, 0.03, 0.02]} | columns  # fmt: skip
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_rows_of_one_shape_become_their_median_and_rules_drop_the_rest(tmp_path):
    sample = load(DATASETS["gemm"], CHIP, "bf16", source=table(tmp_path / "own.csv"))
    assert sample.measured.tolist() == pytest.approx([2e-5])  # n = 64 is below the least side
    assert sample.shape.m.tolist() == [16.0]
    assert sample.provenance == "own.csv"


def test_rows_of_another_format_are_left_out(tmp_path):
    path = table(tmp_path / "own.csv", gemm_dtype=["fp8"] * 3)
    assert load(DATASETS["gemm"], CHIP, "bf16", source=path) is None


def test_the_most_frequent_kernel_is_kept(tmp_path):
    path = table(tmp_path / "own.csv", n=[256, 512, 1024], kernel_source=["a", "a", "b"])
    assert load(DATASETS["gemm"], CHIP, "bf16", source=path).shape.n.tolist() == [256.0, 512.0]


def test_host_bound_all_reduces_are_dropped(tmp_path):
    path = tmp_path / "own.csv"
    pd.DataFrame({"num_gpus": [2, 4], "message_size": [1024, 1024], "latency": [0.01, 0.1],
                  "kernel_source": ["trt", "trt_eager"]}).to_csv(path)  # fmt: skip
    sample = load(DATASETS["custom_all_reduce"], CHIP, "bf16", source=path)
    assert sample.shape.chips.tolist() == [2.0]
    assert sample.shape.nbytes.tolist() == [2048.0]


def test_stalls_of_the_collector_are_dropped(tmp_path):
    path = tmp_path / "own.csv"
    tokens = [128, 256, 512]
    pd.DataFrame({"num_tokens": tokens, "latency": [90.0, 20.0, 30.0], "hidden_size": 7168,
                  "topk": 8, "ep_size": 8, "num_experts": 256, "node_num": 1,
                  "comm_backend": "trtllm_deepep_ll", "phase": "dispatch",
                  "comm_dtype": "fp8"}).to_csv(path)  # fmt: skip
    sample = load(DATASETS["dispatch"], CHIP, "ll-fp8", source=path)
    assert sample.shape.tokens.tolist() == [256.0, 512.0]  # more tokens were four times faster
    assert sample.measured.tolist() == pytest.approx([2e-5, 3e-5])


def backend(name, times, shapes):
    """Rows of one backend: GEMMs m × 256 × 512."""
    return pd.DataFrame({"m": shapes, "n": 256, "k": 512, "latency": times, "backend": name})


def test_the_backend_with_the_least_total_time_on_shared_shapes_is_the_reference():
    slow, quick = backend("a", [1.0, 9.0, 2.0], [1, 2, 3]), backend("b", [2.0, 3.0], [1, 2])
    assert set(fastest(DATASETS["gemm"], {"a": slow, "b": quick})["backend"]) == {"b"}
    # m = 3 only one has: it does not count
    slow = backend("a", [1.0, 3.0, 99.0], [1, 2, 3])
    assert set(fastest(DATASETS["gemm"], {"a": slow, "b": quick})["backend"]) == {"a"}
    few = backend("c", [0.1], [1])
    wide = backend("a", [1.0] * 5, range(1, 6))
    assert set(fastest(DATASETS["gemm"], {"a": wide, "c": few})["backend"]) == {"a"}


def test_a_group_that_another_backend_runs_much_faster_is_left_out():
    dataset = replace(DATASETS["gemm"], group=("n",))
    mine = pd.concat([
        backend("a", [1.0, 1.3, 1.2], [1, 2, 3]),  # 1.2 times one rival, 1.5 times the faster one
        backend("a", [9.0, 1.0, 1.0], [1, 2, 3]).assign(n=8),  # in one row of three
        backend("a", [9.0], [1]).assign(n=9),  # nobody else has it
    ])  # fmt: skip
    other = pd.concat([
        backend("b", [1.0] * 3, [1, 2, 3]),
        backend("c", [0.8] * 3, [1, 2, 3]),
        backend("b", [1.0] * 3, [1, 2, 3]).assign(n=8),
    ])  # fmt: skip
    found = tuned(dataset, mine, {"b": other})
    assert sorted(set(found["n"])) == [8, 9]
    assert len(found) == 4
    assert tuned(dataset, mine, {}) is mine


def test_the_first_backend_is_the_reference_unless_it_is_mistuned_for_most_shapes():
    dataset = replace(DATASETS["gemm"], first="a", group=("n",))
    quick = pd.concat([backend("b", [1.0], [1]).assign(n=n) for n in range(4)])
    for times, expected in (([1.2] * 4, "a"), ([1.2, 1.2, 9.0, 9.0], "a"), ([9.0] * 3 + [1], "b")):
        own = [backend("a", [time], [1]).assign(n=n) for n, time in enumerate(times)]
        found = reference(dataset, {"b": quick, "a": pd.concat(own)}, {})
        assert set(found["backend"]) == {expected}
    wider = {"b": quick.assign(latency=0.1)}
    assert reference(dataset, {"a": quick}, wider).empty  # nobody else has it
    assert set(reference(replace(dataset, first="c"), {"b": quick}, {})["backend"]) == {"b"}


def test_noise_is_what_leaves_the_line_between_neighbours(tmp_path):
    """Times that alternate by ±5 % about a power law leave the line by 10 %, √1.5 of it noise."""
    m = 2.0 ** np.arange(12)
    time = m**0.7 * np.exp(0.05 * (-1.0) ** np.arange(12))
    path = table(
        tmp_path / "own.csv", m=m, n=256, k=512, gemm_dtype=["bfloat16"] * 12, latency=time
    )
    sample = load(DATASETS["gemm"], CHIP, "bf16", source=path)
    case = Case("gemm", "h100-sxm", "bf16", CHIP, sample, {})
    assert noise(case) == pytest.approx(100 * np.expm1(0.1 / np.sqrt(1.5)), rel=1e-6)


def test_interpolation_is_linear_between_fitted_neighbours_and_silent_elsewhere(tmp_path):
    m = [1.0, 2.0, 3.0, 8.0, 9.0]
    path = table(tmp_path / "own.csv", m=m, n=256, k=512, gemm_dtype=["bfloat16"] * 5,
                 latency=[1.0, 4.0, 3.0, 8.0, 9.0])  # fmt: skip
    sample = load(DATASETS["gemm"], CHIP, "bf16", source=path)
    case = Case("gemm", "h100-sxm", "bf16", CHIP, sample, {})
    held = Split(np.array([0, 2, 3]), np.array([1, 4]))  # m = 9 has no larger neighbour
    assert interpolated(case, held) == pytest.approx([np.log(4 / 2)])


@pytest.mark.parametrize("op", sorted(DATASETS))
def test_every_class_says_what_it_takes_and_why(op):
    dataset = DATASETS[op]
    assert dataset.why
    assert dataset.family_means
    assert all(isinstance(rule, Rule) and rule.reason for rule in dataset.rules)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"latency": [0.01, -1.0, 0.02], "m": [1, 2, 3]}, "not a positive time"),
        ({"latency": [0.01, None, 0.02], "m": [1, 2, 3]}, "not a positive time"),
    ],
)
def test_a_time_that_is_none_is_refused(tmp_path, columns, message):
    with pytest.raises(SpecError, match=message):
        load(DATASETS["gemm"], CHIP, "bf16", source=table(tmp_path / "own.csv", **columns))


def test_a_missing_column_is_named(tmp_path):
    path = tmp_path / "own.csv"
    pd.DataFrame({"m": [1], "latency": [1.0], "gemm_dtype": ["bfloat16"]}).to_csv(path)
    with pytest.raises(SpecError, match=r"no column 'n'; gemm takes gemm_dtype, m, n, k, latency"):
        load(DATASETS["gemm"], CHIP, "bf16", source=path)


def test_an_unknown_format_and_what_is_no_table_are_refused(tmp_path):
    path = table(tmp_path / "own.csv")
    with pytest.raises(SpecError, match="no tables of gemm in 'fp16'"):
        load(DATASETS["gemm"], CHIP, "fp16", source=path)
    path.write_text("")
    with pytest.raises(SpecError, match="is not a CSV table"):
        load(DATASETS["gemm"], CHIP, "bf16", source=path)


def test_splits_hold_out_what_they_say_and_never_what_is_fitted(tmp_path):
    m, n, k = (grid.ravel() for grid in np.meshgrid(
        2 ** np.arange(11), [1024, 2048, 4096, 5120], [1024, 2048, 7168]))  # fmt: skip
    path = table(tmp_path / "own.csv", m=m, n=n, k=k, gemm_dtype=["bfloat16"] * len(m),
                 latency=np.full(len(m), 0.1))  # fmt: skip
    sample = load(DATASETS["gemm"], CHIP, "bf16", source=path)
    found = splits(KERNELS["gemm"], sample, CHIP)
    assert set(found) == {"random", "family", "largest"}
    for split in found.values():
        assert not set(split.train) & set(split.test)
        assert len(split.train) + len(split.test) == len(sample.measured)
    held = sample.shape.n[found["family"].test], sample.shape.k[found["family"].test]
    assert np.all((held[0] == 5120) | (held[1] == 7168))
    assert subset(np.arange(100), 10).tolist() == subset(np.arange(100), 10).tolist()


def test_a_table_of_ones_own_is_fitted(tmp_path):
    """Times of another physics, half as fast: the fit finds them and says where it is from."""
    pytest.importorskip("scipy")
    from validation.assess import calibrate_own

    m, n, k = (grid.ravel() for grid in np.meshgrid(
        2 ** np.arange(0, 12, 2), [1024, 4096, 5120], [1024, 4096, 16384]))  # fmt: skip
    fit = load_calibration(CALIBRATION / "h100-sxm.toml", KERNELS)["gemm", "bf16"]
    shape = GemmShape(m.astype(float), n.astype(float), k.astype(float))
    slow = 2 * price(KERNELS["gemm"], shape, CHIP, "tiled", fit).time
    path = table(tmp_path / "own.csv", m=m, n=n, k=k, gemm_dtype=["bfloat16"] * len(m),
                 latency=slow * 1e3)  # fmt: skip
    errors = calibrate_own("h100-sxm", "gemm", "bf16", path, out=tmp_path / "fits")
    random = errors[(errors["split"] == "random") & (errors["level"] == "tiled")]
    assert random["geomean_error"].item() < 25
    mine = load_calibration(tmp_path / "fits" / "h100-sxm.toml", KERNELS)["gemm", "bf16"]
    assert mine.provenance == "measured: own.csv"
    with pytest.raises(SpecError, match="1 usable rows"):
        calibrate_own("h100-sxm", "gemm", "bf16", table(path), out=tmp_path / "fits")


def test_written_toml_reads_back():
    import tomllib

    data = {"a": 1, "b": 2.5e-6, "c": 'say "x"', "d": [1.0, 2.0], "t": {"x.y": {"z": True}}}
    assert tomllib.loads(dump(data)) == data


def test_a_chip_far_behind_the_same_die_with_less_bandwidth_was_not_alone(monkeypatch):
    from validation import tables

    keys = dict.fromkeys(tables.GDN_KEYS, 1)
    twin = pd.DataFrame([{**keys, "batch_size": size, "kernel_source": "scan", "latency": time}
                         for size, time in ((1, 1.0), (1, 3.0), (2, 2.0))])  # fmt: skip
    monkeypatch.setattr(tables, "uncleaned", lambda *place: twin)
    rows = twin.iloc[[0, 2]].assign(latency=[2.5, 2.3], system="h200_sxm")
    # against the median of 2: 1.25 times as long is out, 1.15 is noise; what has no twin stays
    rows = pd.concat([rows, rows.iloc[:1].assign(batch_size=9)])
    (rule,) = tables.DATASETS["gdn_chunk"].rules
    assert list(rule.keep(rows)) == [False, True, True]
    assert all(rule.keep(rows.assign(system="b200_sxm")))


def test_what_is_not_installed_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"pip install 'opgraph\[validation\]'"):
        load(DATASETS["gemm"], CHIP, "bf16", system="h100_sxm")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["validate", "--op", "gem"], "no measured class 'gem'; did you mean 'gemm'?"),
        (["validate", "--chip", "h100"], "did you mean 'h100-sxm'?"),
        (["calibrate", "--table", "x.csv", "--op", "gemm"], "give one --chip and one --op"),
    ],
)
def test_the_command_line_answers_a_wrong_word_with_the_right_one(
    monkeypatch, capsys, words, message
):
    monkeypatch.setattr(sys, "argv", ["opgraph", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_table_is_fitted_from_the_command_line(monkeypatch, capsys, tmp_path):
    pytest.importorskip("scipy")
    m, n = (grid.ravel() for grid in np.meshgrid(2 ** np.arange(10), 1024 * np.arange(1, 7)))
    path = table(tmp_path / "own.csv", m=m, n=n, k=m * 0 + 4096, gemm_dtype=["bfloat16"] * len(m),
                 latency=np.maximum(m * n / 1e8, 0.01))  # fmt: skip
    words = ["--table", path, "--chip", "mi300x", "--op", "gemm", "--out", tmp_path / "fits"]
    monkeypatch.setattr(sys, "argv", ["opgraph", "calibrate", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert "written to" in capsys.readouterr().out
    assert load_calibration(tmp_path / "fits" / "mi300x.toml", KERNELS).keys() == {("gemm", "bf16")}
