"""Operators: the promises that every one keeps, and what each costs against brute force."""

import importlib
import itertools
import math
import pickle
import pkgutil
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import opgraph
from frontends import load_model
from hardware import SpecError, load_platform
from opgraph.cost import Machine, Roofline
from opgraph.experts import AdapterEinsum
from opgraph.graph import Block, Builder, Graph, GraphError
from opgraph.model import Model
from opgraph.offload import Fetch
from opgraph.operator import (
    Activation,
    Add,
    Attention,
    Collective,
    Einsum,
    Elementwise,
    Last,
    Lookup,
    Norm,
    Opaque,
    Operator,
    Quantize,
    Reduce,
    Rotary,
    Sample,
    Scale,
    Send,
    View,
    Work,
)
from opgraph.passes import shard
from opgraph.plan import Plan
from opgraph.simulation import simulate
from opgraph.sizes import Expression, Sizes
from opgraph.tensor import Format, Tensor, as_format

NUMBERS = {
    "offloaded_weights": 0.5,
    "offloaded_kv": 0.25,
    "batch": 4,
    "seq": 8,
    "context": 32,
    "model": 16,
    "heads": 8,
    "kv_heads": 4,
    "head_dim": 6,
    "ffn": 24,
    "vocab": 40,
    "window": 500,
    "adapters": 3,
    "rank": 2,
}
DERIVED = {
    "qkv": Expression("heads*head_dim + 2*kv_heads*head_dim"),
    "gate_up": Expression("2*ffn"),
}


def act(name: str, dims: str, dtype: str = "bf16") -> Tensor:
    return Tensor.of(name, dims, dtype)


def weight(name: str, dims: str, dtype: str = "bf16") -> Tensor:
    return Tensor.of(name, dims, dtype, "weight")


def cache_of(name: str, dtype: str = "bf16", context: str = "context") -> Tensor:
    return Tensor.of(name, f"batch {context} kv_heads head_dim", dtype, "cache")


def attention(**fields: Any) -> Attention:
    inputs = (
        act("q", "batch seq heads head_dim"),
        act("k", "batch seq kv_heads head_dim"),
        act("v", "batch seq kv_heads head_dim"),
        cache_of("k_cache"),
        cache_of("v_cache"),
    )
    return Attention(name="op", inputs=inputs, **fields)


X = act("x", "batch seq model")
UP = "batch seq model, model ffn -> batch seq ffn"

# one for each operator of the core; those of other families are found in the catalogue's models
EXAMPLES: tuple[Operator, ...] = (
    Lookup(name="op", inputs=(act("i", "batch seq", "int32"), weight("w", "vocab model"))),
    Einsum(name="op", inputs=(X, weight("w", "model ffn")), pattern=UP),
    attention(),
    Elementwise(name="op", inputs=(X,), flop_per_element=6),
    Add(name="op", inputs=(X, act("y", "batch seq model"))),
    Scale(name="op", inputs=(X,)),
    Activation(name="op", inputs=(act("u", "batch seq gate_up"),), dims="batch seq ffn"),
    Quantize(name="op", inputs=(X,), dtype_out="fp8"),
    Norm(name="op", inputs=(X, act("r", "batch seq model"), weight("w", "model"))),
    Rotary(name="op", inputs=(act("q", "batch seq heads head_dim"),)),
    View(
        name="op",
        inputs=(act("m", "batch seq qkv"),),
        parts=(
            ("", "batch seq heads head_dim"),
            ("k", "batch seq kv_heads head_dim"),
            ("v", "batch seq kv_heads head_dim"),
        ),
    ),
    Last(name="op", inputs=(X,)),
    Sample(name="op", inputs=(act("l", "batch vocab"),)),
    Collective(name="op", inputs=(X,), collective="all_reduce", axes=("tp",)),
)

