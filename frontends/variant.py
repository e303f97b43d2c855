"""Ways to run a model that its checkpoint does not fix: adapters, a pruned cache, a window."""

import math
from dataclasses import dataclass

from hardware import SpecError


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters applied at run time (Hu et al. 2021; in batches, Chen et al. 2023).

    Each sequence of a batch uses one of *count* adapters, whichever; a product reads those that
    some sequence uses. Merged adapters are the model itself: load it without.

    Parameters
    ----------
    rank : width of an adapter.
    count : adapters held in memory.
    targets : classes of weights that have one: ``attention``, ``ffn``.
    """

    rank: int
    count: int = 1
    targets: tuple[str, ...] = ("attention", "ffn")

    def __post_init__(self) -> None:
        for name, value in (("rank", self.rank), ("count", self.count)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SpecError(f"lora: {name} is {value!r}, but must be a whole number ≥ 1")
        unknown = set(self.targets) - {"attention", "ffn"}
        if unknown:
            raise SpecError(f"lora: {sorted(unknown)[0]!r} has no adapters; attention and ffn may")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a model is run.

    Parameters
    ----------
    lora : adapters applied at run time.
    kv_kept : the share of the cached positions that is kept once they are in the cache
        (pruning and compression: H2O, Zhang et al. 2023; SnapKV, Li et al. 2024); 1: all.
    window : tokens that a query looks back in every layer of full attention (0: all).
    """

    lora: Lora | None = None
    kv_kept: float = 1.0
    window: int = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.kv_kept, float | int) and 0 < self.kv_kept <= 1):
            raise SpecError(f"kv_kept is {self.kv_kept!r}, but must be above 0 and at most 1")
        if not math.isfinite(self.window) or self.window < 0 or self.window != int(self.window):
            raise SpecError(f"window is {self.window!r}, but must be a whole number ≥ 0")


AS_TRAINED = Variant()
