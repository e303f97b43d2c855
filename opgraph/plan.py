"""Parallelism: into how many parts each axis splits the named dimensions, and over which chips."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hardware import Number, SpecError
from opgraph.arithmetic import as_count, product
from opgraph.sizes import Axes, Expression, Sizes, Split

# What each axis splits, by the word of the dimension. Megatron-LM (Shoeybi et al. 2019): heads
# and feed-forward columns by tensor parallelism, and the vocabulary at both ends.
SPLITS: dict[str, Split] = {
    "batch": Split(("dp",), "pad"),
    "heads": Split(("tp",)),
    "kv_heads": Split(("tp",), "replicate"),
    "ffn": Split(("tp",)),
    "vocab": Split(("tp",), "pad"),
    # channels and heads of a recurrence are independent of each other, like those of attention;
    # a group's keys serve several heads, like KV heads (Dao & Gu 2024, section 8.1)
    "inner": Split(("tp",)),
    "ssm_heads": Split(("tp",)),
    "groups": Split(("tp",), "replicate"),
    # a token's rows are where their experts are: `GroupedEinsum.follows`
    "topk": Split((), "share"),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a model is spread over chips. Every degree is a whole number ≥ 1 or an array of them.

    Parameters
    ----------
    tp : tensor parallelism: heads, feed-forward columns and vocabulary split over *tp* chips.
    dp : data parallelism: *dp* copies of the model, each with its part of the batch.

    Raises
    ------
    SpecError : a degree that is not a whole number from 1 to 2⁴⁰.
    """

    tp: Number = 1
    dp: Number = 1

    # from neighbouring chips outwards: the fastest links go to the axis that talks most
    AXES = ("tp", "dp")

    def __post_init__(self) -> None:
        for axis in self.AXES:
            degree = as_count(axis, getattr(self, axis), of=" of chips")
            object.__setattr__(self, axis, degree)

    @cached_property
    def degrees(self) -> dict[str, Number]:
        """Chips along each axis."""
        return {axis: getattr(self, axis) for axis in self.AXES}

    @property
    def num_chips(self) -> Number:
        """Chips that the plan uses."""
        return product(self.degrees.values())

    @property
    def active(self) -> Axes:
        """The axes that split anything."""
        return tuple(
            axis for axis, degree in self.degrees.items() if np.any(np.not_equal(degree, 1))
        )

    def group(self, axes: Axes) -> tuple[Number, Number]:
        """Size and stride of the groups of chips along *axes*: every stride-th chip."""
        first = min(self.AXES.index(axis) for axis in axes)
        stride = product(self.degrees[axis] for axis in self.AXES[:first])
        return product(self.degrees[axis] for axis in axes), stride

    def bind(self, numbers: Mapping[str, Number], derived: Mapping[str, Expression]) -> Sizes:
        """The sizes of *numbers* under this plan."""
        return Sizes(numbers, derived, self.degrees, SPLITS)

    def check(self, numbers: Mapping[str, Number], num_chips: int, platform: str) -> None:
        """Refuse a plan that the model's dimensions or the platform's chips do not allow.

        Raises
        ------
        SpecError : too many chips, or a dimension that does not divide.
        """
        if np.any(self.num_chips > num_chips):
            asked = " × ".join(
                f"{axis}={_most(d)}" for axis, d in self.degrees.items() if _most(d) > 1
            )
            raise SpecError(
                f"{asked} needs {_most(self.num_chips)} chips but {platform} has {num_chips}"
            )
        for dim, whole in numbers.items():
            rule = SPLITS.get(dim.partition(".")[0])
            if rule and rule.uneven not in ("pad", "share"):
                self._check_divides(dim, whole, rule)

    def _check_divides(self, dim: str, whole: Number, rule: Split) -> None:
        ways = product(self.degrees[axis] for axis in rule.axes)
        small, large = np.minimum(whole, ways), np.maximum(whole, ways)
        uneven = large % small if rule.uneven == "replicate" else np.mod(whole, ways)
        if np.any(uneven):
            shape = np.broadcast_shapes(np.shape(whole), np.shape(ways))
            at = np.argmax(np.broadcast_to(uneven, shape) != 0)
            axis, n = " × ".join(rule.axes), int(np.broadcast_to(ways, shape).flat[at])
            raise SpecError(
                f"{axis}={n} does not divide the {_most(whole)} {dim} of the model evenly; "
                f"{_divisors(int(_most(whole)))} would"
            )


def _most(value: Number) -> Number:
    return value if isinstance(value, int) else int(np.max(value))


def _divisors(whole: int) -> str:
    # no platform splits one tensor more ways than this
    most = 64
    return ", ".join(str(n) for n in range(1, min(whole, most) + 1) if whole % n == 0)