# what no shipped model has by itself
OTHERS: tuple[Operator, ...] = (
    AdapterEinsum(
        name="op",
        inputs=(X, weight("w", "adapters model rank")),
        pattern="batch seq model, adapters model rank -> batch seq rank",
    ),
    Send(name="op", inputs=(X,)),
    Fetch(name="op", inputs=(weight("w", "model ffn"), cache_of("k"))),
    Reduce(name="op", inputs=(X,), dims="batch model"),
    Opaque(
        name="op",
        inputs=(X,),
        results=(("batch model", "bf16"), ("batch", "int32")),
        flop_per_element=2,
        over="batch seq model",
    ),
)

# every family of operators that is not in the table above is used by one of these
FAMILIES = [
    "mixtral-8x7b",
    "deepseek-v3",
    "deepseek-v3.2",
    "deepseek-v4-flash",
    "llama-3.2-11b-vision",
    "whisper-large-v3",
    "falcon-mamba-7b",
    "mamba2-2.7b",
    "jamba-v0.1",
    "qwen3-next-80b-a3b",
    "rwkv-7-2.9b",
    "minimax-text-01",
    "nemotron-h-8b",
    "kimi-linear-48b-a3b",
    "llava-1.5-7b",
    "qwen2-vl-7b",
]


def every_class() -> list[type[Operator]]:
    """All operators of the package that have a kind, which is what makes one usable."""
    for module in pkgutil.iter_modules(opgraph.__path__):
        importlib.import_module(f"opgraph.{module.name}")

    def walk(cls: type[Operator]) -> Iterator[type[Operator]]:
        for child in cls.__subclasses__():
            yield child
            yield from walk(child)

    usable = (cls for cls in walk(Operator) if getattr(cls, "kind", None))
    return [cls for cls in dict.fromkeys(usable) if cls.__module__.startswith("opgraph.")]


@cache
def in_catalogue() -> dict[type[Operator], tuple[Operator, Sizes, dict[str, Any]]]:
    found: dict[type[Operator], tuple[Operator, Sizes, dict[str, Any]]] = {}
    for name in FAMILIES:
        try:
            model = load_model(name)
        except SpecError:
            continue  # a family that is not modelled yet; its operators are then missed below
        step = {"batch": 4, "seq": 8, "context": 64, "images": 1, "source": 8, "skew": 0.0}
        for graph in (model.prefill, model.decode):
            sizes = Plan().bind({**step, **model.numbers}, graph.derived)
            for op, _ in graph.operators:
                found.setdefault(type(op), (op, sizes, {**step, **model.numbers}))
    return found


def example(cls: type[Operator]) -> tuple[Operator, Sizes]:
    for op in (*EXAMPLES, *OTHERS):
        if type(op) is cls:
            return op, Plan().bind(NUMBERS, DERIVED)
    if cls not in in_catalogue():
        pytest.fail(f"{cls.__name__} has no example: add one to EXAMPLES")
    op, sizes, _ = in_catalogue()[cls]
    return op, sizes


every = pytest.mark.parametrize("cls", every_class(), ids=lambda cls: cls.__name__)
core = pytest.mark.parametrize("op", EXAMPLES, ids=lambda op: type(op).__name__)


def counts(work: Work) -> tuple[Any, ...]:
    return work.flop, work.read, work.written, work.sent


def dims_of(op: Operator) -> set[str]:
    return {dim for tensor in (*op.inputs, *op.outputs) for dim in tensor.dims}


# --- conformance ----------------------------------------------------------------------------


@every
def test_the_first_result_is_named_after_the_operator(cls):
    op, _ = example(cls)
    names = [tensor.name for tensor in op.outputs]
    # what is appended to a cache comes out named after its parts
    assert names[0] == op.name or cls.__name__ == "Append"
    assert len(set(names)) == len(names)
    assert all(tensor.role == "activation" for tensor in op.outputs)


