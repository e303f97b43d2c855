"""Recurrences: operators whose memory of the earlier tokens is a state of fixed size.

A state is a cache without a context dimension, last among the inputs. A step reads and writes
it once per sequence, however long the context is. Over a prompt the work grows with its length.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from hardware import Number
from hardware.arithmetic import smaller, where
from opgraph.operator import Norm, Operator, Work
from opgraph.sizes import Sizes
from opgraph.tensor import Tensor

# exponential, sum, quotient, product: x·sigmoid(x)
SILU_FLOP = 4
# exponential, sum, logarithm
_SOFTPLUS_FLOP = 3


@dataclass(frozen=True, kw_only=True)
class Recurrent(Operator):
    """Reads every input once, writes its outputs and its states once; what lies between stays
    on the chip. The result is like the first input.

    The sequence is needed whole: what a token sees goes through the state of the one before.
    """

    whole = frozenset({"seq"})

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        first = self.inputs[0]
        return (self._make(self.name, first.dims, first.format),)

    def work(self, sizes: Sizes) -> Work:
        states = (tensor for tensor in self.inputs if tensor.role == "cache")
        return Work(
            self.flop(sizes),
            sum(tensor.nbytes(sizes) for tensor in self.inputs),
            sum(tensor.nbytes(sizes) for tensor in (*self.outputs, *states)),
        )


@dataclass(frozen=True, kw_only=True)
class CausalConv(Recurrent):
    """Causal convolution of each channel by itself, then SiLU (Gu & Dao 2023, section 3.4).

    Inputs are the activation, the weight (channels × taps), a bias if there is one, and the
    last taps − 1 inputs of each channel, which roll on.
    """

    kind = "causal_conv"

    def flop(self, sizes: Sizes) -> Number:
        biases = len(self.inputs) - len(("activation", "weight", "state"))
        taps = self.size(sizes, self.inputs[1].dims[-1])
        return (2 * taps + biases + SILU_FLOP) * self.outputs[0].numel(sizes)


@dataclass(frozen=True, kw_only=True)
class TokenShift(Recurrent):
    """Mixtures of each token with the one before it, one for each weight (Peng et al. 2023).

    Inputs are the activation, a weight per mixture, and the last token of the step before.
    """

    kind = "token_shift"

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        first = self.inputs[0]
        mixtures = range(1, len(self.inputs) - 2)
        names = (self.name, *(f"{self.name}.{index}" for index in mixtures))
        return tuple(self._make(name, first.dims, first.format) for name in names)

    def flop(self, sizes: Sizes) -> Number:
        # one difference for all, a product and a sum for each
        return (1 + 2 * len(self.outputs)) * self.inputs[0].numel(sizes)


@dataclass(frozen=True, kw_only=True)
class SelectiveScan(Recurrent):
    """The recurrence of Mamba-1: h ← exp(ΔA)·h + ΔB·x, y = C·h + D·x, times SiLU of a gate
    (Gu & Dao 2023, algorithm 2; the gate as in the reference kernel).

    Inputs are x, Δ and the gate (``… inner``), B and C (``… state``), the weights A and D, the
    state. Counted is the recurrence itself, not what a parallel scan does beyond it.
    """

    kind = "selective_scan"
    # Δ·A, its exponential, (Δx)·B, decay and sum of the state, product with C and its sum
    FLOP_PER_STATE: ClassVar[int] = 7
    # softplus of Δ; Δ·x; D·x and its sum; the gate and its product
    FLOP_PER_CHANNEL: ClassVar[int] = _SOFTPLUS_FLOP + 1 + 2 + SILU_FLOP + 1

    def flop(self, sizes: Sizes) -> Number:
        state = self.size(sizes, self.inputs[-1].dims[-1])
        each = self.FLOP_PER_STATE * state + self.FLOP_PER_CHANNEL
        return each * self.outputs[0].numel(sizes)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a linear recurrence over matrix-valued states takes, per sequence and head.

    With keys of n, values of p features and chunks of q tokens, a multiply–add as two FLOP:

    Attributes
    ----------
    step : FLOP per element (n·p) of the state to take in one token.
    keys, values : q×q×n and q×q×p products of a chunk.
    states : q×n×p products of a chunk.
    solves : inverses of unit triangular q×q matrices, q³/3 FLOP each (forward substitution:
        Golub & Van Loan 2013, section 3.1).
    per_key, per_value : elementwise FLOP for each element of the keys and of the values.
    """

    step: int
    keys: int
    values: int
    states: int
    solves: int = 0
    per_key: int = 0
    per_value: int = 0


