"""Chips: what one accelerator can compute, hold and move."""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias, cast

from hardware.arithmetic import always, in_double
from hardware.die import Die
from hardware.energy import Energy, with_energy
from hardware.errors import SpecError, nearest, shown
from hardware.link import STRICT, Fabric, Link, check_positive, widen
from hardware.specs import (
    Bytes,
    BytesPerSecond,
    Cores,
    Count,
    Factor,
    FlopPerSecond,
    Hertz,
    Name,
    Text,
    Watts,
    as_text,
    find_spec,
    list_specs,
    one_of,
    read_spec,
)
from hardware.units import Number, format_range, in_unit

_CHIPS = Path(__file__).parent / "data" / "chips"

_WIDER = {
    "fp4": ("fp6", "bf16", "fp16", "tf32", "fp32"),
    "fp6": ("bf16", "fp16", "tf32", "fp32"),
    "fp8": ("bf16", "fp16", "tf32", "fp32"),
    "int4": ("int8", "fp8", "bf16", "fp16", "tf32", "fp32"),
    "int8": ("bf16", "fp16", "tf32", "fp32"),
    "bf16": ("fp16", "tf32", "fp32"),
    "fp16": ("bf16", "tf32", "fp32"),
    "tf32": ("fp32",),
    "fp32": (),
}
"""Where a type runs that has no rate of its own: the first of these that has one. Each
holds every value of the narrower type, but for bf16 and fp16, which stand for each other.
Formats of 4 and 6 bits have a scale per block, with which FP8 does not hold their values: engines
unpack them to 16 bits (vLLM and SGLang: Marlin kernels on chips before Blackwell)."""

_UNITS = {
    "memory_bandwidth": "B/s", "memory_capacity": "B", "clock": "Hz", "power": "W",
    "vector": "FLOP/s",
}  # fmt: skip

# per core and clock, of every NVIDIA chip before Blackwell Ultra (CUDA C Programming Guide, table
# of arithmetic throughput); what is assumed of a chip of which nothing is said
EXPONENTIALS = 16.0

# least of wgmma and tcgen05.mma, Hopper's and data-centre Blackwell's (PTX ISA, "Asynchronous
# Warpgroup Level Matrix Instructions" and "TensorCore 5th Generation"); what is assumed of a chip
# of which nothing is said
MATRIX_ROWS = 64.0

DTYPES = tuple(_WIDER)
Dtype: TypeAlias = Annotated[str, one_of(DTYPES)]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """One tier of memory: capacity in bytes, bandwidth in bytes per second.

    The bandwidth is None where it is unpublished, which only a cache may be.
    """

    name: Text
    capacity: Bytes
    bandwidth: BytesPerSecond | None = None

    __pydantic_config__: ClassVar = STRICT

    def __post_init__(self) -> None:
        check_positive(self.name, capacity=self.capacity, bandwidth=self.bandwidth)
        widen(self)


