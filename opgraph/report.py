"""What a simulation answers: times, throughput, memory, and what limits each phase."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hardware import (
    Number,
    Price,
    SpecError,
    chip_hour,
    format_number,
    format_quantity,
    list_prices,
)
from hardware.arithmetic import where
from hardware.price import HOUR
from opgraph.energy import StepEnergy, step_energy
from opgraph.memory import Footprint
from opgraph.timeline import Timeline

if TYPE_CHECKING:
    import pandas as pd

    from opgraph.point import Point

_MILLION = 1e6


@dataclass(frozen=True, eq=False)
class Report:
    """The figures of one design point, or of an array of them.

    Attributes
    ----------
    point : what was simulated.
    ttft : time to first token in s: one step that prefills all prompts of the batch.
    tpot : time per output token in s: mean of the decode steps as the context grows.
    memory : bytes on a chip.
    price : of a chip; None: its list price, if it has one.
    """

    point: "Point"
    ttft: Number
    tpot: Number
    memory: Footprint
    price: Price | None = None

    @property
    def ttft_interval(self) -> tuple[Number, Number]:
        """Seconds between which 80 % of such prefills lie; both *ttft* under the ideal."""
        return self.prefill.interval

    @property
    def tpot_interval(self) -> tuple[Number, Number]:
        """Seconds between which 80 % of such decode steps lie, as wide as the middle step's."""
        low, high = self.decode.interval
        scale = self.tpot / self.decode.time
        return low * scale, high * scale

    @property
    def latency(self) -> Number:
        """Seconds from the prompt to the last token."""
        return self.ttft + (self.point.workload.output - 1) * self.tpot

    @property
    def throughput(self) -> Number:
        """Tokens generated per second by the whole platform, prefill included."""
        return self.point.workload.batch * self.point.workload.output / self.latency

    @property
    def decode_throughput(self) -> Number:
        """Tokens generated per second while decoding: batch / tpot."""
        return self.point.workload.batch / self.tpot

    @property
    def num_chips(self) -> Number:
        """Chips that the plan uses."""
        return self.point.plan.num_chips

    @property
    def throughput_per_chip(self) -> Number:
        """Tokens generated per second and chip."""
        return self.throughput / self.num_chips

    @property
    def fits(self) -> Any:
        """Whether weights, KV cache and activations fit the chip's memory."""
        return self.memory.fits

    @cached_property
    def max_batch(self) -> Number:
        """The most sequences whose caches fit; 0 if not even one's does."""
        from opgraph.capacity import largest

        return largest(self.point, "batch")

    @cached_property
    def max_context(self) -> Number:
        """The most tokens that each sequence may grow to, if only its prompt were longer; 0 if
        not even a prompt of one token fits.
        """
        from opgraph.capacity import largest

        prompt = largest(self.point, "prompt")
        most: Number = where(np.greater(prompt, 0), prompt + self.point.workload.output, 0)
        return most

    @cached_property
    def prefill(self) -> Timeline:
        """The timeline of the prefill step."""
        return self.point.timeline("prefill", self.point.workload.prompt)

    @cached_property
    def decode(self) -> Timeline:
        """The timeline of the decode step in the middle of the output."""
        workload = self.point.workload
        return self.point.timeline("decode", workload.prompt + (workload.output + 1) // 2)

    def communication(self) -> "pd.DataFrame":
        """The census: one row for each phase, collective, group of chips and kind of message.

        Columns: ``phase``; ``collective``, of a pipeline also ``send``; ``axes`` of the plan along
        which its group lies; ``group_size`` in chips; ``dims`` and ``shape`` of what each chip
        brings to it, and its ``bytes`` (an all-gather: the chip's part, of which the result has
        *group_size*); ``algorithm`` and ``time_us`` of one; ``per_step``, how many a step has, over
        all layers, stages and microbatches; ``count``, how many all steps have: one prefill, and
        output − 1 decode steps. Totals: ``census.groupby("phase")["count"].sum()``.

        Raises
        ------
        SpecError : the report is of many design points; pick one with `at`.
        """
        from opgraph.communication import census

        return census(self)

    @cached_property
    def prefill_energy(self) -> StepEnergy:
        """What the prefill step takes of one chip; SpecError if its energy is not known."""
        return step_energy(self.prefill, self.point.machine)

    @cached_property
    def decode_energy(self) -> StepEnergy:
        """What the decode step in the middle of the output takes of one chip."""
        return step_energy(self.decode, self.point.machine)

    @property
    def energy(self) -> Number:
        """Joules of all chips of the plan from the prompts to the last token of the batch.

        What a decode step takes above idle grows straight with the context, but for windows
        and the like, so that of the middle step stands for their mean.
        """
        first, later = self.prefill_energy, self.decode_energy
        steps = self.point.workload.output - 1
        one = first.active + steps * later.active + first.idle * self.latency
        return self.num_chips * one

    @property
    def energy_per_token(self) -> Number:
        """Joules per generated token, prefill included."""
        return self.energy / (self.point.workload.batch * self.point.workload.output)

    @property
    def chip_price(self) -> Price:
        """The price of a chip: the one given, or its list price; SpecError if it has none."""
        return chip_hour(self.point.platform.chip) if self.price is None else self.price

    @property
    def dollars_per_million_tokens(self) -> Number:
        """What a million generated tokens cost on the plan's chips, prefill included."""
        return self.chip_price.rate * self.num_chips / self.throughput * _MILLION

    def at(self, *index: int) -> "Report":
        """The report of one design point of an array."""
        from opgraph.simulation import simulate

        if not self.point.shape:
            raise SpecError("this report is of a single design point: at() has nothing to pick")
        try:
            point = self.point.take(index)
        except IndexError:
            raise SpecError(f"at{index}: the report's points are {self.point.shape}") from None
        if point.shape:
            raise SpecError(f"at{index}: give {len(self.point.shape)} indices")
        parts = (point.model, point.platform, point.plan, point.workload)
        settings = {name: getattr(point, name) for name in ("cost", "host", "reserve", "offload")}
        one = simulate(*parts, **settings)
        return replace(one, price=self.price)

    def to_frame(self) -> "pd.DataFrame":
        """One row for each design point, in the order of `numpy.ravel`.

        Columns: each array that was given, by where it stands (``batch``, ``tp``,
        ``chip.memory.0.bandwidth`` in SI units), then ``ttft_ms tpot_ms throughput_tokens_per_s
        throughput_tokens_per_s_per_chip memory_GB_per_chip num_chips fits``.
        """
        import pandas as pd

        columns = {
            **self.point.inputs,
            "ttft_ms": self.ttft * 1e3,
            "tpot_ms": self.tpot * 1e3,
            "throughput_tokens_per_s": self.throughput,
            "throughput_tokens_per_s_per_chip": self.throughput_per_chip,
            "memory_GB_per_chip": self.memory.total / 1e9,
            "num_chips": self.num_chips,
            "fits": self.fits,
        }
        shape = self.point.shape
        return pd.DataFrame({k: np.broadcast_to(v, shape).ravel() for k, v in columns.items()})

    @property
    def verdict(self) -> str:
        """Whether it fits, and by how much it does not."""
        memory = self.memory
        capacity, total = (_quantity(value, "B") for value in (memory.capacity, memory.total))
        if memory.fits:
            return f"fits: {total} of {capacity} per chip"
        if memory.spare >= 0:
            away, room = (_quantity(v, "B") for v in (memory.offloaded, memory.tier_capacity))
            return f"does not fit: {away} per chip are offloaded to a tier with {room} for each"
        excess = _quantity(-memory.spare, "B")
        return f"does not fit: needs {total} per chip of {capacity}, {excess} too much"

    def to_dict(self) -> dict[str, Any]:
        """The figures under the keys of ``--json``."""
        if self.point.shape:
            raise SpecError(f"to_dict: pick one of the {self.point.shape} points with at(index)")
        giga, milli = 1e9, 1e3
        phases = {"prefill": self.prefill, "decode": self.decode}
        return {
            "model": self.point.model.name,
            "platform": self.point.platform.name,
            "cost_model": self.point.cost.name,
            "ttft_ms": self.ttft * milli,
            "tpot_ms": self.tpot * milli,
            "ttft_low_ms": float(self.ttft_interval[0]) * milli,
            "ttft_high_ms": float(self.ttft_interval[1]) * milli,
            "tpot_low_ms": float(self.tpot_interval[0]) * milli,
            "tpot_high_ms": float(self.tpot_interval[1]) * milli,
            "latency_ms": self.latency * milli,
            "throughput_tokens_per_s": self.throughput,
            "throughput_tokens_per_s_per_chip": self.throughput_per_chip,
            "decode_throughput_tokens_per_s": self.decode_throughput,
            "memory_GB_per_chip": self.memory.total / giga,
            "weights_GB_per_chip": self.memory.weights / giga,
            "kv_cache_GB_per_chip": self.memory.kv_cache / giga,
            "activations_GB_per_chip": self.memory.activations / giga,
            "capacity_GB_per_chip": self.memory.capacity / giga,
            "memory_parts_GB_per_chip": {
                name: float(nbytes) / giga for name, nbytes in self.memory.parts.items()
            },
            "max_batch": int(self.max_batch),
            "max_context": int(self.max_context),
            "fits": self.memory.fits,
            "num_chips": int(self.num_chips),
            "power_limit_W": self.point.platform.chip.power,
            "energy_J_per_token": self.energy_per_token if self._knows_energy else None,
            "price_dollars_per_chip_hour": self.chip_price.rate * HOUR if self._priced else None,
            "dollars_per_million_tokens": self.dollars_per_million_tokens if self._priced else None,
            "phases": {
                name: {
                    "time_ms": float(timeline.time) * milli,
                    "low_ms": float(timeline.interval[0]) * milli,
                    "high_ms": float(timeline.interval[1]) * milli,
                    "exposed_communication_ms": float(timeline.exposed) * milli,
                    "limiter_shares": timeline.limiter_shares,
                    **self._power_rows(name, timeline),
                }
                for name, timeline in phases.items()
            },
        }

    def _power_rows(self, phase: str, timeline: Timeline) -> dict[str, Any]:
        """``power_W`` of a chip in a phase, and the operators with ``energy_mJ`` of each."""
        rows = timeline.rows()
        if not self._knows_energy:
            return {"power_W": None, "operators": [{**row, "energy_mJ": None} for row in rows]}
        step = self.prefill_energy if phase == "prefill" else self.decode_energy
        milli = {name: float(joules) * 1e3 for name, joules in step.operators.items()}
        operators = [{**row, "energy_mJ": milli[row["name"]]} for row in rows]
        return {"power_W": float(step.power), "operators": operators}

    @property
    def _knows_energy(self) -> bool:
        return self.point.platform.chip.has_energy

    @property
    def _priced(self) -> bool:
        return self.price is not None or self.point.platform.chip.name in list_prices()

    def _energy_text(self) -> str:
        """``2 J/token, 610 W per chip in prefill and 340 W in decode of 700 W``."""
        first, later = (float(e.power) for e in (self.prefill_energy, self.decode_energy))
        limit = self.point.platform.chip.power
        of = "" if limit is None else f" of {_quantity(limit, 'W')}"
        power = f"{_quantity(first, 'W')} in prefill and {_quantity(later, 'W')} in decode"
        return f"{self.energy_per_token:.3g} J/token, per chip {power}{of}"

    def _price_text(self) -> str:
        price = self.chip_price
        hour = f"{float(price.rate) * HOUR:.3g} $ per chip-hour"
        return f"{self.dollars_per_million_tokens:.3g} $ per million tokens at {hour}"

    def __str__(self) -> str:
        if self.point.shape:
            return f"Report of {' × '.join(map(str, self.point.shape))} design points"
        rows = {
            "TTFT": _with_interval(self.ttft, self.ttft_interval),
            "TPOT": _with_interval(self.tpot, self.tpot_interval),
            "latency": _quantity(self.latency, "s"),
            "throughput": f"{format_number(float(self.throughput))} tokens/s",
            "per chip": f"{format_number(float(self.throughput_per_chip))} tokens/s",
            "memory": self.verdict,
            "room for": f"batch {self.max_batch:,}, or context {self.max_context:,}",
            "prefill": describe_shares(self.prefill),
            "decode": describe_shares(self.decode),
        }
        if self.point.workload.output == 1:
            rows["TPOT"] = "– (the prefill makes the only token)"
        phases = {"prefill": self.prefill, "decode": self.decode}
        if any(phase.communicates for phase in phases.values()):
            rows["exposed"] = "communication: " + ", ".join(
                f"{_quantity(phase.exposed, 's')} of a {name} step"
                for name, phase in phases.items()
            )
        if self._knows_energy:
            rows["energy"] = self._energy_text()
        if self._priced:
            rows["cost"] = f"{self._price_text()} ({self.chip_price.origin})"
        if list(self.decode.provenance_shares) != ["ideal"]:
            rows["rests on"] = _describe(self.decode.provenance_shares) + " (decode, by time)"
        point = self.point
        chips = "1 chip" if self.num_chips == 1 else f"{self.num_chips} chips"
        where = f"{chips} of {point.platform.name}"
        title = f"{point.model.name} on {where}, cost model {point.cost.name}"
        return "\n".join([title, *(f"  {name:<11}{value}" for name, value in rows.items())])


def describe_shares(timeline: Timeline) -> str:
    """What limits a phase: ``86 % memory, 14 % network latency``."""
    return _describe(timeline.limiter_shares)


def _describe(shares: dict[str, Number]) -> str:
    ordered = sorted(shares.items(), key=lambda item: -np.mean(item[1]))
    # half a percent would be printed as none
    return ", ".join(f"{share:.0%} {name}" for name, share in ordered if np.mean(share) >= 0.005)


def _with_interval(value: Number, interval: tuple[Number, Number]) -> str:
    """Seconds, and the interval where there is one: ``9.6 ms (80 %: 9.2 ms to 10 ms)``."""
    text, low, high = (_quantity(seconds, "s") for seconds in (value, *interval))
    return text if low == high else f"{text} (80 %: {low} to {high})"


def _quantity(value: Number, unit: str) -> str:
    return format_quantity(float(value), unit)
