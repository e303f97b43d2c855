"""Simulate: a model on a platform under a plan and a workload."""

from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hardware import Number, Platform
from opgraph.arithmetic import larger
from opgraph.cost import CostModel, Machine, cost_model
from opgraph.graph import Graph
from opgraph.memory import Footprint, peak_activations
from opgraph.model import Model
from opgraph.passes import shard
from opgraph.plan import Plan
from opgraph.report import Report
from opgraph.sizes import Sizes
from opgraph.timeline import Timeline, predict, step_time
from opgraph.workload import Workload

Phase = Literal["prefill", "decode"]


def simulate(
    model: Model,
    platform: Platform,
    plan: Plan | None = None,
    workload: Workload | None = None,
    *,
    cost: str | CostModel = "ideal",
) -> Report:
    """Simulate *model* on *platform*: one prefill step of all prompts, then the decode steps.

    Parameters
    ----------
    model, platform : from `frontends.load_model` and `hardware.load_platform`.
    plan : how the model is spread over chips; one chip if not given.
    workload : batch, prompt and output; `Workload()` if not given.
    cost : the cost model, or its name: ``ideal`` (roofline) or ``calibrated``.

    Any number in platform, plan and workload may be an array; all broadcast, and the report's
    figures have the shape of the whole.

    Raises
    ------
    SpecError : a plan that the platform or the model's dimensions do not allow.
    """
    point = Point(model, platform, plan or Plan(), workload or Workload(), cost_model(cost))
    point.plan.check(model.numbers, platform.num_chips, platform.name)
    prompt, output = point.workload.prompt, point.workload.output
    return Report(
        point=point,
        ttft=point.step_time("prefill", prompt),
        tpot=mean_step_time(point, prompt + 1, prompt + larger(output - 1, 1)),
        memory=point.footprint(),
    )


@dataclass(frozen=True, eq=False)
class Point:
    """One design point, or a whole array of them: everything a step's time depends on."""

    model: Model
    platform: Platform
    plan: Plan
    workload: Workload
    cost: CostModel

    def graph(self, phase: Phase) -> Graph:
        """One chip's graph of a step."""
        return _sharded(getattr(self.model, phase), self.plan.active)

    def sizes(self, phase: Phase, context: Number) -> Sizes:
        """All sizes of a step that ends with *context* tokens in each sequence.

        Prefill and decode are the same step: one brings the whole prompt, the other one token.
        """
        seq = self.workload.prompt if phase == "prefill" else 1
        step = {"batch": self.workload.batch, "seq": seq, "context": context}
        return self.plan.bind({**self.model.numbers, **step}, getattr(self.model, phase).derived)

    def step_time(self, phase: Phase, context: Number) -> Number:
        """Seconds of one step."""
        machine = Machine(self.platform, self.plan)
        return step_time(self.graph(phase), self.sizes(phase, context), machine, self.cost)

    def timeline(self, phase: Phase, context: Number) -> Timeline:
        """The timeline of one step."""
        machine = Machine(self.platform, self.plan)
        return predict(phase, self.graph(phase), self.sizes(phase, context), machine, self.cost)

    def footprint(self) -> Footprint:
        """Memory of a chip when every sequence is at its longest; activations of the prefill."""
        full = self.sizes("decode", self.workload.context)
        prompt = self.sizes("prefill", self.workload.prompt)
        return Footprint(
            weights=sum(
                tensor.nbytes(full) * count for tensor, count in self.graph("decode").tensors("weight")
            ),
            kv_cache=self.graph("decode").nbytes("cache", full),
            activations=peak_activations(self.graph("prefill"), prompt),
            capacity=self.platform.chip.memory_capacity,
        )

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """What all the arrays in the point broadcast to; () for a single point."""
        arrays = [*_arrays(self.platform), *_arrays(self.plan), *_arrays(self.workload)]
        return np.broadcast_shapes(*(array.shape for array in arrays))

    def take(self, index: Any) -> "Point":
        """The points at *index*, which may be anything that indexes an array of `shape`."""
        return replace(
            self,
            platform=_take(self.platform, self.shape, index),
            plan=_take(self.plan, self.shape, index),
            workload=_take(self.workload, self.shape, index),
        )