@every
def test_operators_are_values(cls):
    op, _ = example(cls)
    assert hash(op) == hash(replace(op))
    assert op == replace(op)
    assert op != replace(op, name="another")
    with pytest.raises(FrozenInstanceError):
        op.name = "changed"  # type: ignore[misc]


@every
def test_work_is_finite_and_not_negative(cls):
    op, sizes = example(cls)
    assert all(math.isfinite(float(count)) and count >= 0 for count in counts(op.work(sizes)))


@every
def test_an_operator_reads_as_a_line_of_text(cls):
    op, _ = example(cls)
    text = str(op)
    assert "\n" not in text
    assert text.startswith(f"{op.outputs[0].name}:")
    assert f" = {op.kind}(" in text
    assert all(tensor.name in text for tensor in op.inputs)


@every
def test_arrays_of_sizes_give_what_each_size_gives(cls):
    op, sizes = example(cls)
    batches, seqs = np.array([1.0, 3.0, 8.0]), np.array([[1.0], [5.0]])
    arrays = replace(sizes, numbers={**sizes.numbers, "batch": batches, "seq": seqs})
    together = [np.broadcast_to(count, (2, 3)) for count in counts(op.work(arrays))]
    for i, seq in enumerate((1, 5)):
        for j, batch in enumerate((1, 3, 8)):
            one = replace(sizes, numbers={**sizes.numbers, "batch": batch, "seq": seq})
            alone = counts(op.work(one))
            assert [count[i, j] for count in together] == pytest.approx(alone, rel=1e-12)


@every
def test_work_halves_when_the_batch_is_split_in_two(cls):
    op, sizes = example(cls)
    inputs = tuple(t for t in op.inputs if t.role == "activation")
    graph = Graph("one", (), inputs, sizes.derived)
    graph = replace(graph, blocks=(replace_block(op),))
    split = next(o for o, _ in shard(graph, Plan(dp=2)).operators if o.name == op.name)
    half = Plan(dp=2).bind(sizes.numbers, sizes.derived)
    whole, part = op.work(sizes), split.work(half)
    assert part.flop == pytest.approx(whole.flop / 2)
    # what is not split is weights, read whole on each
    fixed = sum(t.nbytes(sizes) for t in op.inputs if t.role == "weight")
    assert part.written == pytest.approx(whole.written / 2)
    assert whole.read / 2 <= part.read <= (whole.read + fixed) / 2 * (1 + 1e-12)


def replace_block(op: Operator) -> Any:
    from opgraph.graph import Block

    return Block("only", (op,))


@core
def test_work_grows_with_each_dimension(op):
    splits = Plan(tp=2)  # so that a collective has somebody to talk to
    before = op.work(splits.bind(NUMBERS, DERIVED))
    names = {name for dim in dims_of(op) for name in _made_of(dim)}
    for name in sorted(names - op.contracted if isinstance(op, Last) else names):
        if isinstance(op, Lookup) and name == "vocab":
            continue  # only the rows asked for are read, however many there are
        after = op.work(splits.bind({**NUMBERS, name: 2 * NUMBERS[name]}, DERIVED))
        grown = [b > a for a, b in zip(counts(before), counts(after), strict=True)]
        assert any(grown) or op.is_view, name
        assert after.flop >= before.flop
        assert after.moved >= before.moved


def _made_of(dim: str) -> tuple[str, ...]:
    return DERIVED[dim].names if dim in DERIVED else (dim,)


@core
def test_flop_halves_when_a_split_dimension_does(op):
    split = _sharded(op, Plan(tp=2))
    if not any("tp" in axes for axes in split.layout.values()):
        return
    assert (
        split.flop(Plan(tp=2).bind(NUMBERS, DERIVED)) == op.flop(Plan().bind(NUMBERS, DERIVED)) / 2
    )


def _sharded(op: Operator, plan: Plan) -> Operator:
    graph = Graph("one", (replace_block(op),), op.activations, DERIVED)
    return next(o for o, _ in shard(graph, plan).operators if o.name == op.name)


