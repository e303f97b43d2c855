"""The census of communication: counts and bytes against closed forms and published ones."""

import json
import sys

import numpy as np
import pytest

from frontends import load_model
from hardware import SpecError, load_platform
from opgraph import Plan, Workload, cli, simulate

NODES = load_platform("dgx-h100:2")
WORK = Workload(batch=1, prompt=128, output=128)
# layers, hidden size and vocabulary, from the model cards
MODELS = {
    "llama-3.2-3b": (28, 3072, 128256),
    "llama-3.1-8b": (32, 4096, 128256),
    "llama-2-13b": (40, 5120, 32000),
}
BF16 = 2


def census(model, work=WORK, platform=NODES, **plan):
    report = simulate(load_model(model), platform, Plan(**plan), work)
    return report.communication()


def messages(frame, phase, collective, dims="batch seq model"):
    """(count, bytes) of each row."""
    rows = frame[(frame.phase == phase) & (frame.collective == collective) & (frame.dims == dims)]
    return [(row.count, row.bytes) for row in rows.itertuples(index=False)]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("tp", [2, 4, 8])
def test_tensor_parallelism_sums_twice_a_layer_and_once_in_the_embedding(model, tp):
    layers, hidden, vocab = MODELS[model]
    found = census(model, tp=tp)
    sums = 2 * layers + 1
    assert messages(found, "prefill", "all_reduce") == [(sums, 128 * hidden * BF16)]
    assert messages(found, "decode", "all_reduce") == [(sums * 127, hidden * BF16)]
    gathered = [
        messages(found, phase, "all_gather", "batch vocab") for phase in ("prefill", "decode")
    ]
    assert gathered == [[(1, vocab // tp * BF16)], [(127, vocab // tp * BF16)]]
    assert len(found) == 4


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("pp", [2, 4])
def test_stages_hand_on_hidden_state_and_residual(model, pp):
    _, hidden, _ = MODELS[model]
    found = census(model, pp=pp)
    boundaries = 2 * (pp - 1)
    assert messages(found, "prefill", "send") == [(boundaries, 128 * hidden * BF16)]
    assert messages(found, "decode", "send") == [(boundaries * 127, hidden * BF16)]
    # the token goes back to the first stage, which embeds it
    assert messages(found, "decode", "send", "batch") == [(127, 4)]
    assert len(found) == 3


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("tp", "pp"), [(2, 2), (4, 2), (2, 4)])
def test_hybrids_send_parts_and_gather_them_in_the_next_stage(model, tp, pp):
    layers, hidden, vocab = MODELS[model]
    found = census(model, tp=tp, pp=pp)
    for phase, tokens, steps in (("prefill", 128, 1), ("decode", 1, 127)):
        whole, boundaries = tokens * hidden * BF16, 2 * (pp - 1) * steps
        assert messages(found, phase, "all_reduce") == [((2 * layers + 1) * steps, whole)]
        assert messages(found, phase, "send") == [(boundaries, whole / tp)]
        assert messages(found, phase, "all_gather") == [(boundaries, whole / tp)]
        assert messages(found, phase, "all_gather", "batch vocab") == [(steps, vocab // tp * BF16)]


def test_sequence_parallelism_scatters_and_gathers_what_it_summed():
    whole = census("llama-3.1-8b", tp=4)
    parts = census("llama-3.1-8b", tp=4, sp=True)
    parts = parts[parts.phase == "prefill"].groupby("collective")["count"].sum()
    assert parts["reduce_scatter"] == messages(whole, "prefill", "all_reduce")[0][0]
    assert parts["all_gather"] == parts["reduce_scatter"]
    # what only one chip has, the last position, is summed
    assert parts["all_reduce"] == 1


def test_microbatches_are_counted_each():
    found = census("llama-3.1-8b", Workload(batch=8, prompt=128, output=128), pp=2, microbatches=4)
    assert messages(found, "prefill", "send") == [(4 * 2, 2 * 128 * 4096 * BF16)]


def test_one_chip_and_copies_of_it_send_nothing():
    assert census("llama-3.1-8b").empty
    assert census("llama-3.1-8b", Workload(batch=2), dp=2).empty


def test_bytes_are_those_of_the_shape():
    found = census("deepseek-v3", Workload(batch=64, prompt=32, output=4), tp=2, ep=16)
    size = {"bf16": 2, "fp8-row": 8.25 / 8, "int32": 4}
    assert {"all_to_all", "all_reduce", "all_gather"} <= {*found.collective}
    for row in found.itertuples():
        assert row.bytes == pytest.approx(np.prod(row.shape) * size[row.dtype], rel=1e-12)


def test_a_point_is_to_be_picked():
    work = Workload(batch=np.array([1, 4]), prompt=128, output=128)
    report = simulate(load_model("llama-3.1-8b"), NODES, Plan(tp=2), work)
    with pytest.raises(SpecError, match="pick one with"):
        report.communication()
    assert messages(report.at(1).communication(), "decode", "all_reduce") == [(8255, 4 * 8192)]


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_the_command_prints_it(flag, monkeypatch, capsys):
    words = ["simulate", "llama-3.1-8b", "--platform", "dgx-h100", "--tp", "2", "--prompt", "128"]
    monkeypatch.setattr(sys, "argv", ["opgraph", *words, "--communication", *flag])
    with pytest.raises(SystemExit):
        cli.main()
    text = capsys.readouterr().out
    if flag:
        first = json.loads(text)["communication"][0]
        assert (first["count"], first["bytes"], first["shape"]) == (65, 2**20, [1, 128, 4096])
    else:
        assert all(word in text for word in ("1,048,576", "all_gather"))
