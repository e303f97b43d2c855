"""Explore: every plan that a platform allows, priced as arrays, and the best of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardware import Group, Platform, SpecError, format_quantity
from hardware.errors import nearest, shown
from opgraph.capacity import largest
from opgraph.cost import CostModel, Host, cost_model
from opgraph.memory import Reserve
from opgraph.model import Model
from opgraph.plan import Plan
from opgraph.point import Point
from opgraph.report import Report
from opgraph.simulation import Modelled, check_arguments, evaluate
from opgraph.stages import num_layers
from opgraph.workload import Workload

if TYPE_CHECKING:
    import pandas as pd

# what can be made best: its column, and whether more is better
OBJECTIVES = {
    "throughput": ("tokens_per_s_per_chip", True),
    "tpot": ("tpot_ms", False),
    "ttft": ("ttft_ms", False),
}
_MILLI, _GIGA = 1e3, 1e9
_ARRAYS = ("tp", "cp", "attention_dp", "dp", "ep", "redundant_experts")
_AXES = ("tp", "pp", "cp", "attention_dp", "dp")
_FIELDS = (*_AXES, "ep", "redundant_experts")
_SHORT = {"attention_dp": "adp"}
# the axes that are searched if no others are asked for
_SEARCHED = ("tp", "pp", "attention_dp", "dp")

Track = Callable[[list[Any]], Iterable[Any]]


@dataclass(frozen=True, eq=False)
class Search:
    """What a search found.

    Attributes
    ----------
    table : a row for each plan and batch that fits and keeps the SLOs, best first: the degrees,
        ``batch ttft_ms tpot_ms tokens_per_s tokens_per_s_per_chip tokens_per_s_per_user
        memory_GB pareto``.
    infeasible : plans that cannot be, each with the reason.
    candidates : how many plans and batches were priced.
    """

    table: "pd.DataFrame"
    infeasible: tuple[tuple[dict[str, int], str], ...]
    candidates: int
    at: Callable[[dict[str, int], int], Point] = field(repr=False)

    @cached_property
    def best(self) -> Report:
        """The report of the best plan.

        Raises
        ------
        SpecError : no plan is feasible; the message says why most are not.
        """
        return self.report(0)

    def report(self, row: int) -> Report:
        """The report of a row of the table."""
        if row >= len(self.table):
            raise SpecError(f"no plan is feasible: {self.why}")
        found = self.table.iloc[row]
        plan = {name: int(found[name]) for name in _FIELDS}
        return evaluate(self.at(plan, int(found["batch"])))

    @property
    def why(self) -> str:
        """The commonest reason why plans are infeasible."""
        reasons = [reason for _, reason in self.infeasible]
        return max(reasons, key=reasons.count) if reasons else "nothing keeps the SLOs"

    def name_of(self, row: Any) -> str:
        """The degrees of a row of the table that are not 1: ``tp8 ep16``."""
        degrees = {name: int(row[name]) for name in _FIELDS[:-1]}
        return " ".join(f"{_SHORT.get(n, n)}{d}" for n, d in degrees.items() if d > 1) or "1 chip"

    def to_dict(self) -> dict[str, Any]:
        """The rows, the front and why other plans are infeasible, as ``--json`` prints them."""
        return {
            "candidates": self.candidates,
            "plans": self.table.to_dict("records"),
            "pareto": self.pareto.to_dict("records"),
            "infeasible": [{**plan, "reason": reason} for plan, reason in self.infeasible],
        }

    @property
    def pareto(self) -> "pd.DataFrame":
        """The rows that no other beats in both tokens/s per user and per chip, fastest first."""
        front = self.table[self.table["pareto"]]
        return front.sort_values("tpot_ms").reset_index(drop=True)


def best_plans(  # noqa: PLR0913 each is a question of its own
    model: Model | Modelled,
    platform: Platform,
    workload: Workload | None = None,
    *,
    slo_ttft: float = np.inf,
    slo_tpot: float = np.inf,
    objective: str = "throughput",
    batch: int | None = None,
    plan: Plan | None = None,
    axes: Sequence[str] = _SEARCHED,
    cost: str | CostModel = "ideal",
    host: Host | None = None,
    reserve: Reserve | None = None,
    track: Track = iter,
) -> Search:
    """Price every plan that uses all chips of *platform*, at batches up to what fits, and rank.

    Parameters
    ----------
    model, platform, cost, host, reserve : as in `simulate`.
    workload : prompt, output and the rest; its batch is not used.
    slo_ttft, slo_tpot : the longest time to first token and per output token, in seconds.
    objective : ``throughput`` (per chip, prefill included), ``tpot`` or ``ttft``.
    batch : the only batch to try; powers of two up to what fits if not given.
    plan : what all plans have in common (``sp``, ``interleave``, ``order`` …); its degrees are
        not used.
    axes : the axes to search, of ``tp pp cp attention_dp dp``; experts are split in every way.
    track : wraps the list of the parts of the search, to show how far it is.

    Raises
    ------
    SpecError : an objective that there is not, an SLO that is no time, a skew without experts,
        or an argument of another kind.
    """
    if objective not in OBJECTIVES:
        raise SpecError(f"no objective {objective!r}{nearest(str(objective), OBJECTIVES)}")
    for name, slo in (("slo_ttft", slo_ttft), ("slo_tpot", slo_tpot)):
        if not (isinstance(slo, int | float) and slo > 0):
            raise SpecError(f"{name} is {shown(slo)}, but must be seconds above 0")
    workload = Workload() if workload is None else workload
    common, pricing = Plan() if plan is None else plan, cost_model(cost)
    check_arguments("best_plans", model, platform, common, workload)
    model = model if isinstance(model, Model) else model.to_model()
    model.check_skew(workload.skew)

    def at(degrees: Mapping[str, Any], batches: Any) -> Point:
        plan, work = replace(common, layers=(), **degrees), replace(workload, batch=batches)
        return Point(model, platform, plan, work, pricing, host or Host(), reserve or Reserve())

    every = at(dict.fromkeys(_FIELDS[:-1], 1), 1 if batch is None else batch)
    if every.shape:
        raise SpecError(
            f"best_plans: platform, batch and workload hold {every.shape} points: search each"
        )
    plans, infeasible = _feasible(model, platform, common, axes)
    rows = []
    for group in track(_groups(plans)):
        table, crowded = _price(group, batch, at)
        rows.append(table)
        infeasible += crowded
    table = _ranked(rows, objective, slo_ttft, slo_tpot)
    return Search(table, tuple(infeasible), sum(map(len, rows)), at)


def _feasible(
    model: Model, platform: Platform, common: Plan, axes: Sequence[str]
) -> tuple[list[dict[str, int]], list[tuple[dict[str, int], str]]]:
    """The plans on all chips that the model's dimensions allow; the others, and why not."""
    _check_axes(axes)
    experts = max((n for d, n in model.numbers.items() if d.startswith("experts")), default=0)
    if not experts:
        # without experts, copies of attention are copies of the model
        axes = [axis for axis in axes if axis != "attention_dp"]
    plans, infeasible = [], []
    for degrees in _factorings(platform.num_chips, axes):
        whole = dict.fromkeys(_AXES, 1) | degrees
        stage = whole["tp"] * whole["cp"] * whole["attention_dp"]
        for ep in _divisors(stage) if experts else (1,):
            found: dict[str, Any] = {**whole, "ep": ep, "redundant_experts": -experts % ep}
            try:
                made = replace(common, layers=(), **found)
                made.check(model.numbers, platform.num_chips, platform.name)
                _check_layers(model, made)
                _check_places(made, platform)
            except SpecError as error:
                infeasible.append((found, str(error)))
            else:
                plans.append(found)
    return plans, infeasible