@core
def test_results_are_split_as_the_operator_is(op):
    split = _sharded(op, Plan(tp=2, dp=2))
    for tensor in split.outputs:
        assert tensor.layout == {dim: split.layout.get(dim, ()) for dim in tensor.dims}


def test_which_operators_leave_partial_sums():
    down = Einsum(
        name="op", inputs=(act("h", "batch seq ffn"), weight("w", "ffn model")),
        pattern="batch seq ffn, ffn model -> batch seq model",
    )  # fmt: skip
    assert _sharded(down, Plan(tp=2)).outputs[0].partial == ("tp",)
    assert _sharded(EXAMPLES[0], Plan(tp=2)).outputs[0].partial == ("tp",)  # half of the table
    assert _sharded(EXAMPLES[1], Plan(tp=2)).outputs[0].partial == ()  # model is whole


# --- against brute force --------------------------------------------------------------------

LETTERS = "abcdefgh"


@st.composite
def contractions(draw: st.DrawFn) -> tuple[tuple[str, str, str], dict[str, int]]:
    """Two operands that share at least one dimension that the result does not have."""
    dims = draw(st.lists(st.sampled_from(LETTERS), min_size=3, max_size=6, unique=True))
    first = draw(st.sets(st.sampled_from(dims), min_size=1))
    second = (set(dims) - first) | draw(st.sets(st.sampled_from(sorted(first)), min_size=1))
    summed = draw(st.sets(st.sampled_from(sorted(first & second)), min_size=1))
    result = (first | second) - summed
    sizes = {dim: draw(st.integers(1, 5)) for dim in dims}
    operands = ("".join(sorted(part)) for part in (first, second, result))
    return tuple(operands), sizes  # type: ignore[return-value]


def einsum_of(operands: tuple[str, ...]) -> Einsum:
    *inputs, result = (" ".join(part) for part in operands)
    tensors = tuple(act(f"x{i}", dims) for i, dims in enumerate(inputs))
    return Einsum(name="op", inputs=tensors, pattern=f"{', '.join(inputs)} -> {result}")


def numpy_flop(operands: tuple[str, ...], sizes: dict[str, int]) -> float:
    """What numpy.einsum_path reports for the product as it stands."""
    *inputs, result = operands
    arrays = [np.empty([sizes[dim] for dim in dims]) for dims in inputs]
    text = np.einsum_path(f"{','.join(inputs)}->{result}", *arrays, optimize=False)[1]
    line = next(line for line in text.splitlines() if "Naive FLOP count" in line)
    return float(line.split(":")[1])


@given(contractions())
def test_a_contraction_takes_the_flop_that_numpy_counts(case):
    operands, sizes = case
    # numpy prints four digits
    assert einsum_of(operands).flop(Sizes(sizes)) == pytest.approx(numpy_flop(*case), rel=1e-3)


@given(contractions())
def test_a_contraction_in_loops_multiplies_and_adds_as_often(case):
    (first, second, result), sizes = case
    loops = math.prod(sizes[dim] for dim in set(first + second))
    assert einsum_of((first, second, result)).flop(Sizes(sizes)) == 2 * loops


@given(contractions())
def test_a_contraction_is_a_batch_of_matrix_products(case):
    (first, second, result), sizes = case
    shared = set(first) & set(second)
    op = einsum_of((first, second, result))
    shape = op.shape(Sizes(sizes))
    assert shape["k"] == math.prod(sizes[dim] for dim in shared - set(result))
    assert shape["batch"] == math.prod(sizes[dim] for dim in shared & set(result))
    assert 2 * math.prod(shape.values()) == op.flop(Sizes(sizes))


