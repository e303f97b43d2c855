"""Efficient LLM Inference: Bandwidth, Compute, Synchronization, and Capacity are all you need
(LIMINAL; Davies et al., arXiv:2507.14397 v1, 2025): how fast one user's tokens can come.

A step takes as long as weights and KV cache take from memory, plus what is waited for collectives.
Published are the rates of Llama-3.1-405B in fp8 on systems of xPU-HBM3. The paper's other memories
are in the catalogue (xpu-hbm4, xpu-3d-dram, xpu-sram, xpu-cows): what they reach is a prediction.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from frontends import load_model
from hardware import Chip, Level, Platform, load_chip
from opgraph import Plan, Report, Workload, simulate
from opgraph.sizes import Split
from validation.papers import Row

CONTEXTS = {"4K": 4096, "128K": 131_072}
_PUBLISHED = {8: (86, 80), 32: (290, 271), 128: (776, 743)}
# chips that share each layer, and stages
_PREDICTED = {
    "xpu-hbm4": ((8, 1), (32, 1), (128, 1)),
    "xpu-3d-dram": ((8, 1), (32, 1), (128, 1)),
    "xpu-sram": ((128, 8),),
    "xpu-cows": ((64, 1),),
}
# the paper prints whole tokens per second: half of one in 80
_PRINTED = 0.006


@dataclass(frozen=True, kw_only=True)
class EvenPlan(Plan):
    """A plan in which chips that share a KV head share its cache and weights evenly, too."""

    def splits(self, decodes: bool) -> Mapping[str, Split]:
        """What the mesh axes split."""
        rules = super().splits(decodes)
        return {**rules, "kv_heads": replace(rules["kv_heads"], uneven="share")}


def rows() -> list[Row]:
    """Published rates of xPU-HBM3, and predicted ones of the other memories."""
    found = [
        Row(_case("xpu-hbm3", tp, 1, word), published, float(rate), _PRINTED)
        for tp, expected in _PUBLISHED.items()
        for word, published, rate in zip(CONTEXTS, expected, rates("xpu-hbm3", tp), strict=True)
    ]
    for chip, systems in _PREDICTED.items():
        for tp, pp in systems:
            fitting = holds(decode(chip, tp, pp))
            for word, rate, fits in zip(CONTEXTS, rates(chip, tp, pp), fitting, strict=True):
                if fits:
                    found.append(Row(_case(chip, tp, pp, word), None, float(rate)))
    return found


def rates(chip: str | Chip, tp: int, pp: int = 1) -> NDArray[np.float64]:
    """Tokens per second of a user of Llama-3.1-405B at each of `CONTEXTS`."""
    return np.asarray(1 / decode(chip, tp, pp).tpot)


def decode(
    chip: str | Chip, tp: int, pp: int = 1, model: str = "llama-3.1-405b", batch: int = 1
) -> Report:
    """One decode step of *model* in fp8 at each of `CONTEXTS`."""
    contexts = np.array(list(CONTEXTS.values()))
    return simulate(
        load_model(model, weights="fp8", kv_cache="fp8"),
        system(load_chip(chip) if isinstance(chip, str) else chip, tp * pp),
        EvenPlan(tp=tp, pp=pp),
        Workload(batch=batch, prompt=contexts - 1, output=2),
    )


def holds(report: Report) -> NDArray[np.bool_]:
    """Whether weights and KV cache fit: chips that only decode need not hold a prefill."""
    memory = report.memory
    return np.asarray(memory.weights + memory.kv_cache <= memory.capacity)


def system(chip: Chip, count: int) -> Platform:
    """So many chips on boards, which are joined to each other."""
    board = min(count, chip.max_scale_up)
    inside, outside = chip.scale_up, chip.scale_out
    levels = [Level("board", board, inside)] if inside is not None and board > 1 else []
    if outside is not None and count > board:
        levels.append(Level("system", count // board, outside, "full"))
    return Platform(f"{chip.name}:{count}", chip.source, chip, tuple(levels))


def _case(chip: str, tp: int, pp: int, context: str) -> str:
    stages = f" PP{pp}" if pp > 1 else ""
    return f"Llama-405B tokens/s of a user, {chip} TP{tp}{stages}, {context}"