@dataclass(frozen=True, kw_only=True)
class LinearAttention(Recurrent):
    """Attention without a softmax: S ← γS + v kᵀ, o = S q, with a constant decay γ of each head
    (lightning attention: Qin et al. 2024; MiniMax-01: Li et al. 2025).

    Inputs are values (``… heads p``), keys and queries (``… groups n``), gates, weights, the
    state (``… heads p n``). One token is a state update. More of them go chunk by chunk: inside
    a chunk of *chunk* tokens by products of whole q×q blocks, between chunks by the state; a
    last chunk that is not full counts by its share.
    """

    chunk: str = "chunk"

    kind = "linear_attention"
    unit = "matrix"
    # step: decay; product and sum of v kᵀ; product and sum of S q. Chunk: QKᵀ; its product with
    # V; KᵀV; Q S.
    counts: ClassVar[Counts] = Counts(step=5, keys=1, values=1, states=2)
    # whether the heads of a group share what is computed of its keys alone
    shares_keys: ClassVar[bool] = True
    # difference of the summed log decays, exponential, product: for each pair of a chunk
    FLOP_PER_PAIR: ClassVar[int] = 3
    # bias, softplus, product with the head's rate, exponential (Dao & Gu 2024, section 7)
    FLOP_PER_GATE: ClassVar[int] = 1 + _SOFTPLUS_FLOP + 1 + 1

    def shape(self, sizes: Sizes) -> dict[str, Number]:
        """``batch seq chunk heads groups key value`` on one chip; *chunk* at most *seq*."""
        values, keys = self.inputs[:2]
        seq = self.size(sizes, "seq")
        return {
            "batch": self.size(sizes, *values.dims[:-3]),
            "seq": seq,
            "chunk": smaller(sizes[self.chunk], seq),
            "heads": self.size(sizes, values.dims[-2]),
            "groups": self.size(sizes, keys.dims[-2]),
            "key": self.size(sizes, keys.dims[-1]),
            "value": self.size(sizes, values.dims[-1]),
        }

    def flop(self, sizes: Sizes) -> Number:
        values, keys, _, *gates = self.activations
        shape = self.shape(sizes)
        tokens = shape["batch"] * shape["seq"]
        elementwise = (
            self.counts.per_key * keys.numel(sizes)
            + self.counts.per_value * values.numel(sizes)
            + self.FLOP_PER_GATE * sum(gate.numel(sizes) for gate in gates)
        )
        each: Number = where(shape["seq"] == 1, self._step(shape), self._chunked(shape))
        return tokens * each + elementwise

    def _step(self, shape: dict[str, Number]) -> Number:
        """FLOP to take in one token by updating the state."""
        return self.counts.step * shape["heads"] * shape["key"] * shape["value"]

    def _chunked(self, shape: dict[str, Number]) -> Number:
        """FLOP per token inside a chunk of q tokens and for the state that it hands on."""
        counts, heads, chunk = self.counts, shape["heads"], shape["chunk"]
        state = shape["key"] * shape["value"]
        kernels = 2 * counts.keys * (shape["groups"] if self.shares_keys else heads) * shape["key"]
        pairs = kernels + heads * (2 * counts.values * shape["value"] + self.FLOP_PER_PAIR)
        # the state's decay and sum: once a chunk
        states = 2 * counts.states * state + 2 * state / chunk
        # q³/3 a chunk
        solves = counts.solves * chunk * chunk / 3
        return chunk * pairs + heads * (states + solves)


