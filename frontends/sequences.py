"""What goes along a sequence: attention and recurrences, written as operators with their caches."""

from collections.abc import Mapping, Sequence
from functools import partial

from frontends.emission import Emit, Emitter, format_of
from frontends.program import Node
from opgraph.attention import AbsorbedAttention, Append, DecompressedAttention
from opgraph.encoding import UnmaskedAttention
from opgraph.operator import Attention, Einsum, Operator
from opgraph.recurrent import (
    CausalConv,
    GatedDeltaRule,
    LinearAttention,
    SelectiveScan,
    StateSpaceDual,
)
from opgraph.tensor import Tensor


def _attention(emitter: Emitter, node: Node) -> None:
    early = emitter.early
    name = emitter.scoped(node, "attention")
    crosses = any(v in early for v in node.inputs[1:3]) and node.output not in early
    if crosses:
        _cross_attention(emitter, node, name)
        return
    words = ("heads", "kv_heads", "kv_heads")
    query, key, value = (
        emitter.placed(v, word)
        for v, word in zip(node.inputs, words, strict=False)
        if v is not None
    )
    sinks = tuple(emitter.tensor(v) for v in node.inputs[4:5] if v is not None)
    emitter.writer.attends(_kind(node))
    if not node["causal"]:
        operator: Operator = UnmaskedAttention(name=name, inputs=(query, key, value))
    else:
        window = emitter.writer.dim("window", node["window"]) if node["window"] else None
        places = "context"
        if window:
            places = emitter.derive("context.window", f"min(context, {window})")
        caches = tuple(
            Tensor.of(
                f"{name}.{label}_cache",
                " ".join(("batch", places, *t.dims[-2:])),
                t.format,
                "cache",
            )
            for label, t in (("k", key), ("v", value))
        )
        operator = Attention(name=name, inputs=(query, key, value, *sinks, *caches), window=window)
    emitter.add(operator, node.output)


def _cross_attention(emitter: Emitter, node: Node, name: str) -> None:
    """Keys and values of what an encoder made: kept by the step that makes them."""
    query, *pair = (v for v in node.inputs[:3] if v is not None)
    shapes = [emitter.shaped(v, "kv_heads") for v in pair]
    caches = tuple(
        Tensor.of(f"{name}.{label}_cache", " ".join(dims), format_of(v), "cache")
        for label, dims, v in zip("kv", shapes, pair, strict=True)
    )
    made = () if emitter.decodes else tuple(emitter.placed(v, "kv_heads") for v in pair)
    inputs = (emitter.placed(query, "heads"), *made, *caches)
    emitter.add(UnmaskedAttention(name=name, inputs=inputs), node.output)


def _latent_attention(emitter: Emitter, node: Node) -> None:
    """In the latent space when decoding, with keys and values of every head in a prefill: as
    `frontends.LatentAttention` writes it.
    """
    writer = emitter.writer
    writer.attends("MLA")
    heads = ((0, "batch"), (2, "seq"), (1, "heads"), (3, "nope"))
    up = node.operand(4)
    parts = [emitter.formed(node.operand(i), heads) for i in (0, 1)]
    parts += [emitter.tensor(node.operand(i)) for i in (2, 3)]
    rank, rope = parts[2].dims[-1], parts[3].dims[-1]
    own = emitter.axis(emitter.dims.of[node.output][3], "value_dim")
    name = emitter.scoped(node, "attention")
    width = emitter.derive("latent", f"{rank} + {rope}")
    cache = Tensor.of(f"{name}.latent_cache", f"batch context {width}", parts[2].format, "cache")
    head, nope = parts[0].dims[2:]
    keys = Tensor.of(f"{up.name}.k", f"{head} {nope} {rank}", format_of(up), "weight")
    values = Tensor.of(f"{up.name}.v", f"{head} {rank} {own}", format_of(up), "weight")
    form = _absorbed if emitter.decodes else _decompressed
    form(emitter, node, parts, (keys, values, cache))


def _absorbed(
    emitter: Emitter, node: Node, parts: Sequence[Tensor], rest: Sequence[Tensor]
) -> None:
    (query, turned, latent, shared), (keys, values, cache) = parts, rest
    at, rank, name = " ".join(query.dims[:3]), latent.dims[-1], partial(emitter.scoped, node)
    pattern = f"{' '.join(query.dims)}, {' '.join(keys.dims)} -> {at} {rank}"
    (query,) = emitter.add(Einsum(name=name("k_up"), inputs=(query, keys), pattern=pattern))
    inputs = (query, turned, latent, shared, cache)
    (out,) = emitter.add(AbsorbedAttention(name=name("absorbed"), inputs=inputs))
    pattern = f"{' '.join(out.dims)}, {' '.join(values.dims)} -> {at} {values.dims[-1]}"
    emitter.add(Einsum(name=name("v_up"), inputs=(out, values), pattern=pattern), node.output)


