"""Operators priced by kernels fitted on measurements: the levels calibrated, tiled and corrected.

An operator asks a kernel for a shape; the chip's calibration has the kernel's parameters. A chip
without measurements takes the parameters pooled over chips like it, which are dimensionless; a kind
of operator without a kernel is priced by the roofline. Each cost says which it was.

To have a new operator priced, register what it asks for in `ask`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, singledispatch
from pathlib import Path
from typing import Any

import numpy as np

import hardware
from hardware import Chip, Number, list_chips, load_chip
from hardware.arithmetic import larger, product, smaller, where
from opgraph.attention import AbsorbedAttention, Attention, DecompressedAttention
from opgraph.cost import Cost, Machine, Roofline, once
from opgraph.experts import Combine, Dispatch, GroupedEinsum, Route
from opgraph.kernels import (
    KERNELS,
    TRANSFERS,
    AttentionShape,
    Calibration,
    CollectiveShape,
    DispatchShape,
    GemmShape,
    Kernel,
    LinearShape,
    MlaShape,
    Routing,
    StreamShape,
    interval,
    kind_of,
    load_calibration,
    price,
    route,
)
from opgraph.kernels.chip import KernelChip, kernel_chip
from opgraph.operator import Activation, Collective, Einsum, Operator, Quantize, Rotary
from opgraph.recurrent import GatedDeltaRule
from opgraph.routing import imbalance, routing
from opgraph.sizes import Sizes

Book = Mapping[tuple[str, str], Calibration]
_CALIBRATIONS = Path(hardware.__file__).parent / "data" / "calibration"
# a format without a fit of its own takes the parameters of the next one here that has one
_NEXT = {
    "fp8_block": "fp8", "nvfp4": "fp8", "int8": "fp8", "fp8": "bf16", "w4a16": "bf16",
    "w8a16": "bf16", "w4a16_mxfp4": "w4a16", "w4a8_mxfp4": "nvfp4", "bf16-kv-fp8": "bf16",
    "fp8-kv-fp8": "fp8", "ll-nvfp4": "ll-fp8", "ll-fp8": "ll-bfloat16", "ht-nvfp4": "ht-fp8",
    "ht-fp8": "ht-bfloat16",
}  # fmt: skip
# number format → the word of the kernels
_WORDS = {"fp8-block": "fp8_block", "fp8-row": "fp8_block", "nvfp4": "nvfp4", "fp8": "fp8",
          "int8": "int8", "mxfp8": "fp8"}  # fmt: skip
_STREAM = ("quantise", "fp8")
# dimensions that count a kernel's rows, by their word
_TOKENS = frozenset({"batch", "seq", "context", "source", "images", "topk"})


@dataclass(frozen=True, slots=True)
class Asked:
    """What an operator asks of a kernel.

    Attributes
    ----------
    kernel, dtype : a key of a calibration.
    shape : the kernel's shape.
    share : the operator's part of what the kernel does, where the kernel does more.
    instead : another kernel that may be used, where it is faster.
    alien : how the shape is not of the kind that was measured; empty where it is.
    """

    kernel: str
    dtype: str
    shape: Any
    share: Number = 1.0
    instead: "Asked | None" = None
    alien: str = ""


_IDEAL = Roofline()
# what another operator's kernel does too
INSIDE = Asked("", "", None)
# custom all-reduce kernels are written for the chips of a node
_NODE = 8
_READ_AND_WRITTEN, _FAIR = 2, 1 / 2


@dataclass(frozen=True)
class Fitted:
    """Prices at a level of fidelity: ``calibrated`` (four numbers a kernel), ``tiled`` (its
    physics), ``corrected`` (physics times a bounded residual of the measurements).

    *tolerance*: these times bend gently with the context; averages over it are taken to this.
    """

    name: str = "corrected"
    tolerance: float = 1e-4

    @once
    def cost(self, operator: Operator, sizes: Sizes, machine: Machine) -> Cost:
        """The fitted kernel's cost; the roofline's where there is none."""
        ideal = _IDEAL.cost(operator, sizes, machine)
        asked = None if operator.is_view else ask(operator, sizes, machine)
        if asked is None and isinstance(operator, Collective):
            return _holding(ideal, machine.platform.chip)
        if asked is None:
            return ideal
        if asked == INSIDE:
            return replace(ideal, time=0.0 * ideal.time, provenance="inside another kernel")
        cost = self._priced(asked, machine, ideal)
        if asked.instead is not None:
            cost = _faster(cost, self._priced(asked.instead, machine, ideal))
        if isinstance(operator, Collective):
            cost = _only_in_groups(_holding(cost, machine.platform.chip))
        if asked.kernel == _STREAM[0] and not isinstance(operator, Quantize):
            cost = replace(cost, provenance=f"transferred from {_STREAM[0]}")
        return cost

    def _priced(self, asked: Asked, machine: Machine, ideal: Cost) -> Cost:
        kernel, seen = KERNELS[asked.kernel], kernel_chip(machine.platform.chip)
        kind = kind_of(kernel, seen, asked.shape)
        found = _look_up(_book(seen.name, kind, kind == kind_of(kernel, seen)), asked)
        if found is None:
            return ideal
        fit, origin = found
        level = kernel.level(self.name)
        time, limiter = price(kernel, asked.shape, seen, level, fit)
        alien: Any = origin != "measured"
        if not alien:
            alien, origin = _changed(kernel, seen, asked.shape)
        band = interval(kernel, asked.shape, seen, level, fit, alien=alien)
        time = _plain(time * asked.share)
        low, high = (time * _plain(end) for end in band)
        if not ideal.algorithm:  # where no kernel outruns the roofline unless a cache lets it
            low = larger(low, smaller(time, ideal.time))
        return replace(
            ideal, time=time, limiter=_plain(limiter), low=low, high=high,
            algorithm=asked.kernel if ideal.algorithm else "", provenance=origin,
        )  # fmt: skip


@singledispatch
def ask(operator: Operator, sizes: Sizes, machine: Machine) -> Asked | None:
    """The kernel that does what *operator* does; None if none was fitted.

    What is not registered and runs on the vector units is one pass over its bytes.
    """
    if operator.unit != "vector" or operator.stream != "compute":
        return None
    return _stream(operator, sizes)


@ask.register
def _(operator: Einsum, sizes: Sizes, machine: Machine) -> Asked | None:
    words = _product_format(operator, machine)
    if words is None:
        return None
    dtype, shape_dtype = words
    shape = operator.shape(sizes)
    gemm = GemmShape(shape["m"], shape["n"], shape["k"], shape_dtype, shape["batch"])
    return Asked("gemm", dtype, gemm)


@ask.register
def _(operator: GroupedEinsum, sizes: Sizes, machine: Machine) -> Asked | None:
    """The fused layer (routing, products, weighted sum), by each product's part of the FLOP."""
    words = _product_format(operator, machine)
    if words is None or operator.kind != "moe":
        return None
    shape = operator.shape(sizes)
    goes_up = operator.roles["k"][0].startswith("model")
    inner = operator.roles["n" if goes_up else "k"][0]
    # a gated layer's first product is twice as wide: a dimension that is two of the inner one
    gated = float(
        inner in sizes.derived or f"2*{inner}" in {e.text for e in sizes.derived.values()}
    )
    hidden, wide = (shape["k"], shape["n"]) if goes_up else (shape["n"], shape["k"])
    ffn = wide / (1 + gated) if goes_up else wide
    routed = operator.routing(sizes)
    routing = Routing(routed.experts + routed.redundant, routed.topk, routed.parts, routed.skew)
    layer = route(operator.tokens(sizes), hidden, ffn, routing, gated=gated, dtype=words[1])
    share = (1 + gated) / (2 + gated) if goes_up else 1 / (2 + gated)
    return Asked("moe", words[0], layer, share)