@dataclass(frozen=True, kw_only=True)
class StateSpaceDual(LinearAttention):
    """The recurrence of Mamba-2: h ← exp(ΔA)·h + Δx Bᵀ, y = h C + D·x, with one A per head.

    Values are x, keys B and queries C; gate Δ; weights A, D and the bias of Δ. Its chunk form
    is the block decomposition of Dao & Gu 2024, section 6: three batched products for the
    diagonal blocks (C Bᵀ once per group), one for the states, one for the outputs.
    """

    kind = "ssd"
    # per value: Δ·x; D·x and its sum
    counts: ClassVar[Counts] = Counts(step=5, keys=1, values=1, states=2, per_value=3)


@dataclass(frozen=True, kw_only=True)
class GatedDeltaRule(LinearAttention):
    """S ← S·diag(α)(I − β k kᵀ) + β v kᵀ, o = S q (Yang, Kautz & Hatamizadeh 2025).

    Gates are α and β; α has one entry per head, or one per key feature (Kimi delta attention:
    Kimi Team 2025). The chunk form is that of Yang et al. 2024, section 3: with
    T = (I + tril(β K Kᵀ))⁻¹, W = T β K and U = T β V − W S, outputs Q S + (Q Kᵀ) U, next state
    S + Kᵀ U. Queries and keys are normalised.
    """

    kind = "delta_rule"
    # step: decay; S k; rank-1 update; S q (two FLOP each). Chunk: K Kᵀ, W, Q Kᵀ; T V, (Q Kᵀ) U;
    # W S, Q S, Kᵀ U. Per key: norm of q and k (square, sum, scale), β k. Per value: β v, − W S.
    counts: ClassVar[Counts] = Counts(
        step=7, keys=3, values=2, states=3, solves=1, per_key=7, per_value=2
    )
    shares_keys: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Rwkv7Rule(LinearAttention):
    """S ← S(diag(w) − κ̂ (a∘κ̂)ᵀ) + v kᵀ, o = S r, and the bonus (r·(ρ∘k)) v (Peng et al. 2025,
    section 4).

    Values are v, keys k and queries r; gates w and a; weights those of κ, of k's decay by a, and
    ρ. The chunk form is that of a diagonal plus low-rank transition (Yang et al. 2024, section
    3; flash-linear-attention's ``dplr``): four q×q kernels (κ̂ and r with a∘κ̂ and k).
    """

    kind = "rwkv7"
    # step: decay; S κ̂; two rank-1 updates; S r. Chunk: four kernels, T κ̂; kernel·V, T·, two
    # kernels·values; W S, r S, Kᵀ V, (a∘κ̂)ᵀ U. Per key: κ and its norm (1 + 3), a∘κ̂ (1), k's
    # decay (difference, product, sum, product), bonus (two products and a sum). Per value: the
    # bonus' product and sum.
    counts: ClassVar[Counts] = Counts(
        step=9, keys=5, values=4, states=4, solves=1, per_key=12, per_value=2
    )
    shares_keys: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class GatedNorm(Norm):
    """Normalisation with a SiLU or sigmoid gate fused into it: of a recurrence's result.

    Inputs are the activation, the gate, weight and bias. It is over each head or group by itself,
    whatever the weight's dimensions; a norm that spans all heads says so in *over*.
    """

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        first = self.inputs[0]
        return (self._make(self.name, first.dims, first.format),)

    @property
    def statistics(self) -> tuple[str, ...]:
        return tuple(self.over.split()) or self.inputs[0].dims[-1:]

    def flop(self, sizes: Sizes) -> Number:
        return super().flop(sizes) + SILU_FLOP * self.outputs[0].numel(sizes)
