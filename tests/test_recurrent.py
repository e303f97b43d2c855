"""Recurrences: their work against loops that count."""

import numpy as np
import pytest

from opgraph import Plan
from opgraph.graph import Block, Graph
from opgraph.operator import Operator
from opgraph.passes import shard
from opgraph.recurrent import (
    CausalConv,
    GatedDeltaRule,
    GatedNorm,
    LinearAttention,
    Rwkv7Rule,
    SelectiveScan,
    StateSpaceDual,
    TokenShift,
)
from opgraph.sizes import Sizes
from opgraph.tensor import Tensor

N, P, CHUNK = 6, 5, 4
HEADS = "batch seq ssm_heads"


class Products:
    """Matrix products that count what they take."""

    def __init__(self) -> None:
        self.flop = 0

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        self.flop += 2 * first.shape[0] * first.shape[1] * second.shape[1]
        return first @ second


def chunks(*streams: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    cuts = range(0, len(streams[0]), CHUNK)
    return [tuple(stream[at : at + CHUNK] for stream in streams) for at in cuts]


def unit_inverse(lower: np.ndarray) -> np.ndarray:
    return np.linalg.inv(np.eye(len(lower)) + lower)


def linear_step(state, v, k, q, decay):
    state = state * decay + np.outer(v, k)
    return state, state @ q


def linear_chunk(times: Products, state, v, k, q, decay):
    log = np.cumsum(np.log(decay))
    mask = np.tril(np.exp(log[:, None] - log[None, :]))
    out = times(times(q, k.T) * mask, v) + times(q, state.T) * np.exp(log)[:, None]
    tail = np.exp(log[-1] - log)[:, None]
    return np.exp(log[-1]) * state + times((v * tail).T, k), out


def delta_step(state, v, k, q, decay, beta):
    state = state * decay
    state = state + beta * np.outer(v - state @ k, k)
    return state, state @ q


def delta_chunk(times: Products, state, *streams):
    v, k, q, decay, beta = streams
    log = np.cumsum(np.log(decay))
    mask = np.tril(np.exp(log[:, None] - log[None, :]))
    inverse = unit_inverse(np.tril(times(beta[:, None] * k, k.T) * mask, -1))
    w = times(inverse, beta[:, None] * k * np.exp(log)[:, None])
    u = times(inverse, beta[:, None] * v) - times(w, state.T)
    out = times(q, state.T) * np.exp(log)[:, None] + times(times(q, k.T) * mask, u)
    tail = np.exp(log[-1] - log)[:, None]
    return np.exp(log[-1]) * state + times((u * tail).T, k), out


def rwkv_step(state, *streams):
    v, k, q, decay, kappa, b = streams
    state = state * decay - np.outer(state @ kappa, b) + np.outer(v, k)
    return state, state @ q


def rwkv_chunk(times: Products, state, *streams):
    v, k, q, decay, kappa, b = streams
    total = np.cumprod(decay, axis=0)
    before = total / decay
    seen, asked = kappa * before, q * total
    early = {name: np.tril(times(seen, (x / total).T), -1) for name, x in (("k", k), ("b", b))}
    late = {name: np.tril(times(asked, (x / total).T)) for name, x in (("k", k), ("b", b))}
    inverse = unit_inverse(early["b"])
    z = times(inverse, times(early["k"], v)) + times(times(inverse, seen), state.T)
    out = times(asked, state.T) + times(late["k"], v) - times(late["b"], z)
    last = total[-1]
    new = times(v.T, k / total * last) - times(z.T, b / total * last)
    return state * last + new, out


def random_streams(rule: str, seq: int) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(7)
    v, k, q = (random.normal(size=(seq, size)) for size in (P, N, N))
    scalar = random.uniform(0.6, 1.0, seq)
    match rule:
        case "linear":
            return v, k, q, scalar
        case "delta":
            return v, k / np.linalg.norm(k, axis=1)[:, None], q, scalar, random.uniform(size=seq)
    kappa = random.normal(size=(seq, N))
    kappa /= np.linalg.norm(kappa, axis=1)[:, None]
    return v, k, q, random.uniform(0.6, 1.0, (seq, N)), kappa, kappa * random.uniform(size=(seq, N))


RULES = {
    "linear": (linear_step, linear_chunk, LinearAttention),
    "ssd": (linear_step, linear_chunk, StateSpaceDual),
    "delta": (delta_step, delta_chunk, GatedDeltaRule),
    "rwkv": (rwkv_step, rwkv_chunk, Rwkv7Rule),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seq", [2, CHUNK, 3 * CHUNK])
def test_chunk_form_computes_the_recurrence_with_the_flop_we_count(rule, seq):
    step, chunk, kind = RULES[rule]
    given = random_streams("linear" if rule == "ssd" else rule, seq)
    state = np.zeros((P, N))
    expected = []
    for row in zip(*given, strict=True):
        state, out = step(state, *row)
        expected.append(out)
    times, found, carried = Products(), [], np.zeros((P, N))
    for part in chunks(*given):
        carried, out = chunk(times, carried, *part)
        found.append(out)
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-9)
    np.testing.assert_allclose(carried, state, atol=1e-9)

    operator, sizes = recurrence(kind), bind(seq=seq)
    width, counts = min(seq, CHUNK), kind.counts
    elementwise = (
        counts.per_key * seq * N
        + counts.per_value * seq * P
        + kind.FLOP_PER_PAIR * seq * width
        + 2 * N * P * seq / width
        + counts.solves * seq * width**2 / 3
        + gate_flop(operator, sizes)
    )
    assert operator.flop(sizes) == pytest.approx(times.flop + elementwise, rel=1e-12)


def activation(name: str, dims: str) -> Tensor:
    return Tensor.of(name, dims, "bf16")


def weight(name: str, dims: str) -> Tensor:
    return Tensor.of(name, dims, "bf16", "weight")


STATE = Tensor.of("state", "batch ssm_heads ssm_dim state", "fp32", "cache")


def recurrence(kind: type[LinearAttention]) -> LinearAttention:
    """Values, keys, queries and the gates of a kind, without weights."""
    values = activation("v", f"{HEADS} ssm_dim")
    keys, queries = (activation(name, f"{HEADS} state") for name in "kq")
    gates: tuple[Tensor, ...] = ()
    if kind is StateSpaceDual:
        keys, queries = (activation(name, "batch seq groups state") for name in "bc")
        gates = (activation("dt", HEADS),)
    elif kind is GatedDeltaRule:
        gates = (activation("alpha", HEADS), activation("beta", HEADS))
    elif kind is Rwkv7Rule:
        gates = tuple(activation(name, f"{HEADS} state") for name in "wa")
    return kind(name="rule", inputs=(values, keys, queries, *gates, STATE))


def gate_flop(operator: LinearAttention, sizes: Sizes) -> float:
    gates = operator.activations[3:]
    return operator.FLOP_PER_GATE * sum(gate.numel(sizes) for gate in gates)


def bind(**changes) -> Sizes:
    numbers = {
        "batch": 1, "seq": 1, "ssm_heads": 1, "ssm_dim": P, "groups": 1, "state": N,
        "chunk": CHUNK, "inner": 10, "taps": 4, "tail": 3, "model": 12,
    }  # fmt: skip
    return Sizes(numbers | changes)


@pytest.mark.parametrize("rule", RULES)
def test_one_token_is_a_state_update(rule):
    operator, sizes = recurrence(RULES[rule][2]), bind(ssm_heads=8, groups=8)
    small = operator.counts.per_key * N + operator.counts.per_value * P
    expected = 8 * (operator.counts.step * N * P + small) + gate_flop(operator, sizes)
    assert operator.flop(sizes) == expected


def test_selective_scan_equals_a_loop_that_counts():
    inner, state, seq = 10, N, 7
    flop = 0
    for _ in range(seq):
        for _ in range(inner):
            flop += 3 + 1  # softplus of Δ; Δ·x
            for _ in range(state):
                flop += 2 + 1 + 2 + 2  # exp(Δ·A); (Δx)·B; h·a + b; y + C·h
            flop += 2 + 4 + 1  # D·x and its sum; SiLU; its product
    assert selective_scan().flop(bind(seq=seq, inner=inner)) == flop


def selective_scan() -> SelectiveScan:
    wide = [activation(name, "batch seq inner") for name in ("x", "dt", "z")]
    narrow = [activation(name, "batch seq state") for name in "bc"]
    weights = [weight("A", "inner state"), weight("D", "inner")]
    state = Tensor.of("state", "batch inner state", "fp32", "cache")
    return SelectiveScan(name="scan", inputs=(*wide, *narrow, *weights, state))


def causal_conv() -> CausalConv:
    state = Tensor.of("state", "batch inner tail", "bf16", "cache")
    weights = weight("w", "inner taps"), weight("b", "inner")
    return CausalConv(name="conv", inputs=(activation("x", "batch seq inner"), *weights, state))


def test_bytes_are_those_of_streams_weights_and_state_once():
    batch, seq, inner, heads = 3, 5, 10, 4
    sizes = bind(batch=batch, seq=seq, inner=inner, ssm_heads=heads, groups=2)
    work = selective_scan().work(sizes)
    state = 4 * batch * inner * N
    assert work.read == 2 * batch * seq * (3 * inner + 2 * N) + 2 * inner * (N + 1) + state
    assert work.written == 2 * batch * seq * inner + state

    work = causal_conv().work(sizes)
    assert work.flop == (2 * 4 + 1 + 4) * batch * seq * inner
    assert work.read == 2 * (batch * seq * inner + inner * 4 + inner + batch * inner * 3)
    assert work.written == 2 * (batch * seq * inner + batch * inner * 3)

    work = recurrence(StateSpaceDual).work(sizes)
    state = 4 * batch * heads * P * N
    assert work.read == 2 * batch * seq * (heads * P + 2 * 2 * N + heads) + state
    assert work.written == 2 * batch * seq * heads * P + state


def test_token_shift_makes_a_mixture_for_each_weight():
    state = Tensor.of("last", "batch model", "bf16", "cache")
    weights = [weight(name, "model") for name in "abc"]
    shift = TokenShift(name="s", inputs=(activation("x", "batch seq model"), *weights, state))
    assert [t.name for t in shift.outputs] == ["s", "s.1", "s.2"]
    work = shift.work(bind(seq=5))
    assert work.flop == (1 + 2 * 3) * 5 * 12
    assert (work.read, work.written) == (2 * (5 + 3 + 1) * 12, 2 * (3 * 5 + 1) * 12)


def test_gated_norm_is_a_norm_and_a_gate():
    streams = (activation("y", f"{HEADS} ssm_dim"), activation("z", f"{HEADS} ssm_dim"))
    norm = GatedNorm(name="n", inputs=(*streams, weight("w", "ssm_dim")))
    assert norm.flop(bind(seq=3)) == (4 + 4 + 1) * 3 * P
    assert len(norm.outputs) == 1


OPERATORS = {rule: recurrence(kind) for rule, (_, _, kind) in RULES.items()}
OPERATORS |= {"scan": selective_scan(), "conv": causal_conv()}


@pytest.mark.parametrize("name", OPERATORS)
def test_work_is_linear_in_batch_and_in_whole_chunks(name):
    operator = OPERATORS[name]

    def flop(**changes) -> float:
        return operator.flop(bind(**changes))

    assert flop(batch=6, seq=8) == 6 * flop(seq=8)
    assert flop(seq=50 * CHUNK) == pytest.approx(50 * flop(seq=CHUNK))
    lengths = np.arange(1.0, 40.0)
    assert np.all(np.diff(flop(seq=lengths)) > 0)
    assert flop(seq=lengths) == pytest.approx([flop(seq=int(n)) for n in lengths])


@pytest.mark.parametrize("name", OPERATORS)
def test_the_context_does_not_matter(name):
    """No operator asks how long it is: sizes without a context suffice."""
    operator: Operator = OPERATORS[name]
    assert not any(dim.startswith("context") for t in operator.inputs for dim in t.dims)
    assert operator.work(bind()).moved > 0


@pytest.mark.parametrize("name", OPERATORS)
def test_tensor_parallelism_halves_the_work(name):
    graph = Graph("g", (Block("b", (OPERATORS[name],)),), OPERATORS[name].activations)
    plan = Plan(tp=2)
    numbers = dict(bind(seq=8, ssm_heads=4, groups=4).numbers)
    (alone,) = (op for op, _ in graph.operators)
    (half,) = (op for op, _ in shard(graph, plan).operators if op.stream == "compute")
    one, two = alone.flop(Sizes(numbers)), half.flop(plan.bind(numbers, {}))
    assert two == one / 2


def test_groups_share_their_kernels_in_a_state_space_only():
    sizes = {groups: bind(seq=8, ssm_heads=8, groups=groups) for groups in (1, 8)}
    shared, apart = (recurrence(StateSpaceDual).flop(sizes[groups]) for groups in (1, 8))
    assert apart - shared == 7 * 8 * CHUNK * 2 * N