@ask.register(Route)
@ask.register(Dispatch)
@ask.register(Combine)
def _(operator: Operator, sizes: Sizes, machine: Machine) -> Asked:
    """Inside the fused layer."""
    return INSIDE


@ask.register
def _(operator: Activation, sizes: Sizes, machine: Machine) -> Asked:
    return INSIDE if _has_expert_rows(operator) else _stream(operator, sizes)


@ask.register
def _(operator: Rotary, sizes: Sizes, machine: Machine) -> Asked:
    """The measured prefill kernel rotates as it writes the cache; the decode kernel does not."""
    decodes = np.all(np.equal(operator.size(sizes, "seq"), 1))
    return _stream(operator, sizes) if decodes else INSIDE


@ask.register
def _(operator: Quantize, sizes: Sizes, machine: Machine) -> Asked:
    return INSIDE if _has_expert_rows(operator) else _stream(operator, sizes)


@ask.register
def _(operator: Attention, sizes: Sizes, machine: Machine) -> Asked:
    """A decode step's keys are what it reads; a prefill's window is what bounds them."""
    shape = operator.shape(sizes)
    query = operator.inputs[0].format.name
    cache = next((t.format for t in operator.inputs if t.role == "cache"), None)
    narrow = cache is not None and cache.bits < operator.inputs[0].format.bits
    products = "fp8" if query.startswith("fp8") else "bf16"
    dtype = f"{products}-kv-fp8" if narrow else products
    kv_bytes = cache.nbytes if cache else operator.inputs[1].format.nbytes
    width = (shape["head_dim"] + shape["value_dim"]) / 2
    if np.all(np.equal(shape["seq"], 1)):
        op, context = "attention_decode", shape["keys"]
        window: Number = 0.0
    else:
        bound = operator.window or operator.chunk or operator.chosen
        op, window = "attention_prefill", sizes[bound] if bound else 0.0
        # without a causal mask every query sees all: as the last one of a longer context does
        context = shape["context"] if operator.causal else 1.5 * shape["context"] - 0.5
    heads = AttentionShape(
        shape["batch"], shape["seq"], context, shape["heads"], shape["kv_heads"], width, window,
        products, kv_bytes,
    )  # fmt: skip
    return Asked(op, dtype, heads)