@dataclass(frozen=True, kw_only=True)
class Transfers:
    """What the kernel of a collective takes of a chip while it runs: so many of its cores.

    source: where the number is from; it is software, and on no datasheet.
    """

    cores: Cores
    source: Text

    __pydantic_config__: ClassVar = STRICT

    def __post_init__(self) -> None:
        check_positive("transfers", cores=self.cores)
        widen(self)


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator, as its datasheet describes it; any number may be an array.

    matrix: dense peak FLOP/s of the matrix units per dtype (integer operations count as
    FLOP). vector: FLOP/s of the vector units in fp32. memory: nearest tier first; the
    first is the main memory. cores: SMs, compute units, tensor cores. clock: Hz at which the
    peaks hold. boost: the highest clock in times of it, which short kernels reach.
    exponentials: that a core's special-function units start per clock. matrix_rows: of the
    least tile that a matrix instruction takes. cache: what all cores share on chip. power:
    thermal design power, W. cores, clock, cache and power are None where unpublished. energy:
    joules of what it does, None where nothing is known; dies: its logic dies, none where
    unpublished. scale_up: the links to the other chips of a domain of at most max_scale_up,
    wired as fabric says; scale_out: the network interface beyond it. transfers: the cores that
    move data between chips; None where engines of their own do, or where nobody has published
    it.

    Raises SpecError if a number is not finite and positive.
    """

    name: Name
    source: Text
    vendor: Text
    matrix: Mapping[Dtype, FlopPerSecond]
    vector: FlopPerSecond
    memory: tuple[Memory, ...]
    cores: Cores | None = None
    clock: Hertz | None = None
    boost: Factor = 1.0
    exponentials: Factor = EXPONENTIALS
    matrix_rows: Factor = MATRIX_ROWS
    cache: Memory | None = None
    power: Watts | None = None
    energy: Energy | None = None
    dies: tuple[Die, ...] = ()
    scale_up: Link | None = None
    max_scale_up: Count = 1
    scale_out: Link | None = None
    fabric: Fabric = field(default_factory=Fabric)
    transfers: Transfers | None = None

    __pydantic_config__: ClassVar = STRICT

    def __post_init__(self) -> None:
        if not self.matrix or not self.memory:
            raise SpecError(f"{self.name} needs a rate in 'matrix' and a tier in 'memory'")
        if any(tier.bandwidth is None for tier in self.memory):
            raise SpecError(f"'bandwidth' is missing in a memory of {self.name}")
        if self.max_scale_up > 1 and self.scale_up is None:
            raise SpecError(f"max_scale_up of {self.name} needs a 'scale_up' link")
        check_positive(
            self.name, vector=self.vector, cores=self.cores, clock=self.clock, power=self.power,
            boost=self.boost, exponentials=self.exponentials, matrix_rows=self.matrix_rows,
        )  # fmt: skip
        check_positive(self.name, **self.matrix)
        if not always(self.boost >= 1):
            raise SpecError(f"boost of {self.name} is a highest clock over 'clock', at least 1")
        if self.energy is not None:
            self.energy.check(self.name, [tier.name for tier in self.memory], DTYPES)
        if self.transfers and self.cores is None:
            raise SpecError(f"{self.name} has cores in 'transfers', but 'cores' is missing")
        widen(self)
        rates = {dtype: in_double(rate) for dtype, rate in self.matrix.items()}
        object.__setattr__(self, "matrix", rates)

    def __str__(self) -> str:
        parts = {"FLOP/s": self.peak("bf16"), "B": self.memory_capacity,
                 "B/s": self.memory_bandwidth, "W": self.power}  # fmt: skip
        rate, size, speed, power = (
            "" if value is None else format_range(value, unit) for unit, value in parts.items()
        )
        return f"{self.name}: {rate} in bf16, {size} at {speed}" + (f", {power}" if power else "")

    @property
    def memory_capacity(self) -> Number:
        """Bytes the main memory holds."""
        return self.memory[0].capacity

    @property
    def memory_bandwidth(self) -> Number:
        """Bytes per second of the main memory."""
        return cast("Number", self.memory[0].bandwidth)  # never None: checked when made

    @property
    def has_gddr(self) -> bool:
        """Whether the main memory is GDDR, as its name says: on graphics and workstation parts
        libraries run other kernels than on parts with stacked memory.
        """
        return "GDDR" in self.memory[0].name.upper()

    def peak(self, dtype: str) -> Number:
        """Return the dense FLOP/s of products in *dtype*.

        A dtype without a rate of its own runs at the rate of the narrowest wider one it
        can be upcast to; fp32 without one runs on the vector units. Raises SpecError for
        a dtype that does not exist.
        """
        return self._upcast(dtype, self.matrix, self.vector)

    def flop_energy(self, dtype: str | None) -> Number:
        """Return the J/FLOP of products in *dtype*, of the vector units if None.

        A dtype without a figure of its own takes that of the type `peak` upcasts it to.
        Raises SpecError if nothing is known of the chip's energy, or for an unknown dtype.
        """
        known = self.known_energy
        vector = cast("Number", known.vector)
        return vector if dtype is None else self._upcast(dtype, known.matrix, vector)

    @property
    def memory_energy(self) -> Number:
        """J/B between the main memory and the cores; SpecError if it is not known."""
        known, name = self.known_energy.memory, self.memory[0].name
        if name not in known:
            raise SpecError(
                f"nothing is known of the energy of {self.name}'s memory {name!r}: write "
                f"memory = {{ {name} = '80 pJ/B' }} under [energy]"
            )
        return known[name]

    @property
    def idle_power(self) -> Number:
        """Watts it draws doing nothing; SpecError if that is not known."""
        return cast("Number", self.known_energy.idle)

    @property
    def has_energy(self) -> bool:
        """Whether all is known that a step's energy needs."""
        try:
            known = self.known_energy.memory
        except SpecError:
            return False
        return self.memory[0].name in known

    @property
    def known_energy(self) -> Energy:
        """Every figure of its energy; SpecError if nothing is known."""
        chip = self if self.energy and self.energy.is_complete else with_energy(self)
        return cast("Energy", chip.energy)

    def _upcast(self, dtype: str, figures: Mapping[str, Number], vector: Number) -> Number:
        """Return the figure of *dtype*, or of the narrowest wider type that has one."""
        if dtype not in _WIDER:
            has = ", ".join(self.matrix)
            raise SpecError(f"{self.name} has no peak for {shown(dtype)}; it has {has}")
        held = next((one for one in (dtype, *_WIDER[dtype]) if one in figures), None)
        return vector if held is None else figures[held]

    def replace(self, **changes: Any) -> "Chip":
        """Return this chip with other figures, each a number, an array, or text with a unit.

        Names: memory_bandwidth, memory_capacity, clock, boost, cores, exponentials, power, vector,
        and peak, a mapping from dtype to FLOP/s that sets those rates. Raises SpecError for another
        name, or a number that is not finite and positive. Cores alone share the same peak.
        """
        flat = ("clock", "boost", "cores", "exponentials", "power", "vector")
        known = ("memory_bandwidth", "memory_capacity", "peak", *flat)
        for name in changes:
            if name not in known:
                raise SpecError(f"a chip has no {name!r} to replace{nearest(name, known)}")
        changes = {name: in_unit(name, value, _UNITS.get(name)) for name, value in changes.items()}
        main = dataclasses.replace(
            self.memory[0],
            bandwidth=changes.get("memory_bandwidth", self.memory_bandwidth),
            capacity=changes.get("memory_capacity", self.memory_capacity),
        )
        rates = changes.get("peak", {})
        if not isinstance(rates, Mapping):
            raise SpecError(f"peak maps dtypes to FLOP/s, such as {{'bf16': 1e15}}: {shown(rates)}")
        for dtype in rates:
            if dtype not in DTYPES:
                raise SpecError(f"unknown dtype {dtype!r} in peak{nearest(dtype, DTYPES)}")
        rates = {
            dtype: in_unit(f"peak of {dtype}", rate, "FLOP/s") for dtype, rate in rates.items()
        }
        return dataclasses.replace(
            self,
            memory=(main, *self.memory[1:]),
            matrix={**self.matrix, **rates},
            **{name: changes[name] for name in flat if name in changes},
        )


def load_chip(name: str | Path) -> Chip:
    """Return the chip of the catalogue called *name*, or the one in the file *name*.toml.

    Raises SpecError if there is no such chip or the file does not describe one.

    >>> load_chip("h100-sxm").memory_capacity / 2**30
    80.0
    """
    name = as_text(name)
    return _read_chip(name) if name.endswith(".toml") else _catalogue_chip(name)


@functools.lru_cache(maxsize=256)  # more than the catalogue holds
def _catalogue_chip(name: str) -> Chip:
    return _read_chip(name)


def _read_chip(name: str) -> Chip:
    """Read a chip file; its energies are settled here, so that they stay when it is changed."""
    chip = read_spec(find_spec(_CHIPS, name), Chip)
    return with_energy(chip) if chip.power is not None or chip.dies else chip


def list_chips() -> list[str]:
    """Return the names of the chips in the catalogue."""
    return list_specs(_CHIPS)
