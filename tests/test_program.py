"""Programs written by hand become the models that the config frontend writes."""

import pytest

from frontends import Transformer
from frontends.dim import Dim, Unlike, unify
from frontends.dimensions import Dimensions, aligned
from frontends.flow import Flow
from frontends.folding import folded
from frontends.imported import to_model
from frontends.program import Program
from hardware import SpecError, load_platform
from opgraph import Plan, Workload, simulate
from opgraph.operator import Activation, Collective, Einsum, Elementwise
from opgraph.passes import shard
from opgraph.sizes import Sizes
from opgraph.tensor import Tensor

MODEL, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB, LAYERS = 64, 8, 2, 16, 192, 500, 3
SIZES = {"batch": 3, "seq": 7, "context": 20, "skew": 0.0, "images": 0}


def rms(p, x, name):
    """Root mean square normalisation, spelled out."""
    two, epsilon = p.constant(2), p.constant(1e-5)
    mean = p.reduce("mean", p.elementwise("pow", x, two), [-1], keep=True)
    scaled = p.elementwise("mul", x, p.elementwise("rsqrt", p.elementwise("add", mean, epsilon)))
    return p.elementwise("mul", scaled, p.weight(name, (MODEL,), "bf16"))


def turn(p, x, cos, sin):
    """Rotary positions, spelled out: x·cos + (−x₂, x₁)·sin."""
    half = x.shape[-1] // 2
    low, high = p.slice(x, -1, 0, half), p.slice(x, -1, half, 2 * half)
    other = p.concat([p.elementwise("neg", high), low], -1)
    return p.elementwise("add", p.elementwise("mul", x, cos), p.elementwise("mul", other, sin))


def heads_of(p, x, name, heads):
    batch, seq, _ = x.shape
    made = p.einsum("bsm,nm->bsn", x, p.weight(name, (heads * HEAD_DIM, MODEL), "bf16"))
    return p.transpose(p.reshape(made, (batch, seq, heads, HEAD_DIM)), (0, 2, 1, 3))


