"""Sharding: the collectives that follow from the names, and what is conserved."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from frontends import load_model
from opgraph import plan as plan_module
from opgraph.graph import Block, Graph
from opgraph.model import Model
from opgraph.operator import (
    Activation,
    Add,
    Collective,
    Einsum,
    Norm,
    Operator,
    Sample,
    Scale,
)
from opgraph.passes import shard
from opgraph.plan import Plan
from opgraph.sizes import Split
from opgraph.tensor import Tensor

STEP = {"batch": 4, "seq": 8, "context": 32, "images": 0}


def act(name: str, dims: str) -> Tensor:
    return Tensor.of(name, dims, "bf16")


def weight(name: str, dims: str) -> Tensor:
    return Tensor.of(name, dims, "bf16", "weight")


def gemm(name: str, x: Tensor, pattern: str) -> Einsum:
    dims = pattern.split("->", maxsplit=1)[0].split(",")[1]
    return Einsum(name=name, inputs=(x, weight(f"{name}.w", dims)), pattern=pattern)


def one_block(*operators: Operator, count: int = 1) -> Graph:
    made = {tensor.name for op in operators for tensor in op.outputs}
    outside = {t.name: t for op in operators for t in op.activations if t.name not in made}
    return Graph("hand", (Block("only", operators, count),), tuple(outside.values())).check()


def collectives(graph: Graph) -> list[str]:
    return [f"{op.name} over {'·'.join(op.axes)}" for op, _ in graph.operators
            if isinstance(op, Collective)]  # fmt: skip


def flop(graph: Graph, plan: Plan, model: Model) -> float:
    """Of all chips together."""
    sizes = plan.bind({**STEP, **model.numbers}, graph.derived)
    return sum(op.flop(sizes) * count for op, count in graph.operators) * plan.num_chips


@cache
def dense(kind: str = "llama", **changes: Any) -> Model:
    config = {
        "model_type": kind,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 4,
        "vocab_size": 80,
        "tie_word_embeddings": False,
        "sliding_window": 16,
    }
    return load_model({**config, **changes})


# --- by hand --------------------------------------------------------------------------------


def test_columns_then_rows_sum_once():
    # Megatron's pair: the first product is split by its columns, the second by its rows
    up = gemm("up", act("x", "batch model"), "batch model, model ffn -> batch ffn")
    down = gemm("down", up.outputs[0], "batch ffn, ffn model -> batch model")
    end = Activation(name="end", inputs=down.outputs)
    graph = shard(one_block(up, down, end), Plan(tp=2))
    assert str(graph) == (
        "hand(x:bf16[batch model])\n"
        "only:\n"
        "  up:bf16[batch ffn/tp] = gemm(x, up.w:bf16[model ffn/tp])\n"
        "  down:bf16[batch model] partial over tp = gemm(up, down.w:bf16[ffn/tp model])\n"
        "  down.all_reduce:bf16[batch model] = all_reduce(down)\n"
        "  end:bf16[batch model] = activation(down.all_reduce)"
    )


def test_a_split_dimension_that_is_needed_whole_is_gathered():
    head = gemm("head", act("x", "batch model"), "batch model, model vocab -> batch vocab")
    sample = Sample(name="sample", inputs=head.outputs)
    graph = shard(one_block(head, sample), Plan(tp=2))
    assert collectives(graph) == ["head.all_gather over tp"]
    gathered = {op.name: op for op, _ in graph.operators}["head.all_gather"]
    # a chip holds half of the 80 logits and ends with all: the buffer is the whole
    assert gathered.work(Plan(tp=2).bind({"batch": 4, "vocab": 80}, {})).sent == 4 * 80 * 2


def test_two_readers_of_a_sum_share_it():
    up = gemm("down", act("x", "batch ffn"), "batch ffn, ffn model -> batch model")
    readers = [Activation(name=name, inputs=up.outputs) for name in "ab"]
    assert collectives(shard(one_block(up, *readers), Plan(tp=2))) == ["down.all_reduce over tp"]


def test_taking_a_part_of_what_is_whole_is_free():
    op = Activation(name="a", inputs=(act("x", "batch ffn"),))
    assert collectives(shard(one_block(op), Plan(tp=2, dp=2))) == []


@pytest.mark.parametrize("plan", [Plan(), Plan(dp=2), Plan(dp=16)])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen3"])
def test_one_chip_and_copies_of_the_model_need_no_collectives(plan, kind):
    assert collectives(shard(dense(kind).decode, plan)) == []


def test_a_graph_on_one_chip_is_the_graph_itself():
    graph = dense().decode
    assert str(shard(graph, Plan())) == str(graph)


# --- with other splits ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NeedsRowsWhole(Activation):
    """Mixes the positions of ``rows``."""

    whole = frozenset({"rows"})


@pytest.fixture
def splits(monkeypatch):
    """Two more dimensions that tensor parallelism splits."""
    for dim in ("rows", "columns"):
        monkeypatch.setitem(plan_module.SPLITS, dim, Split(("tp",)))


def layouts(graph: Graph) -> dict[str, str]:
    return {tensor.name: str(tensor) for op, _ in graph.operators for tensor in op.outputs}


@pytest.mark.usefixtures("splits")
def test_an_axis_splits_one_dimension_of_a_tensor():
    op = Activation(name="a", inputs=(act("x", "rows columns"),))
    assert layouts(shard(one_block(op), Plan(tp=2))) == {"a": "a:bf16[rows/tp columns]"}


@pytest.mark.usefixtures("splits")
def test_a_split_that_moves_is_an_all_to_all():
    first = Activation(name="a", inputs=(act("x", "rows columns"),))
    second = NeedsRowsWhole(name="b", inputs=first.outputs)
    graph = shard(one_block(first, second), Plan(tp=2))
    assert collectives(graph) == ["a.all_to_all over tp"]
    assert layouts(graph) == {
        "a": "a:bf16[rows/tp columns]",
        "a.all_to_all": "a.all_to_all:bf16[rows columns/tp]",
        "b": "b:bf16[rows columns/tp]",
    }
    # half of the rows go out, half of the columns come in: a chip's buffer is its half
    moved = next(op for op, _ in graph.operators if op.name == "a.all_to_all")
    assert moved.work(Plan(tp=2).bind({"rows": 8, "columns": 6}, {})).sent == 8 * 6 * 2 / 2


@pytest.mark.usefixtures("splits")
def test_a_partial_sum_that_is_wanted_in_parts_is_scattered():
    # sequence parallelism (Korthikanti et al. 2022): rows stand for the tokens
    down = gemm("down", act("x", "rows ffn"), "rows ffn, ffn model -> rows model")
    norm = Activation(name="norm", inputs=down.outputs)
    graph = shard(one_block(down, norm), Plan(tp=2))
    assert collectives(graph) == ["down.reduce_scatter over tp"]
    assert layouts(graph)["norm"] == "norm:bf16[rows/tp model]"
    scattered = next(op for op, _ in graph.operators if op.stream == "communication")
    sizes = Plan(tp=2).bind({"rows": 8, "model": 16, "ffn": 4}, {})
    assert scattered.work(sizes).sent == 8 * 16 * 2  # the whole sum goes in


@pytest.mark.usefixtures("splits")
def test_rows_in_parts_are_gathered_before_columns_are_multiplied():
    norm = Activation(name="norm", inputs=(act("x", "rows model"),))
    up = gemm("up", norm.outputs[0], "rows model, model ffn -> rows ffn")
    graph = shard(one_block(norm, up), Plan(tp=2))
    assert collectives(graph) == ["norm.all_gather over tp"]
    assert layouts(graph)["up"] == "up:bf16[rows ffn/tp]"


def two_heads() -> Graph:
    head = gemm("head", act("x", "batch model"), "batch model, model vocab -> batch vocab")
    readers = [Sample(name=f"sample{i}", inputs=head.outputs) for i in range(2)]
    blocks = (Block("a", (head,)), *(Block(f"b{i}", (op,)) for i, op in enumerate(readers)))
    return Graph("two heads", blocks, (act("x", "batch model"),)).check()


def test_what_two_blocks_need_whole_is_gathered_once():
    graph = shard(two_heads(), Plan(tp=2))
    assert collectives(graph) == ["head.all_gather over tp"]
    graph.check()


def test_a_sum_of_partial_sums_is_summed_up_once():
    downs = [
        gemm(n, act(f"{n}.x", "batch ffn"), "batch ffn, ffn model -> batch model") for n in "ab"
    ]
    total = Add(name="total", inputs=tuple(op.outputs[0] for op in downs))
    end = Activation(name="end", inputs=total.outputs)
    assert collectives(shard(one_block(*downs, total, end), Plan(tp=2))) == [
        "total.all_reduce over tp"
    ]


def test_a_partial_sum_and_a_whole_summand_are_not_mixed():
    down = gemm("down", act("x", "batch ffn"), "batch ffn, ffn model -> batch model")
    total = Add(name="total", inputs=(*down.outputs, act("y", "batch model")))
    end = Activation(name="end", inputs=total.outputs)
    assert collectives(shard(one_block(down, total, end), Plan(tp=2))) == [
        "down.all_reduce over tp"
    ]


def test_a_product_of_partial_sums_waits_for_both():
    # Σaᵢ · Σbᵢ is not Σaᵢbᵢ
    downs = [
        gemm(n, act(f"{n}.x", "batch ffn"), "batch ffn, ffn model -> batch model") for n in "ab"
    ]
    product = Scale(name="product", inputs=tuple(op.outputs[0] for op in downs))
    end = Activation(name="end", inputs=product.outputs)
    assert "b.all_reduce over tp" in collectives(shard(one_block(*downs, product, end), Plan(tp=2)))


def test_a_smaller_summand_is_added_once():
    down = gemm("down", act("x", "batch ffn"), "batch ffn, ffn model -> batch model")
    total = Add(name="total", inputs=(*down.outputs, act("shift", "model")))
    end = Activation(name="end", inputs=total.outputs)
    assert collectives(shard(one_block(down, total, end), Plan(tp=2))) == [
        "down.all_reduce over tp"
    ]


def test_a_norm_over_a_split_dimension_needs_its_mean_from_all():
    # the mean square is over all heads: something must be exchanged, here or in the norm
    make = Activation(name="make", inputs=(act("y", "batch heads"),))
    norm = Norm(name="norm", inputs=(*make.outputs, weight("w", "heads")))
    assert collectives(shard(one_block(make, norm), Plan(tp=2))) != []


def test_a_norm_exchanges_four_bytes_a_token_and_nothing_alone():
    make = Activation(name="make", inputs=(act("y", "batch heads head_dim"),))
    whole = Norm(name="norm", inputs=(*make.outputs, weight("w", "heads head_dim")))
    graph = shard(one_block(make, whole), Plan(tp=2))
    exchange = {op.name: op for op, _ in graph.operators}["norm.statistics"]
    numbers = {"batch": 5, "heads": 8, "head_dim": 64}
    sent = exchange.work(Plan(tp=np.array([1, 2])).bind(numbers, {})).sent
    assert list(sent) == [0, 5 * 4]
    # of each head by itself: nothing to exchange
    own = replace(whole, over="head_dim")
    assert collectives(shard(one_block(make, own), Plan(tp=2))) == []


# --- decoders -------------------------------------------------------------------------------

LAYERS = 6
ATTENTION, FFN = ("layer.out", "layer.down")


@pytest.mark.parametrize("tp", [2, 4, 8])
@pytest.mark.parametrize("dp", [1, 2])
@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_has_two_sums_a_layer_and_one_exchange_at_each_end(tp, dp, tied):
    # Shoeybi et al. 2019, section 3: f and g; at 8 chips, 4 KV heads are on two chips each
    graph = shard(dense(tie_word_embeddings=tied).decode, Plan(tp=tp, dp=dp))
    assert collectives(graph) == [
        "embedding.all_reduce over tp",
        "layer.out.all_reduce over tp",
        "layer.down.all_reduce over tp",
        "head.all_gather over tp",
    ]
    counted = Counter()
    for op, count in graph.operators:
        counted[op.kind] += count if isinstance(op, Collective) else 0
    assert counted["all_reduce"] == 1 + 2 * LAYERS
    assert counted["all_gather"] == 1


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3", "phi3", "gemma"])
def test_other_dense_families_have_the_same_collectives(kind):
    found = collectives(shard(dense(kind).decode, Plan(tp=2)))
    assert [name.split(".")[-1] for name in found] == [
        "all_reduce over tp", "all_reduce over tp", "all_reduce over tp", "all_gather over tp"
    ]  # fmt: skip


def test_two_layers_in_a_block_have_four_sums():
    # Gemma 2: a windowed layer and a full one; norms after attention and feed-forward follow
    # the sums, and the gathered logits are the capped ones
    found = collectives(
        shard(dense("gemma2", tie_word_embeddings=True, final_logit_softcapping=30.0).decode,
              Plan(tp=2))
    )  # fmt: skip
    assert found == [
        "embedding.all_reduce over tp",
        "layer.0.out.all_reduce over tp",
        "layer.0.down.all_reduce over tp",
        "layer.1.out.all_reduce over tp",
        "layer.1.down.all_reduce over tp",
        "softcap.all_gather over tp",
    ]


def test_side_by_side_attention_and_feed_forward_share_a_sum():
    # Chowdhery et al. 2022 (PaLM): parallel layers halve the all-reduces
    found = collectives(shard(load_model("command-r-35b").decode, Plan(tp=2)))
    assert found == [
        "embedding.all_reduce over tp",
        "layer.branches.all_reduce over tp",
        "head.all_gather over tp",
    ]


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize("dp", [1, 2, 4])
def test_flop_is_conserved_but_for_what_is_replicated(tp, dp):
    model, plan = dense(), Plan(tp=tp, dp=dp)
    batch, seq, width, head_dim, kv_heads = 4, 8, 32, 4, 4
    tokens = batch * seq
    # every chip normalises everything: once for the first layer, then twice a layer with the
    # residual sum (5 for each number, 4 without), and samples 80 logits of 5
    norms = 4 * tokens * width + 2 * LAYERS * 5 * tokens * width
    replicated = norms + batch * 80 * 5
    # beyond 4 chips keys and values are projected and keys rotated on two chips
    copies = max(tp - kv_heads, 0) * head_dim * tokens * LAYERS
    expected = flop(model.decode, Plan(), model) + (tp - 1) * replicated
    expected += copies * (2 * 2 * width + 3)
    assert flop(shard(model.decode, plan), plan, model) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize("dp", [1, 2])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_conserved_but_for_norms_and_kv_heads(tp, dp, tied):
    model, plan = dense(tie_word_embeddings=tied), Plan(tp=tp, dp=dp)
    width, ffn, head_dim, vocab = 32, 64, 4, 80
    matrices = LAYERS * (width * (8 + 2 * 4) * head_dim + 8 * head_dim * width + 3 * width * ffn)
    matrices += (1 if tied else 2) * vocab * width
    norms = (2 * LAYERS + 1) * width
    assert model.num_parameters == matrices + norms
    copies = LAYERS * max(tp - 4, 0) * 2 * head_dim * width
    graph = shard(model.decode, plan)
    sizes = plan.bind({**STEP, **model.numbers}, graph.derived)
    held = graph.nbytes("weight", sizes) * tp * dp
    assert held == 2 * dp * (matrices + tp * norms + copies)


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize("dp", [1, 2, 4])
def test_the_kv_cache_is_conserved_but_for_replicated_heads(tp, dp):
    model, plan = dense(), Plan(tp=tp, dp=dp)
    graph = shard(model.decode, plan)
    sizes = plan.bind({**STEP, **model.numbers}, graph.derived)
    # key and value × batch 4 × context 32 × max(4, tp) heads of 4 × 2 bytes × 6 layers
    assert graph.nbytes("cache", sizes) * tp * dp == 2 * 4 * 32 * max(4, tp) * 4 * 2 * LAYERS


SHIPPED = ["llama-3.1-8b", "llama-3.1-70b", "gemma-2-27b", "gemma-3-27b", "qwen3-32b", "phi-4"]


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("plan", [Plan(tp=2), Plan(tp=4, dp=2)], ids=str)
def test_sharded_models_are_well_formed(name, plan):
    model = load_model(name)
    graph = shard(model.decode, plan).check()
    sizes = plan.bind({**STEP, **model.numbers}, graph.derived)
    for op, _ in graph.operators:
        # a chip's part of a view is as large as its part of what is seen
        if op.is_view:
            assert sum(t.numel(sizes) for t in op.outputs) == op.inputs[0].numel(sizes)
        # nothing reads what is still to be summed but a collective or a sum
        waiting = [t for t in op.activations if t.partial]
        assert not waiting or isinstance(op, Collective) or {*waiting} <= {*op.summands}, op
        for tensor in (*op.inputs, *op.outputs):
            axes = [axis for dim in tensor.split for axis in dim]
            assert len(axes) == len(set(axes)), tensor


@pytest.mark.parametrize("name", SHIPPED)
def test_a_sharded_graph_unrolled_is_the_unrolled_graph_sharded(name):
    graph, plan = load_model(name).decode, Plan(tp=2)
    one, other = shard(graph, plan).unroll(), shard(graph.unroll(), plan)
    assert [op.name for op, _ in one.operators] == [op.name for op, _ in other.operators]


def test_sharding_depends_on_which_axes_split_and_not_how_far():
    graph = dense().decode
    assert str(shard(graph, Plan(tp=2))) == str(shard(graph, Plan(tp=8)))
