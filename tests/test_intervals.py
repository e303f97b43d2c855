"""Intervals: what a fit has seen, how far errors reach outside it, and who may judge whom."""

import numpy as np
import pandas as pd
import pytest

from hardware import load_chip
from opgraph.kernels import KERNELS, RELATIONS, CollectiveShape, GemmShape, kernel_chip
from opgraph.kernels.interval import Band, seen, widened
from opgraph.kernels.smooth_roofline import SmoothRoofline
from validation.calibrate import Case, Fits, Pool
from validation.chips import MEASURED
from validation.conformal import ALL, coverage, ends
from validation.datasets import Sample
from validation.files import EVIDENCE, TABLE
from validation.splits import Split

CHIP = kernel_chip(load_chip("h100-sxm"))
GEMM = KERNELS["gemm"]
WITHIN = (75, 85)  # percent that 80 % intervals cover


def grid():
    return [v.ravel() for v in np.meshgrid([1.0, 64.0, 4096.0], [1024.0, 4096.0], [2048.0])]


@pytest.mark.parametrize(
    ("m", "n", "k", "relation", "octaves"),
    [
        (7, 1024, 2048, "fitted", 0),  # any load of a model that was measured
        (7, 2048, 2048, "new", 0),  # between sizes that were
        (7, 512, 2048, "new", 1),
        (7, 4096, 1024, "new", 1),
        (8192, 4096, 2048, "larger", np.log2(8192 * 4096 * 2048 / (4096 * 4096 * 2048))),
    ],
)
def test_a_shape_is_fitted_new_or_larger(m, n, k, relation, octaves):
    known = seen(GEMM, GemmShape(*grid()), CHIP)
    index, outside = known.relation(GEMM, GemmShape(float(m), float(n), float(k)), CHIP)
    assert RELATIONS[int(index)] == relation
    assert outside == pytest.approx(octaves, abs=0.01)


def test_arrays_stand_as_each_point_does():
    known = seen(GEMM, GemmShape(*grid()), CHIP)
    m, n = np.array([[1.0, 3e4]]), np.array([[1024.0], [3000.0], [8192.0]])
    index, outside = known.relation(GEMM, GemmShape(m, n, 2048.0), CHIP)
    for place in np.ndindex(3, 2):
        one = GemmShape(m[0, place[1]], n[place[0], 0], 2048.0)
        alone = [float(part) for part in known.relation(GEMM, one, CHIP)]
        assert [index[place], outside[place]] == pytest.approx(alone)


def test_an_interval_is_wider_further_outside():
    bands = {"fitted": Band(0.9, 1.1), "new": Band(0.8, 1.2), "larger": Band(0.7, 1.3)}
    low, high = widened(bands, np.array([0, 1, 2, 2]), np.array([0.0, 0.0, 1.0, 2.0]))
    assert low == pytest.approx([0.9, 0.8, 0.7**2, 0.7**3])
    assert high == pytest.approx([1.1, 1.2, 1.3**2, 1.3**3])


def toy(chip, spread, seed):
    """A case whose held-out errors are normal, `spread` times those of the rows fitted."""
    rng = np.random.default_rng(seed)
    nbytes = np.geomspace(1e3, 1e7, 400)
    shape = CollectiveShape(nbytes, np.full(400, 4.0), 450e9)
    rows = np.arange(400)
    split = Split(rows[::2], rows[1::2])
    machine = kernel_chip(load_chip(chip))
    sample = Sample(shape, nbytes, nbytes > 0, "toy", pd.DataFrame({"nbytes": nbytes}))
    case = Case("all_reduce", chip, "any", machine, sample, {"random": split})
    level = {"tiled": spread, "calibrated": spread}
    pool = Pool(None, SmoothRoofline(), level)
    gaps = {"random": dict.fromkeys(level, spread * rng.normal(size=200)),
            "chip": dict.fromkeys(level, spread * rng.normal(size=400))}  # fmt: skip
    return case, Fits({}, {}, pool, {"random": level}), gaps


def test_scores_of_all_chips_cover_what_they_promise():
    """Normal errors of very different size: their quantiles are those of one normal."""
    scored = [toy(chip, 0.02 * 2**i, i) for i, chip in enumerate(MEASURED)]
    found = ends(scored)
    assert found["tiled"]["fitted"][ALL] == pytest.approx([-1.2816, 1.2816], abs=0.1)
    for case, fits, gaps in scored:
        for by_split in coverage(case, fits, gaps, found).values():
            assert 70 < by_split["random"] < 90
            assert 70 < by_split["chip"] < 90


def test_no_row_of_a_chip_judges_that_chip():
    """A chip whose errors are ten times as large as its scatter says does not widen its own."""
    scored = [toy(chip, 0.05, i) for i, chip in enumerate(MEASURED)]
    case, fits, gaps = scored[0]
    wild = {split: {k: 10 * v for k, v in by_level.items()} for split, by_level in gaps.items()}
    before, after = ends(scored), ends([(case, fits, wild), *scored[1:]])
    for relation in ("fitted", "transferred"):
        tiled = before["tiled"][relation], after["tiled"][relation]
        assert tiled[0][case.chip_name] == tiled[1][case.chip_name]
        assert tiled[0]["b200-sxm"] != tiled[1]["b200-sxm"]
    siblings = before["tiled"]["transferred"]["h100-sxm"]
    wild_sibling = [(c, f, wild if c.chip_name == "h200-sxm" else g) for c, f, g in scored]
    # chips of one generation share their kernels, so neither may judge the other's transfer
    assert ends(wild_sibling)["tiled"]["transferred"]["h100-sxm"] == siblings


def test_intervals_of_the_committed_fits_cover_80_percent_of_each_class_and_split():
    table = pd.read_csv(EVIDENCE / TABLE)
    best = [KERNELS[op].level("corrected") for op in table["op"]]
    table = table[(table["level"] == best) & table["split"].isin(["random", "family", "largest"])]
    mean = table.groupby(["op", "split"])["coverage"].mean().round()
    assert mean.groupby("op").mean().round().between(*WITHIN).all()
    outside = mean[~mean.between(*WITHIN)]
    # low-latency combine on GB200 and GB300 misses more in its largest batches; what eight chips
    # behind L40S's host do cannot be learnt from two and four; of the one-token scan the largest
    # are 28 rows a chip, nearly alike
    known = {("combine", "largest"), ("all_reduce", "family"), ("gdn_recurrent", "largest")}
    assert set(outside.index) <= known, outside
    assert outside.between(70, 90).all()