def _check_axes(axes: Sequence[str]) -> None:
    if not axes:
        raise SpecError(f"axes: give some of {', '.join(_AXES)}")
    for axis in axes:
        if axis not in _AXES:
            raise SpecError(f"axes: {shown(axis)} is no axis{nearest(str(axis), _AXES)}")


def _check_layers(model: Model, plan: Plan) -> None:
    layers = num_layers(model.decode)
    if plan.num_pieces > layers:
        raise SpecError(f"pp={plan.pp}: {model.name} has only {layers} layers")


def _check_places(plan: Plan, platform: Platform) -> None:
    """Refuse a plan whose groups cannot be placed, before arrays of plans are priced."""
    for size, stride in plan.mesh.values():
        platform.collective("all_gather", 1.0, Group(size, stride))


def _price(
    group: list[dict[str, int]], batch: int | None, at: Callable[[Mapping[str, Any], Any], Point]
) -> tuple["pd.DataFrame", list[tuple[dict[str, int], str]]]:
    """Every plan of *group* at every batch that fits; the plans with which none does, and why."""
    import pandas as pd

    arrays = {name: np.array([[plan[name]] for plan in group]) for name in _ARRAYS}
    degrees: dict[str, Any] = {"pp": group[0]["pp"], **arrays}
    if batch is None:
        batches = _batches(np.reshape(largest(at(degrees, 1), "batch"), len(group)))
    else:
        batches = np.full((len(group), 1), batch)
    report = evaluate(at(degrees, np.maximum(batches, 1)))
    shape = batches.shape
    fits = np.broadcast_to(report.fits, shape) & (batches > 0)
    columns = {
        **{name: np.broadcast_to(value, shape)[fits] for name, value in degrees.items()},
        "batch": batches[fits],
        "ttft_ms": np.broadcast_to(report.ttft, shape)[fits] * _MILLI,
        "tpot_ms": np.broadcast_to(report.tpot, shape)[fits] * _MILLI,
        "tokens_per_s": np.broadcast_to(report.throughput, shape)[fits],
        "memory_GB": np.broadcast_to(report.memory.total, shape)[fits] / _GIGA,
    }
    table = pd.DataFrame(columns).drop_duplicates()
    crowded = []
    capacity = format_quantity(float(np.max(report.memory.capacity)), "B")
    # the first column is the smallest batch that was asked for
    needs = np.broadcast_to(report.memory.total, shape)[:, 0]
    for index in np.flatnonzero(~fits.any(axis=1)):
        reason = f"does not fit: {format_quantity(float(needs[index]), 'B')} of {capacity}"
        crowded.append((group[index], reason))
    return table, crowded