def _decompressed(
    emitter: Emitter, node: Node, parts: Sequence[Tensor], rest: Sequence[Tensor]
) -> None:
    (query, turned, latent, shared), (keys, values, cache) = parts, rest
    name, head = partial(emitter.scoped, node), query.dims[2]
    latent, shared = emitter.add(Append(name=name("append"), inputs=(latent, shared, cache)))
    made: list[Tensor] = []
    for label, weight, out in (("k_up", keys, keys.dims[1]), ("v_up", values, values.dims[2])):
        result = f"batch context {head} {out}"
        pattern = f"{' '.join(latent.dims)}, {' '.join(weight.dims)} -> {result}"
        made += emitter.add(Einsum(name=name(label), inputs=(latent, weight), pattern=pattern))
    inputs = (query, turned, made[0], shared, made[1])
    emitter.add(DecompressedAttention(name=name("decompressed"), inputs=inputs), node.output)


def _kind(node: Node) -> str:
    heads, shared = (v.shape[1] for v in node.inputs[:2] if v is not None)
    kind = "MHA" if heads == shared else "MQA" if shared == 1 else "GQA"
    return f"local {kind}" if node["window"] else kind


def _scan(emitter: Emitter, node: Node) -> None:
    SCAN_RULES[node["kind"]](emitter, node)


def _convolve(emitter: Emitter, node: Node) -> None:
    x, weight, *bias = (v for v in node.inputs if v is not None)
    signal, taps = emitter.tensor(x), emitter.names(weight)[-1]
    emitter.writer.numbers.setdefault(taps, int(weight.shape[-1]))
    tail = emitter.derive("tail", f"{taps} - 1")
    name = emitter.scoped(node, "conv")
    weights = tuple(emitter.tensor(v) for v in (weight, *bias))
    channels = " ".join(dim for dim in signal.dims if dim not in ("batch", "seq"))
    state = Tensor.of(f"{name}.state", f"batch {channels} {tail}", signal.format, "cache")
    emitter.add(CausalConv(name=name, inputs=(signal, *weights, state)), node.output)


_KEYS = ((0, "batch"), (1, "seq"), (2, "groups"), (3, "state"))


_VALUES = ((0, "batch"), (1, "seq"), (2, "ssm_heads"), (3, "ssm_dim"))


_GATES = ((0, "batch"), (1, "seq"), (2, "ssm_heads"))


def _linear_attention(kind: type[LinearAttention], places: str, chunk: int) -> Emit:
    """A rule for a recurrence with matrix-valued states: *places* are those of values, keys,
    queries and gates among the inputs; what else there is are weights.
    """
    order = [int(place) for place in places]

    def rule(emitter: Emitter, node: Node) -> None:
        axes = (_VALUES, _KEYS, _KEYS, *[_GATES] * (len(order) - 3))
        given = [node.inputs[place] for place in order]
        parts = [emitter.formed(v, a) for v, a in zip(given, axes, strict=True) if v is not None]
        rest = [v for v in node.inputs if v is not None and v not in given]
        name = emitter.scoped(node, "scan")
        dims = " ".join((*parts[0].dims[:1], *parts[0].dims[2:], parts[1].dims[-1]))
        state = Tensor.of(f"{name}.state", dims, "fp32", "cache")
        emitter.writer.attends(kind.kind)
        operator = kind(
            name=name,
            inputs=(*parts, *(emitter.tensor(v) for v in rest), state),
            chunk=emitter.writer.dim("chunk", node["chunk"] or chunk),
        )
        (out,) = emitter.add(operator, node.output)
        names = emitter.names(node.output)
        if set(names) != set(out.dims):
            emitter.arranged(node.output, names)

    return rule


def _selective_scan(emitter: Emitter, node: Node) -> None:
    x, delta, a, b, c, d, z, *rest = node.inputs
    name = emitter.scoped(node, "scan")
    parts = tuple(emitter.tensor(v) for v in (x, delta, z, b, c, a, d, *rest) if v is not None)
    dims = f"batch {parts[5].dims[0]} {parts[5].dims[1]}"
    state = Tensor.of(f"{name}.state", dims, "fp32", "cache")
    emitter.writer.attends("selective_scan")
    emitter.add(SelectiveScan(name=name, inputs=(*parts, state)), node.output)


# the chunk that the kernels of flash-linear-attention use for delta rules
SCAN_RULES: dict[str, Emit] = {
    "conv": _convolve,
    "selective": _selective_scan,
    "ssd": _linear_attention(StateSpaceDual, "0341", 0),
    "delta": _linear_attention(GatedDeltaRule, "01234", 64),
}


SEQUENCES: Mapping[str, Emit] = {"attention": _attention, "mla": _latent_attention, "scan": _scan}