def test_einsum_by_hand():
    # 2·4·8·16·24 = 24,576; reads 4·8·16·2 + 16·24·2 = 1,792 bytes, writes 4·8·24·2 = 1,536
    work = EXAMPLES[1].work(Sizes(NUMBERS))
    assert counts(work) == (24576, 1792, 1536, 0)


def test_a_bias_is_one_sum_for_each_result():
    op = Einsum(name="op", inputs=(X, weight("w", "model ffn"), weight("b", "ffn")), pattern=UP)
    assert op.flop(Sizes(NUMBERS)) == 24576 + 4 * 8 * 24


def masked_pairs(seq: int, context: int, window: int | None = None, chunk: int | None = None):
    """Which key each query sees, by loops over both."""
    return [
        (query, key)
        for query in range(context - seq, context)
        for key in range(context)
        if key <= query
        and (window is None or query - key < window)
        and (chunk is None or key // chunk == query // chunk)
    ]


steps = st.integers(1, 24).flatmap(
    lambda context: st.tuples(st.integers(1, context), st.just(context))
)


@given(steps, st.one_of(st.none(), st.integers(1, 30)))
def test_attention_counts_the_pairs_and_keys_that_loops_count(step, window):
    seq, context = step
    sizes = Sizes({**NUMBERS, "seq": seq, "context": context, "window": window or 1})
    op = attention(window="window" if window else None)
    seen = masked_pairs(seq, context, window)
    assert op.pairs(sizes) == len(seen)
    assert op.keys(sizes) == len({key for _, key in seen})
    # a product with the key and one with the value: 2 · (6 + 6) each, for 8 heads of 4 sequences
    assert op.flop(sizes) == len(seen) * 2 * (6 + 6) * 8 * 4


@given(steps, st.integers(1, 30))
def test_chunked_attention_counts_the_pairs_and_keys_that_loops_count(step, chunk):
    seq, context = step
    sizes = Sizes({**NUMBERS, "seq": seq, "context": context, "piece": chunk})
    op = attention(chunk="piece")
    seen = masked_pairs(seq, context, chunk=chunk)
    assert op.pairs(sizes) == len(seen)
    assert op.keys(sizes) == len({key for _, key in seen})


@given(steps, st.integers(1, 30))
def test_attention_to_chosen_keys_sees_so_many_of_those_there_are(step, chosen):
    seq, context = step
    sizes = Sizes({**NUMBERS, "seq": seq, "context": context, "best": chosen})
    op = attention(chosen="best")
    # the query at position p has p + 1 keys to choose from
    assert op.pairs(sizes) == sum(min(p + 1, chosen) for p in range(context - seq, context))
    assert op.keys(sizes) == min(context, seq * chosen)


@given(steps)
def test_attention_without_a_mask_is_the_full_square(step):
    seq, context = step
    op, sizes = attention(causal=False), Sizes({**NUMBERS, "seq": seq, "context": context})
    assert op.pairs(sizes) == seq * context
    assert op.keys(sizes) == context


def test_a_window_means_the_same_for_pairs_and_keys():
    # decode of one token at 32: pairs and keys are both the last 5
    op = attention(causal=False, window="window")
    sizes = Sizes({**NUMBERS, "seq": 1, "window": 5})
    assert op.pairs(sizes) == op.keys(sizes)


@given(steps, st.integers(1, 8))
def test_causal_attention_in_parts_is_the_whole(step, parts):
    seq, context = step
    cuts = sorted(
        {context - seq, context, *(context - seq + i * seq // parts for i in range(parts))}
    )
    pieces = [
        attention().pairs(Sizes({**NUMBERS, "seq": b - a, "context": b}))
        for a, b in itertools.pairwise(cuts)
    ]
    whole = attention().pairs(Sizes({**NUMBERS, "seq": seq, "context": context}))
    assert sum(pieces) == whole


@given(steps)
def test_the_cache_is_read_once_per_kv_head_and_written_where_it_is_new(step):
    seq, context = step
    work = attention().work(Sizes({**NUMBERS, "seq": seq, "context": context}))
    query = 4 * seq * 8 * 6 * 2
    # positions × (key + value) × 4 sequences × 4 KV heads × 6 × 2 bytes, whatever the 8 heads
    per_position = 2 * 4 * 4 * 6 * 2
    assert work.read == query + context * per_position
    assert work.written == query + seq * per_position


def test_a_cache_in_another_format_is_read_in_it():
    narrow = replace(
        attention(), inputs=(*attention().inputs[:3], cache_of("k", "fp8"), cache_of("v", "fp8"))
    )
    sizes = Sizes({**NUMBERS, "seq": 1, "context": 32})
    # 31 old positions at 1 byte, the new one as it comes at 2; written at 1
    assert narrow.work(sizes).read == 4 * 8 * 6 * 2 + 2 * 4 * 4 * 6 * (31 * 1 + 1 * 2)
    assert narrow.work(sizes).written == 4 * 8 * 6 * 2 + 2 * 4 * 4 * 6 * 1


def test_kv_heads_fewer_than_chips_are_read_on_each():
    split = _sharded(attention(), Plan(tp=8))
    sizes = Plan(tp=8).bind({**NUMBERS, "seq": 1}, {})
    # one of 8 heads; one of 4 KV heads, on two chips each
    assert split.work(sizes).read == 4 * 1 * 6 * 2 + 32 * 2 * 4 * 1 * 6 * 2
    assert split.flop(sizes) == attention().flop(Sizes({**NUMBERS, "seq": 1})) / 8


def test_a_lookup_reads_its_rows_only():
    # 4·8 indices of 4 bytes, as many rows of 16·2 bytes; no arithmetic
    assert counts(EXAMPLES[0].work(Sizes(NUMBERS))) == (0, 4 * 8 * 4 + 4 * 8 * 32, 4 * 8 * 32, 0)


def test_a_lookup_in_half_a_table_finds_half_of_the_rows():
    split = _sharded(EXAMPLES[0], Plan(tp=2))
    work = split.work(Plan(tp=2).bind(NUMBERS, DERIVED))
    assert counts(work) == (0, 4 * 8 * 4 + 4 * 8 * 32 / 2, 4 * 8 * 32, 0)


ROW = 4 * 8 * 16  # elements of x


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        # square, accumulate, scale, weight
        ((X, weight("w", "model")), (4 * ROW, 2 * ROW + 32, 2 * ROW, 0)),
        # and the sum with the residual, which comes out too
        ((X, X, weight("w", "model")), (5 * ROW, 4 * ROW + 32, 4 * ROW, 0)),
        # and the bias
        ((X, X, weight("w", "model"), weight("b", "model")), (6 * ROW, 4 * ROW + 64, 4 * ROW, 0)),
    ],
    ids=["plain", "residual", "residual and bias"],
)
def test_norm_by_hand(inputs, expected):
    assert counts(Norm(name="op", inputs=inputs).work(Sizes(NUMBERS))) == expected


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (4, (ROW, 2 * 2 * ROW, 2 * ROW, 0)),  # Add: one sum, two in, one out
        (5, (ROW, 2 * ROW, 2 * ROW, 0)),  # Scale
        # gated: 48 in, 24 out, one operation for each result
        (6, (4 * 8 * 24, 4 * 8 * 48 * 2, 4 * 8 * 24 * 2, 0)),
        (7, (3 * ROW, 2 * ROW, ROW, 0)),  # Quantize to one byte
        (9, (3 * 4 * 8 * 48, 4 * 8 * 48 * 2, 4 * 8 * 48 * 2, 0)),  # Rotary
        (10, (0, 0, 0, 0)),  # View
        (11, (0, 4 * 16 * 2, 4 * 16 * 2, 0)),  # Last: one position of 8
        (12, (5 * 4 * 40, 4 * 40 * 2, 4 * 4, 0)),  # Sample: logits in, an int32 each out
        (13, (0, 0, 0, 0)),  # Collective of one
    ],
    ids=lambda value: type(EXAMPLES[value]).__name__ if isinstance(value, int) else "",
)
def test_small_operators_by_hand(index, expected):
    assert counts(EXAMPLES[index].work(Sizes(NUMBERS, DERIVED))) == expected