def attend(p, query, key, value):
    """softmax(QKᵀ)V with a mask of positions, keys copied for each query of their group."""
    batch, _, seq, _ = query.shape
    key, value = (
        p.reshape(
            p.expand(
                p.reshape(x, (batch, KV_HEADS, 1, seq, HEAD_DIM)),
                (batch, KV_HEADS, HEADS // KV_HEADS, seq, HEAD_DIM),
            ),
            (batch, HEADS, seq, HEAD_DIM),
        )
        for x in (key, value)
    )
    scores = p.einsum("bhsd,bhtd->bhst", query, key)
    places = p.add("iota", [], [(seq,)], "int64")
    seen = p.elementwise("le", places, p.reshape(places, (seq, 1)))
    minus = p.constant(float("-inf"), (), "bf16")
    return p.einsum(
        "bhst,bhtd->bhsd", p.softmax(p.elementwise("where", seen, scores, minus)), value
    )


def layer(p, x, index, cos, sin):
    normed = rms(p, x, f"{index}.norm1.weight")
    query, key, value = (
        heads_of(p, normed, f"{index}.{name}.weight", heads)
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
    )
    mixed = attend(p, turn(p, query, cos, sin), turn(p, key, cos, sin), value)
    mixed = p.reshape(p.transpose(mixed, (0, 2, 1, 3)), (*x.shape[:2], HEADS * HEAD_DIM))
    out = p.weight(f"{index}.o.weight", (MODEL, HEADS * HEAD_DIM), "bf16")
    x = p.elementwise("add", x, p.einsum("bsn,mn->bsm", mixed, out))
    normed = rms(p, x, f"{index}.norm2.weight")
    gate, up = (
        p.einsum("bsm,fm->bsf", normed, p.weight(f"{index}.{name}.weight", (FFN, MODEL), "bf16"))
        for name in ("gate", "up")
    )
    hidden = p.elementwise("mul", p.elementwise("silu", gate), up)
    down = p.weight(f"{index}.down.weight", (MODEL, FFN), "bf16")
    return p.elementwise("add", x, p.einsum("bsf,mf->bsm", hidden, down))


def decoder(layers=LAYERS):
    p = Program("mine", "written by hand")
    tokens = p.input("ids", (5, 11), "int64")
    cos, sin = (p.constant(None, (11, HEAD_DIM)) for _ in range(2))
    x = p.gather(p.weight("embedding.weight", (VOCAB, MODEL), "bf16"), tokens)
    for index in range(layers):
        p.where = f"layers.{index}"
        x = layer(p, x, index, cos, sin)
    p.where = "head"
    head = p.weight("head.weight", (VOCAB, MODEL), "bf16")
    p.output(p.einsum("bsm,vm->bsv", rms(p, x, "norm.weight"), head))
    return p


def built(layers=LAYERS):
    return Transformer(
        layers=layers,
        model=MODEL,
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        ffn=FFN,
        vocab=VOCAB,
    ).to_model()


def costs(graph, sizes):
    """Kind, count, FLOP and bytes of every operator that costs anything."""
    works = ((op, n, op.work(sizes)) for op, n in graph.operators if not op.is_view)
    return [(op.kind, n, work.flop, work.read, work.written) for op, n, work in works]


def test_spelled_out_decoder_is_the_built_one():
    ours, theirs = to_model(decoder()), built()
    assert ours.num_parameters == theirs.num_parameters
    assert ours.kv_bytes_per_token == theirs.kv_bytes_per_token
    assert ours.unnamed == {}
    for model in (ours, theirs):
        assert model.prefill is model.decode
    pairs = (
        costs(model.prefill, Sizes({**model.numbers, **SIZES}, model.prefill.derived))
        for model in (ours, theirs)
    )
    assert next(pairs) == next(pairs)
    counts = [(block.count, len(block.operators)) for block in ours.prefill.blocks]
    assert counts == [(1, 2), (LAYERS, 10), (1, 3)]


def test_same_collectives_and_times_as_the_built_one():
    platform, workload = load_platform("dgx-h100"), Workload(batch=4, prompt=64, output=8)
    for plan in (Plan(), Plan(tp=2), Plan(tp=2, pp=3), Plan(tp=2, sp=True), Plan(dp=2)):
        ours, theirs = (
            simulate(model, platform, plan, workload) for model in (to_model(decoder()), built())
        )
        assert ours.ttft == pytest.approx(theirs.ttft, rel=1e-12)
        assert ours.tpot == pytest.approx(theirs.tpot, rel=1e-12)
        assert ours.memory.total == pytest.approx(theirs.memory.total, rel=1e-12)
    transfers = [
        [(op.collective, op.axes, op.outputs[0].dims, n) for op, n in graph.operators if _moves(op)]
        for graph in (shard(model.prefill, Plan(tp=2)) for model in (to_model(decoder()), built()))
    ]
    assert transfers[0] == transfers[1] != []


def _moves(operator):
    return isinstance(operator, Collective)


def test_fold_keeps_the_sum():
    """Three layers folded cost what one, and two more, do."""
    sizes = {name: SIZES[name] for name in SIZES}

    def flop(layers):
        model = to_model(decoder(layers))
        at = Sizes({**model.numbers, **sizes}, model.prefill.derived)
        return sum(op.flop(at) * n for op, n in model.prefill.operators)

    assert flop(5) - flop(3) == pytest.approx(flop(3) - flop(1))


def test_shared_weights_are_not_folded():
    shape = Tensor.of("w", "model model.out", "bf16", "weight")
    x = Tensor.of("x", "batch model", "bf16")
    operators = []
    for index in range(4):
        pattern = "batch model, model model.out -> batch model.out"
        product = Einsum(name=f"p{index}", inputs=(x, shape), pattern=pattern)
        active = Activation(name=f"a{index}", inputs=product.outputs)
        last = Elementwise(name=f"e{index}", inputs=(*active.outputs, x), dims="batch model")
        operators += [product, active, last]
        x = last.outputs[0]
    assert [block.count for block in folded(operators)] == [1]
    own = [
        Einsum(
            name=op.name,
            inputs=(op.inputs[0], Tensor.of(f"w{i}", "model model.out", "bf16", "weight")),
            pattern=op.pattern,
        )
        if isinstance(op, Einsum)
        else op
        for i, op in enumerate(operators)
    ]
    assert [block.count for block in folded(own)] == [4]


@pytest.mark.parametrize("window", [4, 9])
def test_window_is_read_from_the_mask(window):
    p = Program("windowed", "by hand")
    query, key, value = (p.input(n, (2, HEADS, 12, HEAD_DIM), "bf16") for n in "qkv")
    matrix = p.weight("w", (HEAD_DIM, HEAD_DIM), "bf16")
    query = p.einsum("bhsd,de->bhse", query, matrix)
    places = p.add("iota", [], [(12,)], "int64")
    own = p.reshape(places, (12, 1))
    limit = p.elementwise("sub", own, p.constant(window, (), "int64"))
    mask = p.elementwise(
        "and", p.elementwise("le", places, own), p.elementwise("gt", places, limit)
    )
    p.output(p.attention(query, key, value, mask))
    (attention,) = (op for op, _ in to_model(p).prefill.operators if op.kind == "attention")
    assert to_model(p).numbers[attention.window] == window


def test_no_mask_is_an_encoder():
    p = Program("encoder", "by hand")
    x = p.input("x", (2, 10, MODEL), "bf16")
    query, key, value = (heads_of(p, x, f"{n}.weight", HEADS) for n in "qkv")
    p.output(p.attention(query, key, value))
    model = to_model(p)
    kinds = [type(op).__name__ for op, _ in model.prefill.operators]
    assert "UnmaskedAttention" in kinds
    assert not list(model.prefill.tensors("cache"))


def test_what_has_no_name_is_reported_and_never_split():
    p = Program("odd", "by hand")
    x = p.input("x", (4, 30), "bf16")
    y = p.einsum("bm,mn->bn", x, p.weight("first", (30, 42), "bf16"))
    p.output(p.softmax(p.einsum("bn,nk->bk", y, p.weight("last", (42, 11), "bf16"))))
    model = to_model(p)
    assert list(model.unnamed.values()) == ["last, axis 1"]
    sharded = shard(model.prefill, Plan(tp=2))
    assert not [op for op, _ in sharded.operators if _moves(op)]
    named = to_model(p, {"first": (None, "ffn"), "last": (None, "model")})
    assert named.unnamed == {}
    assert named.numbers["ffn"] == 42
    collectives = [
        op.collective for op, _ in shard(named.prefill, Plan(tp=2)).operators if _moves(op)
    ]
    assert collectives == ["all_reduce"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"nothing": ("model",)}, "fits no weight and no input"),
        ({"first": ("model",)}, "has 1 words"),
        ({"first": ("model", "heads head_dim")}, "the axis is 42"),
    ],
)
def test_names_that_do_not_fit(names, message):
    p = Program("odd", "by hand")
    x = p.input("x", (4, 30), "bf16")
    p.output(p.einsum("bm,mn->bn", x, p.weight("first", (30, 42), "bf16")))
    with pytest.raises(SpecError, match=message):
        to_model(p, names)


