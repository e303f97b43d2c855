"""Whole steps beside AIConfigurator's sum over its measured tables."""

import pytest

from hardware import SpecError
from opgraph.cost import LEVELS

pytest.importorskip("aiconfigurator_core")
pytest.importorskip("yaml")
steps = pytest.importorskip("validation.steps")

# What our step and theirs may differ by, from what is known and not from the outcome: fitted
# kernels are allowed 8.5 to 10 % on shapes never fitted (issue 4: fp8 products 8.5, attention 9,
# all-reduce 10); and two of our four quantisers a layer are fused on their side, the others cost
# 1.1 us more: 80 × (2 × 2 + 2 × 1.1) us = 0.5 ms, up to 9 % of the shortest step.
KERNELS, QUANTISERS = 0.10, 0.09
BAND = KERNELS + QUANTISERS


@pytest.fixture(scope="module", params=list(steps.SETUPS))
def frame(request):
    return steps.compare(request.param)


def test_classes_sum_to_both_totals(frame):
    keys = ["phase", "batch", "context", "level"]
    whole = frame[frame["class"] == "total"].set_index(keys)
    parts = frame[frame["class"] != "total"].groupby(keys)
    for side in ("ours_ms", "theirs_ms", "difference_ms"):
        assert parts[side].sum().to_dict() == pytest.approx(whole[side].to_dict(), rel=1e-6)


def test_every_step_has_every_level_and_class(frame):
    assert len(frame) == len(steps.STEPS) * len(LEVELS) * (len(steps.CLASSES) + 1)
    assert set(frame["class"]) == {*steps.CLASSES, "total"}
    total = frame[frame["class"] == "total"]
    assert (total["ours_ms"] > 0).all()
    assert (total["theirs_ms"] > 0).all()


def test_no_operator_of_ours_is_unclassified():
    for model in steps.SETUPS:
        for step in steps.STEPS:
            time, shares = steps.our_step(model, "dgx-h200", step, "corrected")
            other = {share.name for share in shares if share.kind == "other" and share.time}
            assert other <= {"sample", "overlap"}
            assert sum(s.time for s in shares if s.name == "overlap") == pytest.approx(
                0, abs=1e-6 * time
            )


@pytest.mark.parametrize("step", steps.STEPS, ids=lambda step: "-".join(map(str, step)))
def test_llama_is_within_what_is_explained(step):
    ours, _ = steps.our_step("llama-3.1-70b", "dgx-h200", step, "corrected")
    theirs = steps.their_step_fitted("llama-3.1-70b", "dgx-h200", step)
    assert ours == pytest.approx(theirs, rel=BAND)


@pytest.mark.parametrize("step", steps.STEPS, ids=lambda step: "-".join(map(str, step)))
def test_a_fitted_step_is_closer_than_the_roofline(step):
    theirs, _ = steps.their_step("deepseek-v3", "dgx-h200", step)
    ideal, corrected = (
        steps.our_step("deepseek-v3", "dgx-h200", step, level)[0]
        for level in (LEVELS[0], LEVELS[-1])
    )
    assert abs(corrected - theirs) < abs(ideal - theirs) / 2


def test_what_is_not_there_is_refused():
    with pytest.raises(SpecError, match="no setup for"):
        steps.compare("llama")
    with pytest.raises(SpecError, match="no tables for"):
        steps.compare("llama-3.1-70b", "h200")


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr("validation.extras.find_spec", lambda name: None)
    steps._engine.cache_clear()
    with pytest.raises(SpecError, match=r"pip install 'opgraph\[validation\]'"):
        steps.their_step("llama-3.1-70b", "dgx-h200", steps.STEPS[0])
