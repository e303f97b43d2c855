"""The prediction of a captured step: what `opgraph.simulate` would say of what was run."""

from collections.abc import Mapping

from frontends import load_model
from hardware import Platform, SpecError
from opgraph import Host, Plan, Timeline, Workload
from opgraph.cost import CostModel, cost_model
from opgraph.point import Phase, Point
from validation.capture import Step


def predict(
    step: Step, platform: Platform, *, cost: str | CostModel = "ideal", host: Host | None = None
) -> Timeline:
    """The timeline that the cost model gives to a step on one chip of *platform*.

    Raises
    ------
    SpecError : a model that is not in the catalogue, or a cost model that does not exist.
    """
    model = load_model(step.config)
    # a decode step's token is the last of its context
    prompt = step.tokens if step.phase == "prefill" else max(step.tokens - 1, 1)
    workload = Workload(batch=step.batch, prompt=prompt, output=1)
    point = Point(model, platform, Plan(), workload, cost_model(cost), host or Host()).check()
    return point.timeline(step.phase, step.tokens)


def step_of(source: Mapping[str, str]) -> Step:
    """The step that a capture says it ran, from the source of its timeline.

    Raises
    ------
    SpecError : the trace is no capture, or says nonsense.
    """
    try:
        numbers = {key: int(source[key]) for key in ("batch", "tokens", "layers", "vocab")}
        phase = _PHASES[source["phase"]]
        return Step(model=source["model"], phase=phase, **numbers)
    except (KeyError, ValueError):
        raise SpecError("the trace does not say what ran, as one of opgraph capture does") from None


_PHASES: dict[str, Phase] = {"prefill": "prefill", "decode": "decode"}