@pytest.mark.parametrize(
    ("kind", "buffer"),
    [
        # the buffer is the whole tensor; split over ffn, a chip holds 4·8·12 of 4·8·24
        ("all_reduce", 4 * 8 * 24 * 2),
        ("reduce_scatter", 4 * 8 * 24 * 2),
        ("all_gather", 4 * 8 * 24 * 2),
    ],
)
def test_a_collective_sends_the_whole_buffer(kind, buffer):
    whole = act("x", "batch seq ffn")
    split = {"ffn": ("tp",)}
    source = whole.laid_out(split) if kind == "all_gather" else whole
    layout = split if kind == "reduce_scatter" else {}
    op = Collective(name="op", inputs=(source,), collective=kind, axes=("tp",), layout=layout)
    assert op.work(Plan(tp=2).bind(NUMBERS, {})).sent == buffer
    assert op.work(Plan(tp=1).bind(NUMBERS, {})).sent == 0


# --- what they are made of ------------------------------------------------------------------


def test_work_adds_up_and_scales():
    one = Work(1, 2, 3, 4)
    assert one + Work() == one
    assert one + one == one * 2 == Work(2, 4, 6, 8)
    assert one.moved == 5
    assert one.intensity == 1 / 5


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("bf16", 16),
        ("fp8", 8),
        ("mxfp4", 4 + 8 / 32),
        ("nvfp4", 4 + 8 / 16),
        ("int4-g128", 4 + (16 + 4) / 128),
    ],
)
def test_formats_take_their_bits_and_their_share_of_scales(name, bits):
    assert as_format(name).effective_bits == bits
    assert Tensor.of("x", "n", name).nbytes(Sizes({"n": 256})) == 256 * bits / 8