def test_operator_without_a_kernel_moves_its_bytes_and_is_not_split():
    p = Program("odd", "by hand")
    x = p.einsum("bm,mn->bn", p.input("x", (4, 30), "bf16"), p.weight("w", (30, 42), "bf16"))
    p.where = "layers.3.mixer (mine.py:7)"
    p.output(p.add("fft", [x], [x.shape]))
    *_, (operator, _) = to_model(p).prefill.operators
    assert (operator.name, operator.kind) == ("layers.3.mixer.fft", "other")
    assert operator.inputs[0].dims[1] in operator.whole


def test_shapes_that_do_not_broadcast():
    p = Program("odd", "by hand")
    p.where = "here"
    with pytest.raises(SpecError, match=r"\(4, 3\), \(4, 2\) do not broadcast at here"):
        p.elementwise("add", p.input("x", (4, 3), "bf16"), p.input("y", (4, 2), "bf16"))


@pytest.mark.parametrize(
    ("before", "after", "groups"),
    [
        ((6, 4), (6, 2, 2), [([0], [0]), ([1], [1, 2])]),
        ((6, 4), (24,), [([0, 1], [0])]),
        ((2, 3, 4), (6, 2, 2), [([0, 1], [0]), ([2], [1, 2])]),
        ((12, 5), (3, 20), [([0, 1], [0, 1])]),
    ],
)
def test_reshapes_are_aligned(before, after, groups):
    assert aligned(before, after) == groups