@lru_cache(maxsize=1024)
def _sharded(graph: Graph, active: tuple[str, ...]) -> Graph:
    return shard(graph, Plan(**dict.fromkeys(active, 2)))


def mean_step_time(point: Point, first: Number, last: Number) -> Number:
    """Mean time of the decode steps whose context runs from *first* to *last*, in seconds.

    The time of a step is a convex, piecewise straight function of the context under a roofline:
    sums and maxima of straight lines. Where its middle lies on the line between its ends it is
    straight, and its mean is its middle: exact. Elsewhere the interval is halved until it is.
    """
    dims = len(point.shape)
    low, high = (_at_least(bound, dims) for bound in (first, last))
    times = point.step_time("decode", np.stack(np.broadcast_arrays(low, (low + high) / 2, high)))
    times = np.broadcast_to(times, (3, *point.shape))
    straight = _is_straight(times, point.cost.tolerance)
    mean = times[1].copy()
    if not np.all(straight):
        bent = np.nonzero(~straight.ravel())[0]
        bounds = (np.broadcast_to(bound, point.shape).ravel()[bent] for bound in (low, high))
        mean.ravel()[bent] = _mean_by_halves(point, bent, *bounds)
    return float(mean) if not point.shape else mean


def _mean_by_halves(
    point: Point, where: NDArray[np.intp], low: NDArray[Any], high: NDArray[Any]
) -> NDArray[np.float64]:
    """The same for points that are bent; each pass halves the intervals that still are."""
    total = np.zeros(len(where))
    count = high - low + 1
    index = np.arange(len(where))
    while len(index):
        middle = (low + high) / 2
        flat = point.take(np.unravel_index(where[index], point.shape))
        times = flat.step_time("decode", np.stack([low, middle, high]))
        done = _is_straight(times, point.cost.tolerance) | (high - low <= 1)
        steps = high - low + 1
        value = np.where(high - low <= 1, (times[0] + times[2]) / 2, times[1])
        np.add.at(total, index[done], (value * steps)[done])
        split = np.floor(middle[~done])
        low, high = (
            np.concatenate([low[~done], split + 1]),
            np.concatenate([split, high[~done]]),
        )
        index = np.concatenate([index[~done]] * 2)
    return total / count


def _is_straight(times: NDArray[np.float64], tolerance: float) -> NDArray[np.bool_]:
    bend = abs(times[0] - 2 * times[1] + times[2])
    straight: NDArray[np.bool_] = bend <= tolerance * times[1]
    return straight


def _at_least(value: Number, dims: int) -> NDArray[np.float64]:
    """*value* as an array of *dims* dimensions."""
    array = np.asarray(value, float)
    return array.reshape((1,) * (dims - array.ndim) + array.shape)


def _arrays(value: Any) -> list[NDArray[Any]]:
    """The arrays in a nest of dataclasses, tuples and mappings."""
    if isinstance(value, np.ndarray):
        return [value]
    if is_dataclass(value):
        return [array for field in fields(value) for array in _arrays(getattr(value, field.name))]
    if isinstance(value, tuple | dict):
        inner = value.values() if isinstance(value, dict) else value
        return [array for item in inner for array in _arrays(item)]
    return []


def _take(value: Any, shape: tuple[int, ...], index: Any) -> Any:
    """*value* with each array in it broadcast to *shape* and indexed."""
    if isinstance(value, np.ndarray):
        taken = np.broadcast_to(value, shape)[index]
        if np.ndim(taken):
            return taken
        number = taken.item()
        return int(number) if float(number).is_integer() else number
    if is_dataclass(value) and not isinstance(value, type) and _arrays(value):
        changed = {
            field.name: _take(getattr(value, field.name), shape, index)
            for field in fields(value)
            if _arrays(getattr(value, field.name))
        }
        return replace(value, **changed)
    if isinstance(value, tuple):
        return tuple(_take(item, shape, index) for item in value)
    if isinstance(value, dict):
        return {key: _take(item, shape, index) for key, item in value.items()}
    return value
