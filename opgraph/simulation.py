"""Simulate: a model on a platform under a plan and a workload."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hardware import Number, Platform, SpecError
from hardware.arithmetic import larger
from hardware.errors import shown
from opgraph.capacity import footprint
from opgraph.cost import CostModel, Host, cost_model
from opgraph.memory import Reserve
from opgraph.model import Model
from opgraph.offload import Offload
from opgraph.plan import Plan
from opgraph.point import Point
from opgraph.report import Report
from opgraph.workload import Workload

# where an interval of contexts is probed: the golden section, which no window, chunk or group
# divides evenly, so that one that repeats is not met at the same place each time
_PROBE = (3 - 5**0.5) / 2


@runtime_checkable
class Modelled(Protocol):
    """A description that becomes a model: a `frontends.Decoder`, a `frontends.Transformer`."""

    def to_model(self) -> Model:
        """The model."""


def simulate(  # noqa: PLR0913 each is a part of the question
    model: Model | Modelled,
    platform: Platform,
    plan: Plan | None = None,
    workload: Workload | None = None,
    *,
    cost: str | CostModel = "ideal",
    host: Host | None = None,
    reserve: Reserve | None = None,
    offload: Offload | None = None,
) -> Report:
    """Simulate *model* on *platform*: one prefill step of all prompts, then the decode steps.

    Parameters
    ----------
    model, platform : from `frontends.load_model` and `hardware.load_platform`; a model may also
        be anything that becomes one, such as a `frontends.Transformer`.
    plan : how the model is spread over chips; one chip if not given.
    workload : batch, prompt and output; `Workload()` if not given.
    cost : the cost model, or its name: ``ideal`` (roofline), or ``calibrated``, ``tiled``,
        ``corrected`` (kernels fitted on measurements).
    host : what the host that drives the chips costs; nothing if not given.
    offload : weights and caches in a farther tier of memory; none if not given.
    reserve : memory that is left alone and the KV cache's blocks; `Reserve()` if not given.

    Any number in platform, plan and workload may be an array; all broadcast, and the report's
    figures have the shape of the whole.

    Raises
    ------
    SpecError : a plan that the platform or the model's dimensions do not allow, images that the
        model does not take or the prompt has no place for, arrays that do not broadcast, or an
        argument that is something else.
    """
    plan = Plan() if plan is None else plan
    workload = Workload() if workload is None else workload
    check_arguments("simulate", model, platform, plan, workload)
    model = model if isinstance(model, Model) else model.to_model()
    settings = (
        cost_model(cost),
        _setting("host", host, Host),
        _setting("reserve", reserve, Reserve),
        _setting("offload", offload, Offload),
    )
    return evaluate(Point(model, platform, plan, workload, *settings).check())


def _setting(name: str, value: Any, kind: type) -> Any:
    """*value*, or the usual one of its *kind* if there is none."""
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise SpecError(f"{name} must be a {kind.__name__}(...), not {shown(value)}")
    return value


def evaluate(point: Point) -> Report:
    """The figures of a design point, or of an array of them."""
    return Report(
        point=point,
        ttft=_evaluate(point, lambda part: part.step_time("prefill", part.workload.prompt)),
        tpot=_evaluate(point, _mean_decode_time),
        memory=footprint(point),
    )


def check_arguments(
    where: str, model: object, platform: object, plan: object, workload: object
) -> None:
    """Refuse an argument of the function *where* in another one's place."""
    wanted = (
        ("model", model, (Model, Modelled), "load_model(...)"),
        ("platform", platform, Platform, "load_platform(...)"),
        ("plan", plan, Plan, "Plan(...)"),
        ("workload", workload, Workload, "Workload(...)"),
    )
    for name, value, kind, example in wanted:
        if not isinstance(value, kind):
            raise SpecError(f"{where}: {name} must be a {example}, not {shown(value)}")


def _evaluate(point: Point, function: Callable[[Point], Number]) -> Number:
    """*function* of every point, a tile at a time."""
    if not point.shape:
        return float(function(point))
    values = np.empty(point.shape)
    for place, tile in point.tiles():
        for inside, part in tile.by_stages:
            values[place][inside] = function(part)
    return values


def _mean_decode_time(point: Point) -> Number:
    """Mean time of the decode steps: the first one's context is the prompt and one token more,
    and each has one more; the first token comes from the prefill.
    """
    prompt, output = point.workload.prompt, point.workload.output
    return mean_step_time(point, prompt + 1, prompt + larger(output - 1, 1))


def mean_step_time(point: Point, first: Number, last: Number) -> Number:
    """Mean time of the decode steps whose context runs from *first* to *last*, in seconds.

    Under a roofline the time of a step is piecewise straight in the context: sums and maxima of
    straight lines, with jumps and bends down where windows, chunks or groups of tokens end. Where
    a step between the ends of an interval, at `_PROBE`, lies on the line between them, the
    interval counts as straight, and its mean is that of its ends. Elsewhere it is halved until it
    is straight or two steps long. That is exact but for an interval that bends and comes back to
    the line just at the probe.
    """
    dims = len(point.shape)
    low, high = (_with_dims(bound, dims) for bound in (first, last))
    contexts = _probed(*np.broadcast_arrays(low, high))
    times = np.broadcast_to(point.step_time("decode", contexts), (3, *point.shape))
    straight = _is_straight(times, point.cost.tolerance)
    mean = np.array((times[0] + times[2]) / 2)
    if not np.all(straight):
        bent = np.nonzero(~straight.ravel())[0]
        bounds = (np.broadcast_to(bound, point.shape).ravel()[bent] for bound in (low, high))
        mean.flat[bent] = _mean_by_halves(point, bent, *bounds)
    return mean if point.shape else float(mean)


def _mean_by_halves(
    point: Point, where: NDArray[np.intp], low: NDArray[Any], high: NDArray[Any]
) -> NDArray[np.float64]:
    """The same for points that are bent; each pass halves the intervals that still are."""
    total = np.zeros(len(where))
    count = high - low + 1
    index = np.arange(len(where))
    while len(index):
        some = point.take(np.unravel_index(where[index], point.shape)) if point.shape else point
        contexts = _probed(low, high)
        times = np.broadcast_to(some.step_time("decode", contexts), contexts.shape)
        short = high - low <= 1
        done = _is_straight(times, point.cost.tolerance) | short
        value = (times[0] + times[2]) / 2
        np.add.at(total, index[done], (value * (high - low + 1))[done])
        split = np.floor((low + high) / 2)[~done]
        low, high = (
            np.concatenate([low[~done], split + 1]),
            np.concatenate([split, high[~done]]),
        )
        index = np.concatenate([index[~done]] * 2)
    mean: NDArray[np.float64] = total / count
    return mean


def _is_straight(times: NDArray[np.float64], tolerance: float) -> NDArray[np.bool_]:
    bend = abs(times[0] + _PROBE * (times[2] - times[0]) - times[1])
    straight: NDArray[np.bool_] = bend <= tolerance * times[1]
    return straight


def _probed(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ends of each interval and a place between them."""
    return np.stack([low, low + _PROBE * (high - low), high])


def _with_dims(value: Number, dims: int) -> NDArray[np.float64]:
    """*value* as an array of *dims* dimensions."""
    array = np.asarray(value, float)
    return array.reshape((1,) * (dims - array.ndim) + array.shape)