def test_a_format_that_does_not_exist_names_the_nearest():
    with pytest.raises(SpecError, match="no number format 'bf61'; did you mean 'bf16'"):
        as_format("bf61")
    assert as_format(Format(5)) == Format(5)


def test_derived_dimensions_are_split_as_what_they_are_made_of():
    sizes = Plan(tp=8).bind(NUMBERS, DERIVED)
    assert sizes["qkv"] == 8 * 6 + 2 * 4 * 6
    # one head of 6; of 4 KV heads one each, on two chips
    assert sizes.local("qkv", ("tp",)) == 6 + 2 * 6
    assert sizes.axes("qkv") == ("tp", "tp.ep")
    assert sizes.axes("model") == ()


def test_a_dimension_without_a_size_is_named():
    with pytest.raises(SpecError, match="no size for the dimension 'modle'; did you mean 'model'"):
        Sizes(NUMBERS)["modle"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2*ffn", 48),
        ("heads*head_dim + 2*kv_heads*head_dim", 96),
        ("min(context, window)", 32),
        ("max(seq, 9) - 1", 8),
        ("context//3", 10),
    ],
)
def test_expressions(text, value):
    assert Sizes(NUMBERS, {"d": Expression(text)})["d"] == value


@pytest.mark.parametrize(
    "text", ["", "a b", "a**2", "f(a, b)", "__import__('os')", "a.b.c", "'a'*2"]
)
def test_an_expression_that_is_none_is_refused(text):
    with pytest.raises(SpecError) as error:
        Expression(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("whole", "rule", "ways", "part"),
    [
        ("heads", "error", 4, 2),
        ("kv_heads", "replicate", 8, 1),
        ("vocab", "pad", 3, 14),  # 40 in three: 14, 13, 13; the largest counts
        ("batch", "pad", 8, 1),
    ],
)
def test_a_part_of_a_dimension(whole, rule, ways, part):
    from opgraph.sizes import Split

    sizes = Sizes(NUMBERS, {}, {"tp": ways}, {whole: Split(("tp",), rule)})
    assert sizes.local(whole, ("tp",)) == part
    arrays = replace(sizes, degrees={"tp": np.array([1, ways])})
    assert list(arrays.local(whole, ("tp",))) == [NUMBERS[whole], part]