@ask.register(AbsorbedAttention)
@ask.register(DecompressedAttention)
def _(operator: Attention, sizes: Sizes, machine: Machine) -> Asked | None:
    batch, heads = (operator.size(sizes, dim) for dim in ("batch", "heads"))
    seq, cache = operator.size(sizes, "seq"), operator.inputs[-1].format
    dtype = "bf16" if cache.bits > 8 else "bf16-kv-fp8"
    shape = MlaShape(batch, seq, operator.keys(sizes), heads, "bf16", cache.nbytes)
    if isinstance(operator, AbsorbedAttention):
        latent, rope = (operator.size(sizes, t.dims[-1]) for t in operator.inputs[2:4])
        op, shape = "mla_decode", shape._replace(latent=latent, rope=rope)
    else:
        # a key's own part, what all heads' keys share, a value
        nope, rope, value = (operator.size(sizes, t.dims[-1]) for t in operator.inputs[2:5])
        op, shape = "mla_prefill", shape._replace(nope=nope, rope=rope, value=value)
    measured = shape._replace(context=0, kv_bytes=2.0) == MlaShape(batch, seq, 0, heads)
    return Asked(op, dtype, shape, alien="" if measured else "other head sizes")


@ask.register
def _(operator: GatedDeltaRule, sizes: Sizes, machine: Machine) -> Asked:
    decodes = np.all(np.equal(operator.size(sizes, "seq"), 1))
    words = ("batch", "seq", "groups", "ssm_heads", "state", "ssm_dim")
    shape = LinearShape(*(operator.size(sizes, word) for word in words))
    return Asked("gdn_recurrent" if decodes else "gdn_chunk", "bf16", shape)


@ask.register
def _(operator: Collective, sizes: Sizes, machine: Machine) -> Asked | None:
    """Measured inside one level of links; beyond it the roofline of the links."""
    size = machine.plan.group_size(operator.axes)
    spans = machine.platform.place(machine.plan.group(operator.axes))
    if len(spans) != 1 or operator.collective == "send":
        return None
    link = spans[0].level.link
    # groups of one chip, which arrays may have, are priced as two and then left out
    members = larger(size, 2)
    if operator.dealt and not link.through_host:  # no such kernel was measured through a host
        return _exchange(operator, sizes, members, link.bandwidth)
    nbytes = operator.inputs[0].nbytes(sizes)
    if operator.collective == "all_gather":
        nbytes = nbytes * size
    shape = CollectiveShape(nbytes, members, link.bandwidth, operator.collective, link.through_host)
    custom = None
    if operator.collective == "all_reduce" and np.all(np.less_equal(size, _NODE)):
        custom = Asked("custom_all_reduce", "bf16", shape)
    return Asked(operator.collective, "any", shape, instead=custom)


def _exchange(operator: Collective, sizes: Sizes, members: Number, link: Number) -> Asked:
    """Tokens to the chips of their experts, or back: a kernel that sends each once to a chip.

    The one for few tokens in a decode step (low latency), the one for many in a prefill (high
    throughput), as DeepEP has them.
    """
    dealt = operator.dealt or ("", "")
    rows, axes = dealt[0], set(operator.axes)
    leaves = bool(axes & {*operator.outputs[0].layout[rows]})
    here = operator.inputs[0] if leaves else operator.outputs[0]
    part = {dim: sizes.local(dim, split) for dim, split in here.layout.items()}
    topk, hidden = part.pop(rows), part.pop(here.dims[-1])
    tokens = product(part.values()) * imbalance(*routing(sizes, *dealt, operator.axes))
    mode = "ll" if np.all(np.equal(operator.size(sizes, "seq"), 1)) else "ht"
    form = {16: "bfloat16", 8: "fp8", 4: "nvfp4"}.get(int(here.format.bits), "bfloat16")
    shape = DispatchShape(tokens, hidden, topk, members, link, here.format.nbytes)
    return Asked("dispatch" if leaves else "combine", f"{mode}-{form}", shape)


