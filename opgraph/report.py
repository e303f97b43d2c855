"""What a simulation answers: times, throughput, memory, and what limits each phase."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hardware import Number, SpecError, format_quantity
from opgraph.arithmetic import where
from opgraph.memory import Footprint
from opgraph.timeline import Timeline

if TYPE_CHECKING:
    import pandas as pd

    from opgraph.point import Point


@dataclass(frozen=True, eq=False)
class Report:
    """The figures of one design point, or of an array of them.

    Attributes
    ----------
    point : what was simulated.
    ttft : time to first token in s: one step that prefills all prompts of the batch.
    tpot : time per output token in s: mean of the decode steps as the context grows.
    memory : bytes on a chip.
    """

    point: "Point"
    ttft: Number
    tpot: Number
    memory: Footprint

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
        return simulate(*parts, cost=point.cost, host=point.host, reserve=point.reserve)

    @property
    def verdict(self) -> str:
        """Whether it fits, and by how much it does not."""
        memory = self.memory
        capacity, total = (_quantity(value, "B") for value in (memory.capacity, memory.total))
        if memory.fits:
            return f"fits: {total} of {capacity} per chip"
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
            "phases": {
                name: {
                    "time_ms": float(timeline.time) * milli,
                    "low_ms": float(timeline.interval[0]) * milli,
                    "high_ms": float(timeline.interval[1]) * milli,
                    "exposed_communication_ms": float(timeline.exposed) * milli,
                    "limiter_shares": timeline.limiter_shares,
                    "operators": timeline.rows(),
                }
                for name, timeline in phases.items()
            },
        }

    def __str__(self) -> str:
        if self.point.shape:
            return f"Report of {' × '.join(map(str, self.point.shape))} design points"
        rows = {
            "TTFT": _with_interval(self.ttft, self.ttft_interval),
            "TPOT": _with_interval(self.tpot, self.tpot_interval),
            "latency": _quantity(self.latency, "s"),
            "throughput": f"{self.throughput:.4g} tokens/s",
            "per chip": f"{self.throughput_per_chip:.4g} tokens/s",
            "memory": self.verdict,
            "room for": f"batch {self.max_batch:,}, or context {self.max_context:,}",
            "prefill": describe_shares(self.prefill),
            "decode": describe_shares(self.decode),
        }
        phases = {"prefill": self.prefill, "decode": self.decode}
        if any(phase.communicates for phase in phases.values()):
            rows["exposed"] = "communication: " + ", ".join(
                f"{_quantity(phase.exposed, 's')} of a {name} step"
                for name, phase in phases.items()
            )
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
    """Seconds, and the interval where there is one: ``9.6 ms (9.2 ms to 10 ms)``."""
    text, low, high = (_quantity(seconds, "s") for seconds in (value, *interval))
    return text if low == high else f"{text} ({low} to {high})"


def _quantity(value: Number, unit: str) -> str:
    return format_quantity(float(value), unit)
