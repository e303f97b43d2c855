"""Mixers with a state instead of a KV cache: Mamba, delta rules, RWKV, lightning attention.

What engines keep in 32 bits is so by default: the state of a recurrence, which sums over all
tokens (SGLang's ``mamba_ssm_dtype``, the ``mamba_ssm_cache_dtype`` of Nemotron-H's configs). The
rolling inputs of a convolution are in the activations' format.
"""

from dataclasses import dataclass
from typing import Literal

from frontends.channels import FeedForward
from frontends.writer import Part, Writer
from hardware import SpecError
from opgraph.operator import View
from opgraph.recurrent import (
    SILU_FLOP,
    CausalConv,
    GatedDeltaRule,
    GatedNorm,
    LinearAttention,
    Rwkv7Rule,
    SelectiveScan,
    StateSpaceDual,
    TokenShift,
)
from opgraph.tensor import Tensor

# what the kernels of flash-linear-attention use for delta rules and RWKV-7
_CHUNK = 64
_HEADS = "ssm_heads ssm_dim"
# values, keys and queries: of groups of heads, of each head
_CONV = "ssm_heads*ssm_dim + 2*groups*state"
_QKV = "ssm_heads*ssm_dim + 2*ssm_heads*state"
# exponential, sum, quotient
_SIGMOID_FLOP = 3
# Δ, its product with another, and the sum: x + (y − x)·s
_LERP_FLOP = 3