def _holding(cost: Cost, chip: Chip) -> Cost:
    """The cost of a transfer, with what it holds of *chip* while it runs.

    What a chip sends it reads from its memory, and as much comes in and is written. Neither of
    the cores nor of the bandwidth it has more than half: two that want all share evenly.
    """
    rate = _READ_AND_WRITTEN * cost.sent / larger(cost.time, np.finfo(float).tiny)
    cores: Number = 0.0
    if chip.transfers is not None and chip.cores is not None:
        cores = chip.transfers.cores / chip.cores
    return replace(
        cost,
        holds_cores=smaller(cores, _FAIR),
        holds_bandwidth=smaller(rate / chip.memory_bandwidth, _FAIR),
    )


def _only_in_groups(cost: Cost) -> Cost:
    """The cost, and none where the group is one chip."""
    alone = np.less_equal(cost.group_size, 1)
    if not np.any(alone):
        return cost
    time, low, high = (where(alone, 0.0, value) for value in (cost.time, cost.low, cost.high))
    return replace(cost, time=time, low=low, high=high)


def _faster(one: Cost, other: Cost) -> Cost:
    """The cost of the faster kernel, point by point."""
    first = one.time <= other.time
    if np.ndim(first) == 0:
        return one if first else other
    time, limiter, low, high = (
        np.where(first, getattr(one, name), getattr(other, name))
        for name in ("time", "limiter", "low", "high")
    )
    return replace(one, time=time, limiter=limiter, low=low, high=high)


def _has_expert_rows(operator: Operator) -> bool:
    return any(dim.startswith("topk") for dim in operator.inputs[0].dims)


def _stream(operator: Operator, sizes: Sizes) -> Asked:
    """One pass over rows of the result: bytes read and written and FLOP per number."""
    out, work = operator.outputs[0], operator.work(sizes)
    count = out.numel(sizes)
    # a kernel's row is a token, however many heads it has
    columns = operator.size(
        sizes, *(dim for dim in out.dims if dim.partition(".")[0] not in _TOKENS)
    )
    each = (work.read / count, work.written / count, work.flop / count)
    return Asked(*_STREAM, StreamShape(count / columns, columns, *each))


def _product_format(operator: Einsum, machine: Machine) -> tuple[str, str] | None:
    """The fit's and the shape's word for a product's formats; None for wider than 16 bit.

    What the chip cannot multiply as narrow as it is stored, engines unpack to 16 bits.
    """
    inputs, weights = (tensor.format for tensor in operator.inputs[:2])
    if inputs.bits > 16:
        return None
    unpacked = inputs.bits < 8 and inputs.compute not in machine.platform.chip.matrix
    if inputs.bits == 16 or unpacked:
        narrow = {8: "w8a16", 4: "w4a16", 3: "w4a16"}.get(int(weights.bits))
        word = "w4a16_mxfp4" if weights.name == "mxfp4" else narrow or "bf16"
        return word, word
    word = _WORDS.get(weights.name, "fp8")
    # the quantiser of the input is an operator of its own
    alone = f"{word}_static" if word in ("fp8", "fp8_block", "nvfp4", "int8") else word
    return word, alone


def _look_up(book: Book, asked: Asked) -> tuple[Calibration, str] | None:
    dtype: str | None = asked.dtype
    while dtype is not None:
        fit = book.get((asked.kernel, dtype))
        if fit is not None:
            if not fit.provenance.startswith("measured"):
                return fit, "transferred"
            source = asked.alien or (dtype if dtype != asked.dtype else "")
            return fit, f"transferred from {source}" if source else "measured"
        dtype = _NEXT.get(dtype)
    return None


def _changed(kernel: Kernel, chip: KernelChip, shape: Any) -> tuple[Any, str]:
    """Where a chip, or a collective's link, is not what its name was measured with; the origin."""
    sold = _as_sold(chip.name)
    if sold is None:
        return False, "measured"
    link = kernel.over_links
    changed = shape.link_bandwidth != sold.link_bandwidth if link else chip.differs(sold)
    words = "other links" if link else "other figures"
    return changed, f"transferred from {words}" if np.any(changed) else "measured"


@cache
def _as_sold(name: str) -> KernelChip | None:
    """The chip of the catalogue; None for one of a file of its own."""
    return kernel_chip(load_chip(name)) if name in list_chips() else None


@cache
def _book(chip: str, kind: bool, own: bool) -> Book:
    """What was transferred to chips of a kind, completed by a chip's *own* measurements."""
    book = load_calibration(_CALIBRATIONS / TRANSFERS[kind], KERNELS)
    path = _CALIBRATIONS / f"{chip}.toml"
    if own and path.exists():
        book |= load_calibration(path, KERNELS)
    return book


def _plain(value: Any) -> Any:
    """A number for a NumPy scalar or an array without dimensions."""
    return value.item() if np.ndim(value) == 0 and hasattr(value, "item") else value
