"""Attention and rotary positions in ONNX: the standard's operators and those of ONNX Runtime.

All come down to queries, keys and values per head, the cache joined before the keys. Tables of
cosines and sines are left out: their traffic is nothing beside that of what they turn.
https://onnx.ai/onnx/operators/onnx__Attention.html,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from collections.abc import Sequence
from typing import Any

from frontends.onnx.call import Call
from frontends.program import Size, Value

_HEADS_FIRST = (0, 2, 1, 3)


def standard(call: Call) -> list[Value | None]:
    """Attention: with a cache beside it, or one in the keys already."""
    q, k, v = (call[i] for i in range(3))
    heads = call.attribute("q_num_heads") or (q.shape[1] if q.rank == 4 else 0)
    kv_heads = call.attribute("kv_num_heads") or (k.shape[1] if k.rank == 4 else 0)
    query = _per_head(call, q, heads)
    made, *present = _attend(
        call,
        (query, _per_head(call, k, kv_heads), _per_head(call, v, kv_heads)),
        past=(call.get(4), call.get(5)),
        beside=(call.get(3), None),
        causal=bool(call.attribute("is_causal", 0)),
    )
    return [made if q.rank == 4 else _flat(call, made), *present, None]


def grouped_query(call: Call) -> list[Value | None]:
    """GroupQueryAttention: causal, with its own rotary positions if asked, packed or not."""
    heads, kv_heads = call.needs("num_heads"), call.needs("kv_num_heads")
    query, key, value = _unpacked(call, heads, kv_heads)
    query, key, value = (
        _per_head(call, x, n)
        for x, n in zip((query, key, value), (heads, kv_heads, kv_heads), strict=True)
    )
    if call.attribute("do_rotary", 0):
        tables = [table for table in (call.get(7), call.get(8)) if table is not None]
        share = _turning(call, query.shape[-1], tables)
        query, key = (call.program.rotary(x, share=share) for x in (query, key))
    made, *present = _attend(
        call,
        (query, key, value),
        past=(call.get(3), call.get(4)),
        beside=(call.get(10), call.get(11)),
        causal=True,
        window=max(0, call.attribute("local_window_size", -1)),
    )
    return [_flat(call, made), *present, None]


def multi_head(call: Call) -> list[Value | None]:
    """MultiHeadAttention: keys and values apart, packed with the queries, or of a source."""
    heads = call.needs("num_heads")
    query, key, value = call[0], call.get(1), call.get(2)
    bias = call.get(3)
    if query.rank == 5:
        parts = [_part(call, query, 3, i) for i in range(3)]
    elif key is not None and key.rank == 5:
        parts = [query, *(_part(call, key, 3, i) for i in range(2))]
    elif key is None or value is None:
        raise call.refuse("keys or values are missing")
    else:
        parts = [query, key, value]
    if bias is not None:
        parts = _biased(call, parts, bias)
    query, key, value = (_per_head(call, x, heads) for x in parts)
    made, *present = _attend(
        call,
        (query, key, value),
        past=(call.get(6), call.get(7)),
        beside=(call.get(5), None),
        causal=bool(call.attribute("unidirectional", 0)),
    )
    return [_flat(call, made), *present, None]


def whole(call: Call) -> list[Value | None]:
    """ONNX Runtime's own Attention, and QAttention: the projection of the input is part of it."""
    quantized = call.op == "QAttention"
    x, weight, bias = call[0], call[1], call.get(2)
    mask, past = (call.get(5), call.get(8)) if quantized else (call.get(5), call.get(4))
    heads = call.needs("num_heads")
    packed = call.matmul(x, weight, dtype=call[3].dtype if quantized else None)
    if bias is not None:
        packed = call.elementwise("add", packed, bias)
    widths = call.attribute("qkv_hidden_sizes") or [call.quotient(weight.shape[-1], 3)] * 3
    query, key, value = (_per_head(call, part, heads) for part in _cut(call, packed, widths))
    before: tuple[Value | None, Value | None] = (None, None)
    if past is not None:
        before = (_part(call, past, 0, 0), _part(call, past, 0, 1))
    made, *present = _attend(
        call,
        (query, key, value),
        past=before,
        beside=(None if quantized else mask, None),
        causal=bool(call.attribute("unidirectional", 0)),
    )
    return [_flat(call, made), _stacked(call, present) if call.made > 1 else None]


def standard_rotary(call: Call) -> Value:
    """RotaryEmbedding of the standard: input, cosines, sines, positions."""
    return _rotary(call, [call[1], call[2]])


def contrib_rotary(call: Call) -> Value:
    """RotaryEmbedding of ONNX Runtime: input, positions, cosines, sines."""
    return _rotary(call, [call[2], call[3]])


