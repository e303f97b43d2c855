"""Robust, bounded fits in log space: of a kernel's parameters, and of its residual."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from opgraph.kernels.kernel import declared
from opgraph.kernels.residual import Residual, corners, place
from validation.toml import DIGITS

KNEE = 0.1  # |ln error| beyond which a row pulls less than quadratically
STEP = 1e-2  # relative step of the numerical derivative in ln(parameter)
EDGE = 1e-6  # how far inside its bounds a fit starts, in ln
EVALUATIONS = 60
NORMAL = 1.4826  # standard deviations in a median absolute deviation
REPEATS = 100  # parts of a wish, each so small that the robust loss leaves it quadratic
SPREAD = (0.1, 1.0)  # least and largest spread of a prior, in ln
PULL = 0.2  # weight of one spread of a prior against one ln error of a row, at FULL rows and more
FULL = 250  # errors of neighbouring shapes agree, so more rows than this count no more
SMOOTH = 0.3  # weight of the first differences of a residual table
RIDGE = 0.3  # weight that pulls a residual table to no correction
KNOTS = {1: 12, 2: 10, 3: 7}  # knots per feature by the number of features of a term


class Prior(NamedTuple):
    """Where parameters are expected, and how far from it in ln: one spread, or one each."""

    centre: Any
    spread: Any

    @classmethod
    def of(cls, kind: type, found: Sequence[Any], least: float = SPREAD[0]) -> "Prior":
        """Return the median of several fits with their spread (of a normal distribution)."""
        logs = {p.name: np.log([getattr(fit, p.name) for fit in found]) for p in declared(kind)}
        centre = kind(**{name: float(np.exp(np.median(v))) for name, v in logs.items()})
        apart = {name: NORMAL * np.median(np.abs(v - np.median(v))) for name, v in logs.items()}
        spread = {name: float(np.clip(v, least, SPREAD[1])) for name, v in apart.items()}
        return cls(centre, spread)


def fit_parameters(
    predict: Callable[[Any], Any], measured: np.ndarray, kind: type, *, prior: Prior
) -> Any:
    """Return the parameters of `kind` that fit `predict(params)` to measured times.

    Minimises soft-L1 of ln(predicted / measured) within the declared bounds, starting from and
    drawn to the prior; from every combination of the parameters that have several starts.
    """
    from scipy.optimize import least_squares

    table = {p.name: p for p in declared(kind)}
    low = np.log([p.lower for p in table.values()])
    high = np.log([p.upper for p in table.values()])
    centre = np.clip(
        np.log([getattr(prior.centre, name) for name in table]), low + EDGE, high - EDGE
    )
    spread = [prior.spread[n] if isinstance(prior.spread, dict) else prior.spread for n in table]
    free = np.array([bool(p.starts) for p in table.values()])
    pull = PULL * min(1.0, np.sqrt(len(measured) / FULL)) / np.asarray(spread) * ~free

    def build(z: np.ndarray) -> Any:
        return kind(**dict(zip(table, np.exp(z).tolist(), strict=True)))

    def errors(z: np.ndarray) -> np.ndarray:
        wish = np.repeat(pull * (z - centre) / np.sqrt(REPEATS), REPEATS)
        return np.concatenate([np.log(predict(build(z)) / measured), wish])

    choices = [np.log(p.starts) if p.starts else [middle]
               for p, middle in zip(table.values(), centre, strict=True)]  # fmt: skip
    starts = {tuple(np.clip(start, low + EDGE, high - EDGE)) for start in product(*choices)}
    found = [least_squares(
        errors, start, bounds=(low, high), loss="soft_l1", f_scale=KNEE, max_nfev=EVALUATIONS,
        diff_step=STEP, x_scale="jac",
    ) for start in sorted(starts)]  # fmt: skip
    best = np.exp(min(found, key=lambda fit: fit.cost).x)
    # to the digits that a file keeps, so that what is scored is what is stored
    return kind(**{name: float(f"{v:.{DIGITS}g}") for name, v in zip(table, best, strict=True)})


def fit_residual(
    features: Mapping[str, np.ndarray], gap: np.ndarray, terms: tuple[tuple[str, ...], ...]
) -> Residual:
    """Return tables that smooth `gap` = ln(measured / physics); robust by one reweighting pass."""
    from scipy import sparse
    from scipy.sparse.linalg import spsolve

    knots = {
        name: _knots(features[name], min(len(t) for t in terms if name in t))
        for name in dict.fromkeys(n for t in terms for n in t)
    }
    terms = tuple(tuple(n for n in t if len(knots[n]) > 1) for t in terms)
    terms = tuple(t for t in dict.fromkeys(terms) if t)
    design = sparse.hstack([_design(features, knots, term) for term in terms]).tocsr()
    penalty = sparse.block_diag([_penalty([len(knots[n]) for n in term]) for term in terms])
    weight = np.ones(len(gap))
    for _ in range(2):
        scaled = design.T.multiply(weight).tocsr()
        coefficients = spsolve((scaled @ design + penalty).tocsc(), scaled @ gap)
        miss = np.abs(gap - design @ coefficients) / KNEE
        weight = 1 / np.sqrt(1 + miss**2)
    sizes = [[len(knots[n]) for n in term] for term in terms]
    parts = np.split(coefficients, np.cumsum([np.prod(s) for s in sizes])[:-1])
    tables = {t: p.reshape(s) for t, p, s in zip(terms, parts, sizes, strict=True)}
    return Residual({n: knots[n] for t in terms for n in t}, tables)


def _knots(values: np.ndarray, dimensions: int) -> np.ndarray:
    """Return knots at even quantiles of the distinct values."""
    distinct = np.unique(np.round(values, 6))
    return np.unique(np.quantile(distinct, np.linspace(0, 1, KNOTS[dimensions])))


def _design(
    features: Mapping[str, np.ndarray], knots: Mapping[str, np.ndarray], term: tuple[str, ...]
) -> Any:
    """Return the interpolation weights of one term, one row per point."""
    from scipy import sparse

    shape = tuple(len(knots[name]) for name in term)
    count = len(features[term[0]])
    cells = corners([place(knots[name], features[name]) for name in term], shape)
    rows = np.tile(np.arange(count), len(cells))
    flat = np.concatenate([index for index, _ in cells])
    weight = np.concatenate([value for _, value in cells])
    return sparse.csr_matrix((weight, (rows, flat)), shape=(count, int(np.prod(shape))))


def _penalty(sizes: list[int]) -> Any:
    """Return RIDGE on every entry and SMOOTH on differences between neighbours."""
    from scipy import sparse

    total = sparse.identity(int(np.prod(sizes))) * RIDGE
    for axis, size in enumerate(sizes):
        step = sparse.diags([-np.ones(size - 1), np.ones(size - 1)], [0, 1], (size - 1, size))
        parts = [sparse.identity(s) if i != axis else step.T @ step for i, s in enumerate(sizes)]
        block = parts[0]
        for part in parts[1:]:
            block = sparse.kron(block, part)
        total = total + SMOOTH * block
    return total.tocsr()
