"""Characterizing Communication Patterns in Distributed Large Language Model Inference
(arXiv:2507.14392, Hot Interconnects 2025): how often chips exchange what.

The setting is the paper's: vLLM, 128 tokens in and 128 out, 16 bit, one sequence. The counts stand
for dense decoders in closed form: with L layers, width h and vocabulary v on t chips, 2L + 1
all-reduces of h numbers per token and a gather of v/t; between p stages, hidden state and residual.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from frontends import load_model
from hardware import load_platform
from opgraph import Plan, Workload, simulate
from validation.papers import Row

if TYPE_CHECKING:
    import pandas as pd

_TOKENS, _BYTES = 128, 2
_STEPS = {"prefill": 1, "decode": _TOKENS - 1}


@dataclass(frozen=True)
class _Published:
    """What the census says of a model: all-reduces and bytes of each, by phase; gathered logits."""

    name: str
    prefill: tuple[int, int]
    decode: tuple[int, int]
    logits: dict[int, int]


_MODELS = (
    _Published("llama-3.2-3b", (57, 786_432), (7_239, 6_144), {2: 64_128, 4: 32_064}),
    _Published("llama-3.1-8b", (65, 1_048_576), (8_255, 8_192), {2: 64_128, 4: 32_064}),
    _Published("llama-2-13b", (81, 1_310_720), (10_287, 10_240), {2: 16_000, 4: 8_000}),
)


def rows() -> list[Row]:
    """The census of three models under tensor parallelism, and of hybrids with a pipeline."""
    return [row for model in _MODELS for row in (*_tensor(model), *_hybrid(model, tp=2, pp=2))]


def _tensor(model: _Published) -> list[Row]:
    found = []
    for tp, logits in model.logits.items():
        census = _census(model.name, tp=tp)
        label = f"{model.name} TP{tp}"
        for phase, (count, nbytes) in (("prefill", model.prefill), ("decode", model.decode)):
            ours = _some(census, phase, "all_reduce", "batch seq model")
            found += [
                Row(f"{label}, {phase} all-reduces", count, ours[0]),
                Row(f"{label}, bytes of each", nbytes, ours[1]),
            ]
        gathers = [_some(census, phase, "all_gather", "batch vocab") for phase in _STEPS]
        found += [
            Row(f"{label}, gathers of logits", _TOKENS, sum(count for count, _ in gathers)),
            Row(f"{label}, logits of each chip", logits, gathers[1][1] / _BYTES),
        ]
    return found


def _hybrid(model: _Published, tp: int, pp: int) -> list[Row]:
    census = _census(model.name, tp=tp, pp=pp)
    label = f"{model.name} TP{tp} PP{pp}"
    found = []
    for phase, (count, nbytes) in (("prefill", model.prefill), ("decode", model.decode)):
        summed, sent, gathered = (
            _some(census, phase, kind, "batch seq model")
            for kind in ("all_reduce", "send", "all_gather")
        )
        crossings = 2 * (pp - 1) * _STEPS[phase]
        found += [
            Row(f"{label}, {phase} all-reduces", count, summed[0]),
            Row(f"{label}, {phase} sends", crossings, sent[0]),
            Row(f"{label}, {phase} bytes that each chip sends", nbytes / tp, sent[1]),
            Row(f"{label}, {phase} gathers in the next stage", crossings, gathered[0]),
        ]
    return found


def _census(model: str, tp: int, pp: int = 1) -> "pd.DataFrame":
    work = Workload(batch=1, prompt=_TOKENS, output=_TOKENS)
    loaded, nodes = load_model(model), load_platform("h100-sxm:8")
    return simulate(loaded, nodes, Plan(tp=tp, pp=pp), work).communication()


def _some(census: "pd.DataFrame", phase: str, kind: str, dims: str) -> tuple[int, float]:
    """How many there are in all steps, and the bytes that each chip brings to one."""
    chosen = (census["phase"] == phase) & (census["collective"] == kind) & (census["dims"] == dims)
    (nbytes,) = census[chosen]["bytes"].unique()
    return int(census[chosen]["count"].sum()), float(nbytes)