def _rotary(call: Call, tables: Sequence[Value]) -> Value:
    x = call[0]
    if x.rank == 4:
        return call.program.rotary(x, share=_turning(call, x.shape[-1], tables))
    turned = call.attribute("rotary_embedding_dim", 0)
    heads = call.attribute("num_heads", 0)
    width = 2 * tables[0].shape[-1]
    heads = heads or call.quotient(x.shape[-1], width)
    if turned and not call.attribute("num_heads", 0):
        raise call.refuse("rotary_embedding_dim is given without num_heads")
    each = call.quotient(x.shape[-1], heads)
    apart = call.program.reshape(x, (*x.shape[:-1], heads, each))
    made = call.program.rotary(apart, share=_turning(call, each, tables))
    return call.program.reshape(made, x.shape)


def _turning(call: Call, head_dim: Size, tables: Sequence[Value]) -> float:
    """The part of each head that turns: a table has an angle for each two of its numbers."""
    turned = call.attribute("rotary_embedding_dim", 0)
    if not turned and tables and isinstance(tables[0].shape[-1], int):
        turned = 2 * tables[0].shape[-1]
    if not isinstance(head_dim, int) or not turned:
        return 1.0
    if turned > head_dim:
        raise call.refuse(f"{turned} of {head_dim} numbers of a head turn")
    return float(turned / head_dim)


def _attend(
    call: Call,
    operands: tuple[Value, Value, Value],
    past: tuple[Value | None, Value | None] = (None, None),
    beside: tuple[Value | None, Value | None] = (None, None),
    **kind: Any,
) -> list[Value | None]:
    """What attention makes, and the keys and values that are kept.

    *operands*: queries, keys, values per head; *beside*: mask and sinks; *kind*: causal, window.
    """
    query, key, value = operands
    call.shaped(key, (query.shape[0], None, None, query.shape[-1]), "the keys")
    call.shaped(value, (query.shape[0], key.shape[1], key.shape[2], None), "the values")
    present = [_joined(call, old, new) for old, new in zip(past, (key, value), strict=True)]
    call.quotient(query.shape[1], key.shape[1])
    made = call.program.attention(query, *present, *beside, **kind)
    return [made, *present]


def _joined(call: Call, old: Value | None, new: Value) -> Value:
    """The cache and what is new."""
    if old is None or old.shape[2:3] == (0,):
        return new
    call.shaped(old, (new.shape[0], new.shape[1], None, new.shape[3]), "the cache")
    return call.program.concat([old, new], 2)


def _per_head(call: Call, x: Value, heads: int) -> Value:
    """``batch heads tokens head_dim``, of a value with all heads side by side or apart already."""
    if x.rank == 4:
        return x
    if x.rank != 3 or not heads:
        raise call.refuse(f"{x.shape} is not split into {heads or '?'} heads")
    shape = (*x.shape[:2], heads, call.quotient(x.shape[2], heads))
    return call.program.transpose(call.program.reshape(x, shape), _HEADS_FIRST)


def _flat(call: Call, x: Value | None) -> Value:
    """``batch tokens width``, heads side by side."""
    if x is None:
        raise call.refuse("its result is missing")
    turned = call.program.transpose(x, _HEADS_FIRST)
    return call.program.reshape(turned, (*turned.shape[:2], turned.shape[2] * turned.shape[3]))


def _unpacked(call: Call, heads: int, kv_heads: int) -> Sequence[Value]:
    """Queries, keys and values, of inputs of their own or of one that holds them all."""
    query, key, value = call[0], call.get(1), call.get(2)
    if key is not None and value is not None:
        return query, key, value
    each = call.quotient(query.shape[-1], heads + 2 * kv_heads)
    return _cut(call, query, [each * heads, each * kv_heads, each * kv_heads])


def _cut(call: Call, x: Value, widths: Sequence[Size]) -> list[Value]:
    call.same(sum(widths), x.shape[-1], "the widths of queries, keys and values")
    parts, start = [], 0
    for width in widths:
        parts.append(call.program.slice(x, -1, start, start + width))
        start += width
    return parts


def _part(call: Call, x: Value, axis: int, index: int) -> Value:
    """Entry *index* of an axis, without the axis."""
    part = call.program.slice(x, axis, index, index + 1)
    return call.program.reshape(part, (*x.shape[:axis], *x.shape[axis + 1 :]))


def _biased(call: Call, parts: Sequence[Value], bias: Value) -> list[Value]:
    """Queries, keys and values with their part of the bias, heads side by side."""
    if any(part.rank != 3 for part in parts):
        raise call.refuse("a bias for packed heads")
    start, made = 0, []
    for part in parts:
        width = part.shape[-1]
        made.append(
            call.elementwise("add", part, call.program.slice(bias, 0, start, start + width))
        )
        start += width
    return made


def _stacked(call: Call, present: Sequence[Value | None]) -> Value:
    """Keys and values one after the other on a new first axis."""
    apart = [call.program.reshape(x, (1, *x.shape)) for x in present if x is not None]
    return call.program.concat(apart, 0)
