"""How kernels are fitted: starts, and what other chips have says."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest

from opgraph.kernels import KERNELS
from opgraph.kernels.kernel import parameter
from validation.calibrate import ONE_CHIP, relatives
from validation.fitting import SPREAD, Prior, fit_parameters


@dataclass(frozen=True)
class OneKind:
    kind: float = parameter("1", 1e-2, 1, 1e4, "which of two kernels")


@dataclass(frozen=True)
class TwoKinds:
    kind: float = parameter("1", 1e-2, 1, 1e4, "which of two kernels", starts=(1, 100))


@pytest.mark.parametrize(("kind", "best"), [(OneKind, 1.0), (TwoKinds, 100.0)])
def test_a_fit_tries_all_starts_of_a_parameter(kind, best):
    pytest.importorskip("scipy")

    def predict(params):
        """Half a unit of ln error at best around 1, none at 100."""
        place = np.log(params.kind)
        return np.full(50, np.exp(min(place**2 + 0.5, (place - np.log(100)) ** 2)))

    found = fit_parameters(predict, np.ones(50), kind, prior=Prior(kind(), 3.0))
    assert found.kind == pytest.approx(best, rel=0.1)


def relatives_of(op, chip, dtype, found):
    return relatives(SimpleNamespace(op=op, chip_name=chip, dtype=dtype), found)


def test_four_chips_of_one_generation_do_not_outvote_the_others():
    start = KERNELS["all_gather"].parameters()
    quick, slow = (replace(start, bulk_step=seconds) for seconds in (1e-6, 1e-5))
    blackwell = dict.fromkeys([(chip, "any") for chip in ("b200-sxm", "gb200", "b300-sxm")], slow)
    found = {**blackwell, ("h200-sxm", "any"): quick, ("a100-sxm-80gb", "any"): quick}
    hopper, ultra = (
        relatives_of("all_gather", chip, "any", found) for chip in ("h100-sxm", "gb300")
    )
    assert hopper.centre.bulk_step == pytest.approx(1e-6)
    # of its own generation there are enough
    assert ultra.centre.bulk_step == pytest.approx(1e-5)
    # its library is of another version
    assert relatives_of("all_gather", "a100-sxm-80gb", "any", found) is None


def test_one_other_chip_says_little_of_how_far_apart_chips_are():
    fit = KERNELS["attention_prefill"].parameters()
    formats = ("bf16", "bf16-kv-fp8", "fp8")
    alone = relatives_of("attention_prefill", "l40s", "bf16",
                         {("rtx-pro-6000", form): fit for form in formats})  # fmt: skip
    assert alone.spread["tile"] == ONE_CHIP
    several = relatives_of("attention_prefill", "gb200", "bf16",
                           {(chip, "bf16"): fit for chip in ("b200-sxm", "h100-sxm")})  # fmt: skip
    assert several.spread["tile"] == SPREAD[0]
