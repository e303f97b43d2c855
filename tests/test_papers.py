"""Papers: every row that is printed passes, and the contract of the command holds."""

import json
import sys

import numpy as np
import pytest

from frontends import load_model
from hardware import Level, Link, Platform, SpecError, load_chip, load_platform
from hardware.technology import technology
from opgraph import Calibrated, Efficiency, Plan, Workload, cli, simulate
from validation.papers import PAPERS, Row, reproduce
from validation.papers.mla_moe import busiest_rows, busiest_touched
from validation.papers.photonic import latency_gain, served


@pytest.mark.parametrize("paper", PAPERS)
def test_every_row_passes(paper):
    rows = reproduce(paper)
    assert len(rows) >= 4
    assert not [row for row in rows if not row.passes]


@pytest.mark.parametrize("paper", PAPERS)
def test_the_command_prints_the_rows(paper, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["opgraph", "reproduce", paper, "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert all(row.keys() >= {"case", "published", "ours", "difference", "passes"} for row in rows)


def test_a_row_says_how_far_it_is_off():
    row = Row("half as much again", published=2.0, ours=3.0, tolerance=0.4)
    assert (row.difference, row.passes) == (0.5, False)
    assert Row("as far as allowed", 2.0, 2.8, 0.4 + 1e-12).passes


def test_a_prediction_differs_from_nothing(monkeypatch, capsys):
    row = Row("predicted", None, 3.0)
    assert (row.difference, row.passes) == (None, True)
    monkeypatch.setattr(sys, "argv", ["opgraph", "reproduce", "liminal"])
    with pytest.raises(SystemExit):
        cli.main()
    predicted = next(line for line in capsys.readouterr().out.splitlines() if "hbm4 TP8" in line)
    assert predicted.split().count("–") == 3


@pytest.mark.parametrize(("chips", "tokens"), [(8, 32), (32, 4096)])
def test_the_busiest_chip_by_drawing_experts(chips, tokens):
    """256 experts, 8 per token, 200 draws; 256/chips on each chip."""
    random = np.random.default_rng(0)
    rows, touched = [], []
    for _ in range(200):
        chosen = random.random((tokens, 256)).argpartition(8, axis=1)[:, :8]
        rows.append(np.bincount(chosen.ravel() * chips // 256, minlength=chips).max())
        touched.append(np.bincount(np.unique(chosen) * chips // 256, minlength=chips).max())
    assert busiest_rows(256, 8, chips, tokens) == pytest.approx(np.mean(rows), rel=0.02)
    assert busiest_touched(256, 8, chips, tokens) == pytest.approx(np.mean(touched), rel=0.02)


def test_one_chip_is_the_busiest_of_one():
    assert busiest_rows(256, 8, 1, 100) == 800
    assert busiest_touched(4, 4, 1, 1) == pytest.approx(4)


def test_latent_attention_serves_many_times_more_than_multi_head():
    """Yun et al.: per chip, DeepSeek-R1 up to 41 times GPT-3 and twice Llama-4-Maverick."""
    rates = {}
    for name, plan, batch in (
        ("deepseek-r1", Plan(ep=32), 6496),
        ("llama-4-maverick", Plan(tp=8, attention_dp=4, ep=32), 3256),
        ("gpt-3-175b", Plan(tp=8, dp=4), 120),
    ):
        model = load_model(name, weights="bf16", kv_cache="bf16")
        work = Workload(batch=batch, prompt=8191, output=2)
        rates[name] = simulate(model, load_platform("b200-sxm:32"), plan, work).decode_throughput
    assert 10 < rates["deepseek-r1"] / rates["gpt-3-175b"] < 50
    assert 0.8 < rates["deepseek-r1"] / rates["llama-4-maverick"] < 2.5


def test_the_appliance_gains_with_its_batch():
    most = served("appliance").point.workload.batch
    rates = [served("appliance", batch).throughput for batch in (105, 420, 1680, 6720, most)]
    gains = np.array(rates) / served("dgx").throughput
    assert np.all(np.diff(gains) > 0)
    assert 2.5 < gains[-1] < 4.5


def test_the_appliance_gains_latency_from_slow_all_reduces():
    gains = [latency_gain(seconds) for seconds in (1e-6, 5e-6, 10e-6, 20e-6)]
    assert np.all(np.diff(gains) > 0)
    assert 1.2 < gains[2] < 1.6


@pytest.mark.parametrize("hop", ["tray", "rack", "cluster"])
def test_light_saves_most_of_the_energy_of_a_hop(hop):
    """Ding & Diep: 60 to 90 % of the energy of moving data."""
    links = technology().links
    saved = 1 - links[f"photonic-{hop}"].energy / links[hop].energy
    assert 0.6 < saved < 0.9


def test_tensor_parallelism_across_nodes_waits_for_them():
    """TPOT 13 times as long once TP8 leaves a node of four: as if all-reduces took 170 µs there.

    Of a model of 3B: of no larger one do the weights allow the times that are published.
    """
    chip = load_chip("h100-sxm")
    slow = Calibrated({"all_reduce": Efficiency(overhead=170e-6)})
    model, work = load_model("llama-3.2-3b"), Workload(batch=1, prompt=128, output=128)

    def tpot(tp, cost="ideal"):
        link = Link(50e9, 3e-6)
        levels = (Level("node", 4, chip.scale_up), Level("cluster", 2, link))
        platform = Platform("two nodes of four", chip.source, chip, levels)
        return simulate(model, platform, Plan(tp=tp), work, cost=cost).tpot

    assert tpot(4) < tpot(2)
    assert tpot(8, slow) > 5 * tpot(4)
    # at the latency of the wires alone there is no such jump
    assert tpot(8) < 2 * tpot(4)


def test_five_dimensions_of_parallelism_each_send_what_they_must():
    """imec (arXiv:2507.02456): data, tensor, pipeline, context and expert parallelism at once."""
    plan = Plan(tp=2, pp=2, ep=4, dp=2, cp=2)
    work = Workload(batch=8, prompt=64, output=8)
    report = simulate(load_model("qwen3-235b-a22b"), load_platform("dgx-h100:2"), plan, work)
    assert report.num_chips == 2**4
    census = report.communication()
    sent = {(row.collective, row.axes.split(".")[0].split()[0]) for row in census.itertuples()}
    assert {"tp", "cp", "pp"} <= {axis for _, axis in sent}
    # copies of the model have nothing to say to each other
    assert not census["axes"].str.contains("dp").any()


def test_an_unknown_paper_is_refused():
    with pytest.raises(SpecError, match="did you mean 'fpga'"):
        reproduce("fpgas")