def _ranked(
    rows: list["pd.DataFrame"], objective: str, slo_ttft: float, slo_tpot: float
) -> "pd.DataFrame":
    """The rows that keep the SLOs, best first."""
    import pandas as pd

    table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=["tpot_ms"])
    if not len(table):
        return table.assign(pareto=[])
    whole = [name for name in (*_FIELDS, "batch") if name in table]
    table = table.astype(dict.fromkeys(whole, int))
    chips = table["tp"] * table["pp"] * table["cp"] * table["attention_dp"] * table["dp"]
    table["tokens_per_s_per_chip"] = table["tokens_per_s"] / chips
    table["tokens_per_s_per_user"] = 1 / table["tpot_ms"] * _MILLI
    kept = (table["ttft_ms"] <= slo_ttft * _MILLI) & (table["tpot_ms"] <= slo_tpot * _MILLI)
    table = table[kept].reset_index(drop=True)
    column, descending = OBJECTIVES[objective]
    table["pareto"] = _is_pareto(table["tokens_per_s_per_user"], table["tokens_per_s_per_chip"])
    order = [column, "tpot_ms", "pp", "tp", "attention_dp", "dp"]
    table = table.sort_values(order, ascending=[not descending, *[True] * (len(order) - 1)])
    return table.reset_index(drop=True)


def _is_pareto(first: Any, second: Any) -> NDArray[np.bool_]:
    """Which points no other beats in both; of equal ones all count."""
    one, two = np.asarray(first, float), np.asarray(second, float)
    order = np.lexsort((-two, -one))
    best = np.maximum.accumulate(two[order]) if len(two) else two
    before = np.concatenate([[-np.inf], best[:-1]])
    on_front = np.zeros(len(one), bool)
    on_front[order] = two[order] > before
    return on_front


def _batches(most: NDArray[Any]) -> NDArray[np.float64]:
    """For each plan the powers of two up to the *most* that fits, and that itself."""
    powers = 2.0 ** np.arange(max(1, int(np.log2(max(np.max(most), 1))) + 1))
    return np.hstack([np.minimum(powers, most[:, None]), most[:, None]])


def _groups(plans: list[dict[str, int]]) -> list[list[dict[str, int]]]:
    """The plans that are priced as one array: with as many stages."""
    found: dict[int, list[dict[str, int]]] = {}
    for plan in plans:
        found.setdefault(plan["pp"], []).append(plan)
    return list(found.values())


def _factorings(number: int, axes: Sequence[str]) -> Iterator[dict[str, int]]:
    """Every way to write *number* as a product of degrees of *axes*."""
    first, *others = axes
    if not others:
        yield {first: number}
        return
    for degree in _divisors(number):
        for rest in _factorings(number // degree, others):
            yield {first: degree, **rest}


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
