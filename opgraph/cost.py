"""Cost models: how long one operator takes on one chip, and what limits it.

`Roofline` is the ideal: the longer of computing at the datasheet's peak and moving at the
datasheet's bandwidth. `Calibrated` takes efficiencies and fixed overheads per kind of operator
from the user and is the ideal where there are none. `fitted.Fitted` has kernels fitted on
measurements. The first two price collectives by latency and bandwidth
(α–β) with the fastest algorithm that the links allow.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hardware import Number, Platform, Span, SpecError, Tier, collective
from hardware.arithmetic import ever, larger, product, smaller, where
from hardware.errors import nearest, shown
from opgraph.counts import is_within
from opgraph.offload import Fetch
from opgraph.operator import Collective, Operator, Send, Work
from opgraph.plan import Plan
from opgraph.sizes import Sizes

# in the order of `kernels.Limiter`
LIMITERS = (
    "compute", "memory", "cache", "launch",
    "network bandwidth", "network latency", "tier bandwidth",
)  # fmt: skip
COMPUTE, MEMORY, CACHE, LAUNCH, NETWORK_BANDWIDTH, NETWORK_LATENCY, TIER = range(7)
# a conversion and a product with the scale for each weight that is stored narrower than it is used
UNPACK_FLOP = 2


@dataclass(frozen=True, slots=True)
class Cost:
    """What one execution of an operator takes.

    Attributes
    ----------
    time : seconds.
    limiter : index into `LIMITERS`, an integer or an array of them.
    work : what was asked of the chip.
    algorithm : of a collective, the one chosen (the first point's where sizes are arrays).
    group_size : chips that take part in it.
    low, high : seconds between which 80 % of measurements lie; None: as *time*, a bound.
    provenance : ``ideal``, ``measured`` (a fit of this chip), ``transferred``.
    sent : of a transfer, bytes that a chip puts on its links.
    holds_cores, holds_bandwidth : of a transfer, the shares of the chip's cores and of its
        memory's bandwidth that nothing else has while it runs.
    """

    time: Number
    limiter: int | NDArray[np.intp]
    work: Work
    algorithm: str = ""
    group_size: Number = 1
    low: Number | None = None
    high: Number | None = None
    provenance: str = "ideal"
    sent: Number = 0.0
    holds_cores: Number = 0.0
    holds_bandwidth: Number = 0.0


@dataclass(frozen=True, kw_only=True)
class Host:
    """What the host that drives the chips costs, in seconds; a number or an array each.

    Parameters
    ----------
    per_step : before the first operator of a step: scheduling, sampling, preparing inputs. For
        vLLM on eight H100, Davies et al. (LIMINAL v2, arXiv:2507.14397, section 5) fit 95–138 µs
        for each layer of the model.
    per_operator : least time of an operator that is launched one by one (eager); nothing where
        the step is a captured graph.
    """

    per_step: Number = 0.0
    per_operator: Number = 0.0

    def __post_init__(self) -> None:
        for name in ("per_step", "per_operator"):
            value = getattr(self, name)
            if not is_within(value, 0, np.finfo(float).max):
                raise SpecError(f"host: {name} is {shown(value)}, but must be seconds ≥ 0")


@dataclass(frozen=True)
class Machine:
    """A platform used under a plan, driven by a host.

    *tier*: from where it fetches; *cached*: the share of that which the cache before it holds.
    """

    platform: Platform
    plan: Plan
    host: Host = field(default_factory=Host)
    tier: Tier | None = None
    cached: Number = 0.0


class CostModel(Protocol):
    """Prices an operator of a sharded graph."""

    @property
    def name(self) -> str:
        """The word by which it is chosen and under which results record it."""

    @property
    def tolerance(self) -> float:
        """How far a step's time may bend over an interval of contexts, relative to itself, and
        still count as straight when decode steps are averaged.
        """

    def cost(self, operator: Operator, sizes: Sizes, machine: Machine) -> Cost:
        """The cost of one execution of *operator* on one chip of *machine*."""


Priced = Callable[[Any, Operator, Sizes, Machine], Cost]


def once(cost: Priced) -> Priced:
    """The method *cost* of a model that looks at no names: operators that are alike but for theirs
    are priced once at the same sizes.
    """

    @wraps(cost)
    def found(model: Any, operator: Operator, sizes: Sizes, machine: Machine) -> Cost:
        # by identity, and kept alive: neither models nor machines need be hashable
        key = (operator.likeness, cost, id(model), id(machine))
        if key not in sizes.priced:
            sizes.priced[key] = cost(model, operator, sizes, machine), model, machine
        answer: Cost = sizes.priced[key][0]
        return answer

    return found


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What a kind of operator reaches of the datasheet's figures; neutral by default.

    time = ((flop / (compute·peak))ᵖ + (bytes / (memory·bandwidth))ᵖ)^(1/p) + overhead

    with p = *blend* (infinite: the longer of the two) and *overhead* in seconds.
    """

    compute: float = 1.0
    memory: float = 1.0
    overhead: float = 0.0
    blend: float = np.inf


NEUTRAL = Efficiency()
# levels of fidelity: the roofline, and those of `fitted.Fitted`
LEVELS = ("ideal", "calibrated", "tiled", "corrected")


@dataclass(frozen=True, slots=True)
class Roofline:
    """The ideal: datasheet peaks, no overheads (Williams, Waterman & Patterson 2009)."""

    name: str = "ideal"
    tolerance: float = 1e-12

    @once
    def cost(self, operator: Operator, sizes: Sizes, machine: Machine) -> Cost:
        """The longer of computing and moving; a collective at the links' α and β."""
        return _cost(operator, sizes, machine, NEUTRAL)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The roofline at measured efficiencies, per kind of operator.

    *efficiencies* maps a kind (``gemm``, ``attention``, ``all_reduce`` …) to what it reaches;
    a kind that is not there is ideal. *source* says where they come from.
    """

    efficiencies: Mapping[str, Efficiency] = field(default_factory=dict)
    source: str = "none: neutral"
    name: str = "efficiencies"
    tolerance: float = 1e-6

    @once
    def cost(self, operator: Operator, sizes: Sizes, machine: Machine) -> Cost:
        """The cost at the efficiency of the operator's kind."""
        return _cost(operator, sizes, machine, self.efficiencies.get(operator.kind, NEUTRAL))


def cost_model(choice: str | CostModel) -> CostModel:
    """The cost model called *choice*, or *choice* itself.

    Raises
    ------
    SpecError : no such name.
    """
    if not isinstance(choice, str):
        return choice
    if choice not in LEVELS:
        raise SpecError(f"no cost model {choice!r}{nearest(choice, LEVELS)}")
    if choice == "ideal":
        return Roofline()
    from opgraph.fitted import Fitted

    return Fitted(choice)


def price(operator: Operator, sizes: Sizes, machine: Machine, model: CostModel) -> Cost:
    """The cost of *operator* by *model*, launched by the host; none where it does not run."""
    if not operator.given and operator.part is None:
        return _launched(operator, sizes, machine, model)
    needed = [operator.given] if operator.given else []
    if operator.part:
        sizes = sizes.part(*operator.part)
        needed.append(operator.part.dim)
    return _present(operator, sizes, machine, model, needed)


def _launched(operator: Operator, sizes: Sizes, machine: Machine, model: CostModel) -> Cost:
    """The cost, but for an operator of the compute stream no less than a launch by the host."""
    found, least = model.cost(operator, sizes, machine), machine.host.per_operator
    if not ever(least) or operator.is_view or operator.stream != "compute":
        return found
    bounds: dict[str, Any] = {
        name: larger(bound, least)
        for name, bound in (("low", found.low), ("high", found.high))
        if bound is not None
    }
    limiter = where(np.less(found.time, least), LAUNCH, found.limiter)
    return replace(found, time=larger(found.time, least), limiter=limiter, **bounds)


def _present(
    operator: Operator, sizes: Sizes, machine: Machine, model: CostModel, needed: Sequence[str]
) -> Cost:
    """The cost of an operator that is for something: none where that is absent (zero images, a
    part of less than one sequence).
    """
    here = product(sizes[dim] > 0 for dim in needed)
    if np.all(here):
        return _launched(operator, sizes, machine, model)
    # priced as if it were there, so that nothing is divided by nothing, and left out after that
    there = {**sizes.numbers, **{dim: larger(sizes[dim], 1) for dim in needed}}
    found = _launched(operator, replace(sizes, numbers=there), machine, model)
    bounds = {
        name: where(here, bound, 0.0)
        for name, bound in (("low", found.low), ("high", found.high))
        if bound is not None
    }
    time, work = where(here, found.time, 0.0), found.work * here
    return replace(found, time=time, work=work, **bounds)


def _cost(operator: Operator, sizes: Sizes, machine: Machine, reached: Efficiency) -> Cost:
    if operator.is_view:
        return Cost(0.0, LAUNCH, Work())
    if isinstance(operator, Collective):
        return _collective_cost(operator, sizes, machine, reached)
    if isinstance(operator, Send):
        return _send_cost(operator, sizes, machine, reached)
    if isinstance(operator, Fetch):
        return _fetch_cost(operator, sizes, machine)
    work, chip = operator.work(sizes), machine.platform.chip
    peak = chip.peak(operator.dtype) if operator.unit == "matrix" else chip.vector
    compute = work.flop / (peak * reached.compute)
    if isinstance(work.unpacked, np.ndarray) or work.unpacked:
        compute = larger(compute, work.unpacked * UNPACK_FLOP / chip.vector)
    memory = work.moved / (chip.memory_bandwidth * reached.memory)
    busy = _blend(compute, memory, reached.blend)
    limiter: Any = where(compute >= memory, COMPUTE, MEMORY)
    if reached.overhead:
        limiter = where(busy >= reached.overhead, limiter, LAUNCH)
    return Cost(busy + reached.overhead, limiter, work)


def _collective_cost(
    operator: Collective, sizes: Sizes, machine: Machine, reached: Efficiency
) -> Cost:
    size, work = machine.plan.group_size(operator.axes), operator.work(sizes)
    found = collective(operator.collective, work.sent, spans_of(operator, machine))
    time = found.latency_time + found.bandwidth_time / reached.memory
    overhead = where(np.greater(size, 1), reached.overhead, 0.0)
    limiter = where(found.bandwidth_time >= found.latency_time, NETWORK_BANDWIDTH, NETWORK_LATENCY)
    index = int(np.asarray(found.algorithm).flat[0])
    algorithm = found.names[index]
    return Cost(time + overhead, limiter, work, algorithm, size, sent=found.sent)


def spans_of(operator: Collective, machine: Machine) -> tuple[Span, ...]:
    """Over how many members of each level the chips of a collective lie."""
    return machine.platform.place(machine.plan.group(operator.axes))


def _send_cost(operator: Send, sizes: Sizes, machine: Machine, reached: Efficiency) -> Cost:
    """From a stage to the next one, from the last to the first: over the level of links at which
    the two are apart.
    """
    work = operator.work(sizes)
    spans = machine.platform.spans(*machine.plan.mesh["pp"])
    found = collective("send", work.sent, spans[:1])
    inside: Any = 1
    returns = np.equal(operator.hop + 1, machine.plan.pp)
    latency, bandwidth = found.latency_time, found.bandwidth_time
    for reach in range(2, len(spans) + 1):
        inside = inside * np.ceil(spans[reach - 2].ways)
        further = collective("send", work.sent, spans[:reach])
        crosses = returns | np.equal(np.mod(operator.hop + 1, inside), 0)
        latency = where(crosses, further.latency_time, latency)
        bandwidth = where(crosses, further.bandwidth_time, bandwidth)
    bandwidth = bandwidth / reached.memory
    limiter = where(bandwidth >= latency, NETWORK_BANDWIDTH, NETWORK_LATENCY)
    return Cost(latency + bandwidth + reached.overhead, limiter, work, "send", 2)


def _fetch_cost(operator: Fetch, sizes: Sizes, machine: Machine) -> Cost:
    """At the rates that the tier and its cache give to all chips that share them at once."""
    work, tier = operator.work(sizes), machine.tier
    if tier is None:
        raise SpecError(f"{operator.name}: {machine.platform.name} has no tier to fetch from")
    seconds = (1 - machine.cached) / tier.rate()
    if tier.cache is not None:
        seconds = seconds + machine.cached / tier.rate(cached=True)
    return Cost(work.sent * seconds + tier.latency * np.greater(work.sent, 0), TIER, work)


def _blend(compute: Number, memory: Number, power: float) -> Number:
    if power == np.inf:
        return larger(compute, memory)
    top = larger(compute, memory)
    low = smaller(compute, memory)
    return top * (1 + (low / larger(top, np.finfo(float).tiny)) ** power) ** (1 / power)