def test_a_tensor_with_a_dimension_twice_is_refused_or_counted_twice():
    try:
        square = weight("w", "model model")
    except (SpecError, ValueError):
        return
    assert square.numel(Sizes(NUMBERS)) == 16 * 16


@pytest.mark.parametrize("operands", [("a", "b", "ab"), ("ab", "ab", "ab"), ("abc", "b", "abc")])
def test_a_product_that_sums_nothing_only_multiplies(operands):
    sizes = {"a": 3, "b": 4, "c": 1}
    # one product for each of 3·4·1 results
    assert einsum_of(operands).flop(Sizes(sizes)) == 12


def test_a_product_of_three_is_refused():
    op = einsum_of(("ab", "bc", "cd", "ad"))
    with pytest.raises(GraphError, match=r"op: .* is not a product of two: write several"):
        Graph("three", (Block("only", (op,)),), op.inputs).check()


def test_reduce_counts_each_element_and_sums_over_what_it_drops():
    mean = Reduce(name="op", inputs=(X,), dims="batch seq")
    sizes = Sizes(NUMBERS)
    elements = 1
    for dim in X.dims:
        elements *= NUMBERS[dim]
    assert mean.flop(sizes) == elements
    assert mean.outputs[0].dims == ("batch", "seq")
    assert mean.contracted == {"model"}


@dataclass(frozen=True, kw_only=True)
class Weighted(Operator):
    """An operator of one's own, with more than it is compared by."""

    factor: float = field(default=1.0, compare=False)
    table: dict[str, float] = field(default_factory=dict, compare=False)

    kind = "custom"

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        return (self._make(self.name, self.inputs[0].dims, self.inputs[0].format),)

    def flop(self, sizes: Sizes) -> Any:
        return self.factor * self.table.get("more", 1.0) * self.outputs[0].numel(sizes)


def own_model(**options: Any) -> Model:
    build = Builder("own")
    x = build.input(Tensor.of("x", "batch seq channels", "bf16"))
    build.add(Weighted(name="op", inputs=(x,), **options))
    graph = build.graph()
    return Model("own", "a test", graph, graph, {"channels": 5120})


def test_operators_that_compare_equal_are_priced_apart_if_they_differ():
    platform = load_platform("dgx-h100")
    times = [simulate(own_model(factor=f), platform).ttft for f in (1.0, 1e6, 1e9)]
    assert times[2] == pytest.approx(1e3 * times[1], rel=1e-12)
    assert times[1] > times[0]


def test_operators_that_cannot_be_hashed_are_like_none_but_themselves():
    (light, _), (heavy, _) = (
        next(own_model(table={"more": more}).prefill.operators) for more in (1.0, 1e9)
    )
    machine = Machine(load_platform("dgx-h100"), Plan())
    sizes = Sizes({"batch": 8, "seq": 2, "channels": 5120})
    one, other = (Roofline().cost(op, sizes, machine).time for op in (light, heavy))
    assert other > 1e3 * one
    assert light.likeness != heavy.likeness


def test_a_likeness_stays_in_its_process():
    operator, _ = next(load_model("llama-3.1-8b").decode.operators)
    assert operator.likeness == replace(operator, name="other").likeness
    copied = pickle.loads(pickle.dumps(operator))  # noqa: S301 - our own bytes
    assert "likeness" in vars(operator)
    assert "likeness" not in vars(copied)
    assert copied == operator