@dataclass(frozen=True, kw_only=True)
class Mamba1:
    """A selective state space (Gu & Dao 2023): *inner* channels with *state* entries each.

    *norm*: Δ, B and C are normalised, ``weighted`` (Jamba) or ``plain`` (Falcon-Mamba).
    """

    inner: int
    state: int
    rank: int
    taps: int
    norm: Literal["", "weighted", "plain"] = ""
    bias: bool = False
    conv_bias: bool = True
    state_dtype: str = "fp32"

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Project, convolve, scan with what the input selects, project back."""
        writer.attends("Mamba-1")
        _name(writer, inner=self.inner, state=self.state, rank=self.rank)
        wide = writer.derive("ssm_in", "2*inner")
        mixed = _project(writer, "in", x, wide, self.bias)
        signal, gate = _split(writer, "split", mixed, x="inner", z="inner")
        signal = _convolve(writer, signal, self.taps, self.conv_bias)
        selected = _project(writer, "select", signal, writer.derive("selected", "rank + 2*state"))
        parts = _split(writer, "selection", selected, dt="rank", b="state", c="state")
        delta, b, c = (self._norm(writer, part) for part in parts)
        delta = _project(writer, "dt", delta, "inner", bias=True)
        weights = (writer.weight("A_log", "inner state"), writer.weight("D", "inner"))
        state = _state(writer, "inner state", self.state_dtype)
        inputs = (signal, delta, gate, b, c, *weights, state)
        scanned = writer.add(SelectiveScan(name=f"{writer.prefix}scan", inputs=inputs))
        return _project(writer, "out", scanned, "model", self.bias)

    def _norm(self, writer: Writer, x: Tensor) -> Tensor:
        if not self.norm:
            return x
        name = f"{x.name.rpartition('.')[2]}_norm"
        return writer.norm(name, x, dim=x.dims[-1] if self.norm == "weighted" else "")[0]


@dataclass(frozen=True, kw_only=True)
class Mamba2:
    """A state space with one decay per head (Dao & Gu 2024): *heads* of *dim*, keys in *groups*.

    *norm*: the result is normalised with the gate, else only multiplied by it.
    """

    heads: int
    dim: int
    state: int
    groups: int
    taps: int
    chunk: int
    bias: bool = False
    conv_bias: bool = True
    norm: bool = True
    state_dtype: str = "fp32"

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Project, convolve, scan, normalise and gate, project back."""
        writer.attends("Mamba-2")
        _name(
            writer,
            ssm_heads=self.heads,
            ssm_dim=self.dim,
            groups=self.groups,
            state=self.state,
        )
        conv = writer.derive("ssm_conv", _CONV)
        wide = writer.derive("ssm_in", f"{_CONV} + ssm_heads*ssm_dim + ssm_heads")
        mixed = _project(writer, "in", x, wide, self.bias)
        gate, signal, delta = _split(writer, "split", mixed, z=_HEADS, x=conv, dt="ssm_heads")
        signal = _convolve(writer, signal, self.taps, self.conv_bias)
        parts = _split(writer, "signal", signal, x=_HEADS, b="groups state", c="groups state")
        weights = (writer.weight(name, "ssm_heads") for name in ("A_log", "D", "dt_bias"))
        state = _state(writer, f"{_HEADS} state", self.state_dtype)
        scan = StateSpaceDual(
            name=f"{writer.prefix}scan",
            inputs=(*parts, delta, *weights, state),
            chunk=writer.dim("chunk", self.chunk, "ssm"),
        )
        scanned = writer.add(scan)
        if self.norm:
            gated = _gated_norm(writer, scanned, gate, _HEADS)
        else:
            gated = writer.elementwise("gate", scanned, gate, flop=SILU_FLOP + 1)
        return _project(writer, "out", gated, "model", self.bias)


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNet:
    """The gated delta rule of Qwen3-Next (Yang, Kautz & Hatamizadeh 2025).

    *groups* heads of keys and queries of *state* features, *heads* of values of *dim*.
    """

    heads: int
    dim: int
    groups: int
    state: int
    taps: int
    state_dtype: str = "fp32"

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Project, convolve, apply the rule, normalise and gate, project back."""
        writer.attends("gated DeltaNet")
        _name(
            writer,
            ssm_heads=self.heads,
            ssm_dim=self.dim,
            groups=self.groups,
            state=self.state,
        )
        conv = writer.derive("ssm_conv", _CONV)
        wide = writer.derive("ssm_in", f"{_CONV} + ssm_heads*ssm_dim + 2*ssm_heads")
        mixed = _project(writer, "in", x, wide)
        signal, gate, beta, alpha = _split(
            writer, "split", mixed, qkv=conv, z=_HEADS, b="ssm_heads", a="ssm_heads"
        )
        signal = _convolve(writer, signal, self.taps, bias=False)
        parts = _split(writer, "signal", signal, v=_HEADS, k="groups state", q="groups state")
        weights = (writer.weight(name, "ssm_heads") for name in ("A_log", "dt_bias"))
        state = _state(writer, f"{_HEADS} state", self.state_dtype)
        rule = GatedDeltaRule(
            name=f"{writer.prefix}delta_rule",
            inputs=(*parts, alpha, beta, *weights, state),
            chunk=writer.dim("chunk", _CHUNK, "delta"),
        )
        gated = _gated_norm(writer, writer.add(rule), gate, "ssm_dim")
        return _project(writer, "out", gated, "model")


@dataclass(frozen=True, kw_only=True)
class KimiDelta:
    """Kimi delta attention: a delta rule with a decay for each key feature (Kimi Team 2025).

    Decays and output gate are projections of rank *dim*; with *full_gate* the gate's is whole.
    """

    heads: int
    dim: int
    taps: int
    full_gate: bool = False
    state_dtype: str = "fp32"

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Project, convolve, apply the rule, normalise and gate, project back."""
        writer.attends("Kimi delta")
        _name(writer, ssm_heads=self.heads, ssm_dim=self.dim, state=self.dim)
        rank = writer.dim("rank", self.dim, "gate")
        conv, before = writer.derive("ssm_conv", _QKV), _HEADS if self.full_gate else rank
        columns = "*".join(before.split())
        wide = writer.derive("ssm_in", f"{_QKV} + ssm_heads + {rank} + {columns}")
        mixed = _project(writer, "in", x, wide)
        signal, beta, decay, gate = _split(
            writer, "split", mixed, qkv=conv, b="ssm_heads", f=rank, g=before
        )
        signal = _convolve(writer, signal, self.taps, bias=False)
        keys = "ssm_heads state"
        parts = _split(writer, "signal", signal, v=_HEADS, k=keys, q=keys)
        alpha = _project(writer, "decay", decay, keys)
        gate = gate if self.full_gate else _project(writer, "gate", gate, _HEADS)
        weights = (writer.weight("A_log", "ssm_heads"), writer.weight("dt_bias", keys))
        state = _state(writer, f"{_HEADS} state", self.state_dtype)
        rule = GatedDeltaRule(
            name=f"{writer.prefix}delta_rule",
            inputs=(*parts, alpha, beta, *weights, state),
            chunk=writer.dim("chunk", _CHUNK, "delta"),
        )
        gated = _gated_norm(writer, writer.add(rule), gate, "ssm_dim")
        return _project(writer, "out", gated, "model")