def test_reshape_splits_where_another_view_needs_it():
    p = Program("views", "by hand")
    x = p.input("x", (6, 24), "bf16")
    one = p.reshape(x, (6, 4, 6))
    other = p.reshape(x, (6, 2, 12))
    p.output(one, other)
    dims = Dimensions(Flow(p.nodes, p.outputs).nodes)
    assert [atom.size for atom in dims.atoms(one)] == [6, 2, 2, 6]
    assert [atom.size for atom in dims.atoms(other)] == [6, 2, 2, 6]
    assert dims.atoms(one) == dims.atoms(other) == dims.atoms(x)


def test_no_common_refinement():
    with pytest.raises(Unlike):
        unify(Dim(6, (Dim(2), Dim(3))), Dim(6, (Dim(3), Dim(2))))


def test_fused_projection_is_split_as_it_is_sliced():
    p = Program("fused", "by hand")
    x = p.input("x", (3, 5, MODEL), "bf16")
    rows = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    mixed = p.einsum("bsm,nm->bsn", x, p.weight("qkv.weight", (rows, MODEL), "bf16"))
    parts, start = [], 0
    for heads in (HEADS, KV_HEADS, KV_HEADS):
        end = start + heads * HEAD_DIM
        apart = p.reshape(p.slice(mixed, 2, start, end), (3, 5, heads, HEAD_DIM))
        parts.append(p.transpose(apart, (0, 2, 1, 3)))
        start = end
    p.output(p.attention(*parts, causal=True))
    model = to_model(p)
    (expression,) = (model.prefill.derived[dim].text for dim in model.prefill.derived)
    assert expression == "heads*head_dim + 2*kv_heads*head_dim"
    assert model.num_parameters == rows * MODEL


def test_product_of_two_activations():
    """Linear attention's K V: 2·b·h·s·n·p FLOP for the state, summed over the sequence."""
    p = Program("states", "by hand")
    x = p.input("x", (3, 7, MODEL), "bf16")
    key, value = (heads_of(p, x, f"{name}.weight", HEADS) for name in "kv")
    p.output(p.einsum("bhsn,bhsp->bhnp", key, value))
    model = to_model(p)
    (product,) = (op for op, _ in model.prefill.operators if len(op.activations) == 2)
    at = Sizes({**model.numbers, **SIZES}, model.prefill.derived)
    assert product.flop(at) == 2 * 3 * HEADS * 7 * HEAD_DIM * HEAD_DIM


def test_slices_of_a_weight_add_up_to_it():
    p = Program("sliced", "by hand")
    x = p.input("x", (3, 7, MODEL), "bf16")
    whole = p.weight("both.weight", (3 * FFN, MODEL), "bf16")
    parts = [p.slice(whole, 0, start, end) for start, end in ((0, FFN), (FFN, 3 * FFN))]
    p.output(*(p.einsum("bsm,fm->bsf", x, part) for part in parts))
    assert to_model(p).num_parameters == 3 * FFN * MODEL


def test_product_from_the_model_to_the_model():
    """x + W x: rows and columns are as wide as each other and still two dimensions."""
    p = Program("square", "by hand")
    x = p.input("x", (3, 7, MODEL), "bf16")
    made = p.einsum("bsm,nm->bsn", x, p.weight("w", (MODEL, MODEL), "bf16"))
    p.output(p.elementwise("add", x, made))
    model = to_model(p)
    (product,) = (op for op, _ in model.prefill.operators if isinstance(op, Einsum))
    assert {role: len(dims) for role, dims in product.roles.items()} == {
        "batch": 0,
        "m": 2,
        "n": 1,
        "k": 1,
    }
    assert model.num_parameters == MODEL * MODEL
