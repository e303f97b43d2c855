"""Energy: the joules that operators take of a chip, its memory and its links, and their power."""

from dataclasses import dataclass

from hardware import Number, SpecError, chain_energy, network_energy
from opgraph.cost import UNPACK_FLOP, Machine, spans_of
from opgraph.offload import Fetch
from opgraph.operator import Collective, Operator, Send, Work
from opgraph.timeline import Timeline


def energy(operator: Operator, work: Work, machine: Machine) -> Number:
    """The joules above idle that one execution of *operator* takes of one chip.

    E = flop · J/FLOP + bytes moved · J/B + bytes sent at each level · its J/B

    What is fetched from a farther tier takes the tier's J/B, where it has one, and is moved through
    the chip's memory.

    whatever the cost model says how long it takes: idling is counted by the step. Numbers and
    arrays broadcast.

    Raises
    ------
    SpecError : nothing is known of the energy of the chip or its memory.
    """
    chip = machine.platform.chip
    if isinstance(operator, Collective):
        return network_energy(operator.collective, work.sent, spans_of(operator, machine))
    if isinstance(operator, Send):
        return chain_energy(work.sent, machine.platform.spans(*machine.plan.mesh["pp"]))
    if isinstance(operator, Fetch):
        return work.sent * (_tier_energy(machine) + chip.memory_energy)
    products = chip.flop_energy(operator.dtype if operator.unit == "matrix" else None)
    arithmetic = work.flop * products + work.unpacked * UNPACK_FLOP * chip.flop_energy(None)
    return arithmetic + work.moved * chip.memory_energy


def _tier_energy(machine: Machine) -> Number:
    return 0.0 if machine.tier is None or machine.tier.energy is None else machine.tier.energy


@dataclass(frozen=True, eq=False)
class StepEnergy:
    """What one step takes of one chip; of a pipeline, on average over its stages.

    Attributes
    ----------
    operators : joules above idle of one execution, by the operator's name.
    active : joules above idle of the whole step.
    idle : watts that a chip draws whatever it does.
    time : seconds of the step.
    """

    operators: dict[str, Number]
    active: Number
    idle: Number
    time: Number

    @property
    def total(self) -> Number:
        """Joules of the step."""
        return self.active + self.idle * self.time

    @property
    def power(self) -> Number:
        """Watts on average over the step."""
        return self.total / self.time


def step_energy(timeline: Timeline, machine: Machine) -> StepEnergy:
    """The energy of a predicted step, operator by operator.

    Raises
    ------
    SpecError : the timeline was measured; nothing is known of the chip's energy.
    """
    if timeline.graph is None:
        raise SpecError(f"the timeline {timeline.name!r} was measured: it has no operators")
    known = {operator.name: operator for operator, _ in timeline.graph.operators}
    each = {e.name: energy(known[e.name], e.work, machine) for e in timeline.events}
    stages = sum(each[event.name] * event.count for event in timeline.events)
    active, idle = stages / machine.plan.pp, machine.platform.chip.idle_power
    return StepEnergy(each, active, idle, timeline.time)