@dataclass(frozen=True, kw_only=True)
class LightningAttention:
    """Linear attention with a fixed decay per head and an output gate (Li et al. 2025)."""

    heads: int
    dim: int
    chunk: int
    state_dtype: str = "fp32"

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Project, activate, attend, normalise and gate, project back."""
        writer.attends("lightning")
        _name(writer, ssm_heads=self.heads, ssm_dim=self.dim, state=self.dim)
        qkv = writer.derive("ssm_qkv", _QKV)
        wide = writer.derive("ssm_in", f"{_QKV} + ssm_heads*ssm_dim")
        mixed = _project(writer, "in", x, wide)
        signal, gate = _split(writer, "split", mixed, qkv=qkv, z=_HEADS)
        signal = writer.elementwise("qkv_activation", signal, flop=SILU_FLOP)
        keys = "ssm_heads state"
        parts = _split(writer, "signal", signal, v=_HEADS, k=keys, q=keys)
        attend = LinearAttention(
            name=f"{writer.prefix}linear_attention",
            inputs=(*parts, _state(writer, f"{_HEADS} state", self.state_dtype)),
            chunk=writer.dim("chunk", self.chunk, "lightning"),
        )
        gated = _gated_norm(writer, writer.add(attend), gate, _HEADS)
        return _project(writer, "out", gated, "model")


@dataclass(frozen=True, kw_only=True)
class Rwkv7:
    """The time mix of RWKV-7 (Peng et al. 2025): a delta rule with everything from low ranks.

    *decay_rank a_rank gate_rank value_rank*: of the projections of decay, in-context learning
    rate, gate and value residual. *first_values*: the tensor of the first layer's values, which
    the later ones mix in; empty in the first.
    """

    heads: int
    dim: int
    decay_rank: int
    a_rank: int
    gate_rank: int
    value_rank: int
    first_values: str = ""
    state_dtype: str = "fp32"

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Shift, project, apply the rule, normalise and gate, project back."""
        writer.attends("RWKV-7")
        _name(writer, ssm_heads=self.heads, ssm_dim=self.dim, state=self.dim)
        keys = "ssm_heads state"
        r, w, k, v, a, g = _shift(writer, x, "r w k v a g")
        query, key = _project(writer, "r", r, keys), _project(writer, "k", k, keys)
        value = self._values(writer, v)
        decay = self._low_rank(writer, "decay", w, self.decay_rank, keys)
        rate = self._low_rank(writer, "a", a, self.a_rank, keys)
        gate = self._low_rank(writer, "gate", g, self.gate_rank, _HEADS)
        weights = (writer.weight(name, keys) for name in ("k_k", "k_a", "r_k"))
        state = _state(writer, f"{_HEADS} state", self.state_dtype)
        rule = Rwkv7Rule(
            name=f"{writer.prefix}rule",
            inputs=(value, key, query, decay, rate, *weights, state),
            chunk=writer.dim("chunk", _CHUNK, "rwkv"),
        )
        gated = _gated_norm(writer, writer.add(rule), gate, _HEADS, bias=True)
        return _project(writer, "out", gated, "model")

    def _values(self, writer: Writer, x: Tensor) -> Tensor:
        value = _project(writer, "v", x, _HEADS)
        if not self.first_values:
            return value
        share = self._low_rank(writer, "value", x, self.value_rank, _HEADS)
        first = Tensor(self.first_values, value.dims, value.format)
        return writer.elementwise("value_mix", value, first, share, flop=_SIGMOID_FLOP + _LERP_FLOP)

    def _low_rank(self, writer: Writer, name: str, x: Tensor, size: int, dims: str) -> Tensor:
        rank = writer.dim("rank", size, name)
        low = _project(writer, f"{name}_down", x, rank)
        if name in ("decay", "gate"):
            low = writer.elementwise(f"{name}_activation", low, flop=SILU_FLOP)
        return _project(writer, f"{name}_up", low, dims, bias=name != "gate")


