"""Tensors are a name, named dimensions and a number format. They hold no numbers."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from hardware import Number, SpecError
from hardware.errors import nearest
from opgraph.sizes import Axes, Sizes

Role = Literal["activation", "weight", "cache"]


@dataclass(frozen=True, slots=True)
class Format:
    """How a number is stored, and in which arithmetic a product of such numbers runs.

    Parameters
    ----------
    bits : bits of one element.
    group : elements that share a scale (0: no scales).
    scale_bits, zero_bits : bits of one group's scale and zero point.
    name : how the format is written.
    compute : the chip's rate it uses, a key of ``Chip.matrix``; the format's name if empty.

    Examples
    --------
    >>> Format(4, group=128, scale_bits=16, zero_bits=4).effective_bits
    4.15625
    """

    bits: float
    group: int = 0
    scale_bits: float = 0
    zero_bits: float = 0
    name: str = ""
    compute: str = ""

    @property
    def effective_bits(self) -> float:
        """Bits per element, scales and zero points included."""
        shared = (self.scale_bits + self.zero_bits) / self.group if self.group else 0.0
        return self.bits + shared

    @property
    def nbytes(self) -> float:
        """Bytes per element."""
        return self.effective_bits / 8

    def __str__(self) -> str:
        return self.name or f"{self.effective_bits:g}bit"


# Block formats: OCP Microscaling Formats (MX) v1.0, 2023 (32 elements, one 8-bit scale);
# NVFP4 (16 elements, one FP8 scale): NVIDIA Blackwell architecture brief, 2024. FP8 with an fp32
# scale per 128 × 128 weights and per 128 activations: DeepSeek-V3 report, 2024, section 3.3.2.
FORMATS: dict[str, Format] = {
    **{name: Format(32, name=name) for name in ("fp32", "int32")},
    "tf32": Format(32, name="tf32"),
    **{name: Format(16, name=name) for name in ("bf16", "fp16")},
    **{name: Format(8, name=name) for name in ("fp8", "int8")},
    **{name: Format(4, name=name) for name in ("fp4", "int4")},
    "int3": Format(3, name="int3", compute="int4"),
    "fp8-block": Format(8, 128 * 128, 32, name="fp8-block", compute="fp8"),
    "fp8-row": Format(8, 128, 32, name="fp8-row", compute="fp8"),
    "mxfp8": Format(8, 32, 8, name="mxfp8", compute="fp8"),
    "mxfp6": Format(6, 32, 8, name="mxfp6", compute="fp6"),
    "mxfp4": Format(4, 32, 8, name="mxfp4", compute="fp4"),
    "nvfp4": Format(4, 16, 8, name="nvfp4", compute="fp4"),
}
# the widest matrix of a model that we know has 2**16 rows or columns
_MOST_GROUP = 2**16
_GROUPED = re.compile(r"int(\d)-g(\d+)")


@lru_cache
def as_format(text: str | Format) -> Format:
    """The format called *text*: a name of `FORMATS`, or ``int4-g128`` for grouped integers.

    A grouped integer format has a 16-bit scale and a zero point of its own width per group
    (GPTQ, Frantar et al. 2023, section 4).

    Raises
    ------
    SpecError : no such format.
    """
    if isinstance(text, Format):
        return text
    if text in FORMATS:
        return FORMATS[text]
    if match := _GROUPED.fullmatch(text):
        bits, group = int(match[1]), int(match[2])
        if bits and 0 < group <= _MOST_GROUP:
            return Format(bits, group, 16, bits, name=text, compute=f"int{bits}")
    raise SpecError(f"no number format {text!r}{nearest(text, [*FORMATS, 'int4-g128'])}")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A name, named dimensions and a format; in a sharded graph also which axes split it.

    *split* has one entry per dimension: the plan's axes over whose chips it is spread.
    *partial* names the axes over whose chips the values have still to be summed.

    Raises
    ------
    SpecError : a dimension that it has twice: give the second one a qualifier (``model.out``).
    """

    name: str
    dims: tuple[str, ...]
    format: Format
    role: Role = "activation"
    split: tuple[Axes, ...] = ()
    partial: Axes = ()

    def __post_init__(self) -> None:
        if len(set(self.dims)) < len(self.dims):
            twice = next(dim for dim in self.dims if self.dims.count(dim) > 1)
            raise SpecError(
                f"tensor {self.name!r} [{' '.join(self.dims)}] has the dimension {twice!r} twice; "
                f"call one of them {twice + '.other'!r}"
            )

    @classmethod
    def of(cls, name: str, dims: str, dtype: str | Format, role: Role = "activation") -> "Tensor":
        """Read *dims* as words: ``Tensor.of("x", "batch seq model", "bf16")``."""
        return cls(name, tuple(dims.split()), as_format(dtype), role)

    @property
    def layout(self) -> dict[str, Axes]:
        """Dimension → the axes that split it."""
        return dict(zip(self.dims, self.split or ((),) * len(self.dims), strict=True))

    def laid_out(self, layout: Mapping[str, Axes], partial: Axes = ()) -> "Tensor":
        """The same tensor, split as *layout* says."""
        split = tuple(layout.get(dim, ()) for dim in self.dims)
        split = split if any(split) else ()
        return Tensor(self.name, self.dims, self.format, self.role, split, partial)

    def called(self, name: str) -> "Tensor":
        """The same tensor by another *name*."""
        if name == self.name:
            return self
        return Tensor(name, self.dims, self.format, self.role, self.split, self.partial)

    def numel(self, sizes: Sizes) -> Number:
        """Elements on one chip."""
        return sizes.volume(self.dims, self.split)

    def nbytes(self, sizes: Sizes) -> Number:
        """Bytes on one chip."""
        return self.numel(sizes) * self.format.nbytes

    def __str__(self) -> str:
        dims = " ".join("/".join((dim, *axes)) for dim, axes in self.layout.items())
        pending = f" partial over {'·'.join(self.partial)}" if self.partial else ""
        return f"{self.name}:{self.format}[{dims}]{pending}"


def alike(counted: Iterable[tuple[Tensor, int]]) -> tuple[tuple[Tensor, int], ...]:
    """Tensors and how many of each there are, those of one shape and format together."""
    found: dict[Any, tuple[Tensor, int]] = {}
    for tensor, count in counted:
        kind = (tensor.dims, tensor.split, tensor.format)
        first, before = found.get(kind, (tensor, 0))
        found[kind] = first, before + count
    return tuple(found.values())