@dataclass(frozen=True, kw_only=True)
class Rwkv7Channel:
    """The channel mix of RWKV: a feed-forward network on each token mixed with the last one."""

    ffn: int

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Shift, project up, square, project down."""
        (mixed,) = _shift(writer, x, "channel")
        return FeedForward(ffn=self.ffn, gated=False).write(writer, mixed)


@dataclass(frozen=True, kw_only=True)
class Together:
    """Mixers of one input side by side, added up (Falcon-H1: Zuo et al. 2025)."""

    parts: tuple[Part, ...]

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """The sum of the results."""
        outer = writer.prefix
        results = []
        for index, part in enumerate(self.parts):
            writer.prefix = f"{outer}mixer{index}."
            results.append(part.write(writer, x))
        writer.prefix = outer
        return writer.sum("mixers_sum", *results)


def _name(writer: Writer, **sizes: int) -> None:
    """The dimensions of a state: all that a model has are alike."""
    for word, size in sizes.items():
        if writer.dim(word, size) != word:
            raise SpecError(
                f"{writer.build.name}: {word} is {size} in one layer with a state and "
                f"{writer.numbers[word]} in another"
            )


def _project(writer: Writer, name: str, x: Tensor, dims: str, bias: bool = False) -> Tensor:
    """A projection of all features of *x* to *dims*."""
    features = " ".join(x.dims[2:])
    pattern = f"batch seq {features}, {features} {dims} -> batch seq {dims}"
    return writer.linear(name, x, pattern, "attention", bias)


def _split(writer: Writer, name: str, x: Tensor, /, **parts: str) -> tuple[Tensor, ...]:
    """*x* in parts: suffix and features of each."""
    dims = tuple((suffix, f"batch seq {features}") for suffix, features in parts.items())
    return writer.build.add(View(name=writer.prefix + name, inputs=(x,), parts=dims))


def _convolve(writer: Writer, x: Tensor, taps: int, bias: bool) -> Tensor:
    channels, word = x.dims[-1], writer.dim("taps", taps, "conv")
    tail = writer.derive("tail", f"{word} - 1")
    inputs = [x, writer.weight("conv.weight", f"{channels} {word}")]
    if bias:
        inputs.append(writer.weight("conv.bias", channels))
    dtype = writer.precision.activations
    inputs.append(
        Tensor.of(f"{writer.prefix}conv_state", f"batch {channels} {tail}", dtype, "cache")
    )
    return writer.add(CausalConv(name=f"{writer.prefix}conv", inputs=tuple(inputs)))


def _shift(writer: Writer, x: Tensor, names: str) -> tuple[Tensor, ...]:
    """A mixture of *x* with the token before for each of *names*."""
    kind = "channel_shift" if names == "channel" else "shift"
    weights = (writer.weight(f"{kind}.{name}", "model") for name in names.split())
    dtype = writer.precision.activations
    state = Tensor.of(f"{writer.prefix}{kind}_state", "batch model", dtype, "cache")
    return writer.build.add(TokenShift(name=writer.prefix + kind, inputs=(x, *weights, state)))


def _gated_norm(writer: Writer, x: Tensor, gate: Tensor, dims: str, bias: bool = False) -> Tensor:
    inputs = [x, gate, writer.weight("gated_norm.weight", dims)]
    if bias:
        inputs.append(writer.weight("gated_norm.bias", dims))
    return writer.add(GatedNorm(name=f"{writer.prefix}gated_norm", inputs=tuple(inputs)))


def _state(writer: Writer, dims: str, dtype: str) -> Tensor:
    return Tensor.of(f"{writer.prefix}state", f"batch {dims}", dtype, "cache")
