"""Graphs: what is well formed, what is not, networkx, repetition and the text form."""

import inspect
from dataclasses import replace

import networkx as nx
import pytest
from hypothesis import given
from strategies import graphs

from frontends import load_model
from opgraph import graph as graph_module
from opgraph.graph import Block, Builder, Graph, GraphError
from opgraph.operator import Activation, Add, Attention, Einsum, Lookup, Norm, Rotary, View
from opgraph.sizes import Sizes
from opgraph.tensor import Tensor


def act(name: str, dims: str = "batch model", dtype: str = "bf16") -> Tensor:
    return Tensor.of(name, dims, dtype)


def weight(name: str, dims: str, dtype: str = "bf16") -> Tensor:
    return Tensor.of(name, dims, dtype, "weight")


X = act("x")
DOUBLE = Activation(name="double", inputs=(X,))
UP = Einsum(
    name="up", inputs=(X, weight("w", "model ffn")), pattern="batch model, model ffn -> batch ffn"
)


def tiny() -> Graph:
    """An embedding, two layers of one product each, and a sum."""
    build = Builder("tiny")
    tokens = build.input(act("tokens", "batch", "int32"))
    (x,) = build.add(Lookup(name="embedding", inputs=(tokens, weight("table", "vocab model"))))

    def layer(x):
        (wide,) = build.add(
            Einsum(
                name="up", inputs=(x, weight("up.w", "model wide")),
                pattern="batch model, model wide -> batch wide",
            )
        )  # fmt: skip
        (hidden,) = build.add(Activation(name="act", inputs=(wide,), dims="batch ffn"))
        return build.add(
            Einsum(
                name="down", inputs=(hidden, weight("down.w", "ffn model", "fp8")),
                pattern="batch ffn, ffn model -> batch model",
            )
        )  # fmt: skip

    (y,) = build.repeat("layer", 2, layer, x)
    build.add(Add(name="end", inputs=(y, y)))
    build.derive({"wide": "2*ffn"})
    return build.graph()


TINY = """\
tiny(tokens:int32[batch])
  where wide = 2*ffn
stem:
  embedding:bf16[batch model] = lookup(tokens, table:bf16[vocab model])
layer × 2:
  up:bf16[batch wide] = gemm(embedding, up.w:bf16[model wide])
  act:bf16[batch ffn] = activation(up)
  down:bf16[batch model] = gemm(act, down.w:fp8[ffn model])
  embedding ← down
head:
  end:bf16[batch model] = elementwise(down, down)"""

UNROLLED = """\
tiny(tokens:int32[batch])
  where wide = 2*ffn
stem:
  embedding:bf16[batch model] = lookup(tokens, table:bf16[vocab model])
0.layer:
  0.up:bf16[batch wide] = gemm(embedding, 0.up.w:bf16[model wide])
  0.act:bf16[batch ffn] = activation(0.up)
  0.down:bf16[batch model] = gemm(0.act, 0.down.w:fp8[ffn model])
1.layer:
  1.up:bf16[batch wide] = gemm(0.down, 1.up.w:bf16[model wide])
  1.act:bf16[batch ffn] = activation(1.up)
  1.down:bf16[batch model] = gemm(1.act, 1.down.w:fp8[ffn model])
head:
  end:bf16[batch model] = elementwise(1.down, 1.down)"""


# --- text -----------------------------------------------------------------------------------


def test_a_graph_reads_as_text():
    assert str(tiny()) == TINY


def test_an_unrolled_graph_reads_as_text():
    assert str(tiny().unroll()) == UNROLLED


# --- well formed ----------------------------------------------------------------------------


def refused(*blocks: Block, inputs: tuple[Tensor, ...] = (X,)) -> str:
    with pytest.raises(GraphError) as error:
        Graph("bad", blocks, inputs).check()
    assert "\n" not in str(error.value)
    return str(error.value)


def one(*operators, count: int = 1, carried=()) -> Block:
    return Block("block", operators, count, carried)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (one(DOUBLE, DOUBLE), ["two operators", "'double'"]),
        (one(Activation(name="a", inputs=(act("xx"),))), ["a reads 'xx' before", "mean 'x'"]),
        (one(Activation(name="a", inputs=(act("a"),))), ["a reads 'a' before"]),  # a cycle of one
        (
            one(Activation(name="a", inputs=(act("b"),)), Activation(name="b", inputs=(act("a"),))),
            ["a reads 'b' before"],
        ),
        (
            one(Activation(name="a", inputs=(act("x", "batch ffn"),))),
            ["a reads x:bf16[batch ffn]", "made as x:bf16[batch model]"],
        ),
        (
            one(Activation(name="a", inputs=(act("x", "batch model", "fp8"),))),
            ["a reads x:fp8[batch model]", "made as x:bf16[batch model]"],
        ),
        (
            one(UP, replace(UP, name="up2", inputs=(X, weight("w", "model vocab")),
                            pattern="batch model, model vocab -> batch vocab")),
            ["up2 reads w:bf16[model vocab]", "made as w:bf16[model ffn]"],
        ),
        (
            one(replace(UP, inputs=(X, weight("w", "ffn model")))),
            ["up", "reads [model ffn]", "w:bf16[ffn model]"],
        ),
        (one(replace(UP, inputs=(X,))), ["up"]),
        (one(Activation(name="x", inputs=(X,))), ["x", "'x' is made twice"]),
        (one(Norm(name="n", inputs=(X, X, weight("w", "model"))),
             Activation(name="n.sum", inputs=(X,))), ["n.sum", "made twice"]),
        (one(DOUBLE, count=0), ["'block'", "count 0"]),
        (one(DOUBLE, count=-1), ["'block'", "count -1"]),
        (one(DOUBLE, carried=(("x", "duoble"),)), ["'block'", "'duoble'"]),
        (one(DOUBLE, carried=(("y", "double"),)), ["'block'", "'y'"]),
        (one(UP, carried=(("x", "up"),)), ["x:bf16[batch model]", "up:bf16[batch ffn]"]),
    ],
)  # fmt: skip
def test_a_malformed_graph_is_refused_by_name(block, words):
    message = refused(block)
    assert all(word in message for word in words), message


def test_names_are_checked_across_blocks():
    assert "two operators are called 'double'" in refused(one(DOUBLE), one(DOUBLE))


@pytest.mark.parametrize(
    "operator",
    [
        pytest.param(
            replace(UP, pattern="batch model, model ffn -> batch vocab"), id="a result of nowhere",
        ),
        pytest.param(
            replace(UP, inputs=(*UP.inputs, weight("b", "vocab"))), id="a bias that does not fit",
        ),
        pytest.param(Add(name="a", inputs=(X, act("y", "batch ffn"))), id="summands that differ"),
        pytest.param(
            Norm(name="n", inputs=(X, act("y", "batch ffn"), weight("w", "model"))),
            id="a residual that differs",
        ),
        pytest.param(Norm(name="n", inputs=(X, weight("w", "ffn"))), id="a norm of another size"),
        pytest.param(
            Attention(
                name="a",
                inputs=(
                    act("q", "batch seq heads head_dim"), act("k", "batch seq kv_heads head_dim"),
                    act("v", "batch seq kv_heads head_dim"),
                    Tensor.of("kc", "batch context kv_heads other", "bf16", "cache"),
                ),
            ),
            id="a cache of another size",
        ),
    ],
)  # fmt: skip
def test_shapes_that_do_not_agree_are_refused_by_name(operator):
    others = [act("y", "batch ffn"), act("q", "batch seq heads head_dim")]
    others += [act(name, "batch seq kv_heads head_dim") for name in "kv"]
    assert operator.name in refused(one(operator), inputs=(X, *others))


def test_a_pattern_without_an_arrow_is_refused():
    assert "up" in refused(one(replace(UP, pattern="batch model, model ffn")))


@given(graphs())
def test_what_the_generator_makes_is_well_formed_and_stays_so_unrolled(source):
    assert source.check() is source
    source.unroll().check()


def test_an_unrolled_graph_counts_what_the_collapsed_one_counts():
    model = load_model("llama-3.2-1b")
    sizes = Sizes({**model.numbers, "batch": 3, "seq": 5, "context": 9}, model.prefill.derived)
    graph, unrolled = model.prefill, model.prefill.unroll().check()

    def flop(source: Graph) -> float:
        return sum(op.flop(sizes) * count for op, count in source.operators)

    assert flop(unrolled) == flop(graph)
    for role in ("weight", "cache"):
        assert unrolled.nbytes(role, sizes) == graph.nbytes(role, sizes)


def test_a_weight_read_in_and_outside_of_a_block_is_one_weight_however_written():
    tied = Activation(name="a", inputs=(X, weight("w", "model")))
    source = Graph("tied", (one(tied), one(replace(tied, name="b"), count=4)), (X,)).check()
    sizes = Sizes({"batch": 1, "model": 8})
    assert source.nbytes("weight", sizes) == source.unroll().nbytes("weight", sizes)


def test_a_weight_read_in_a_block_and_after_it_is_one_weight_too():
    tied = Activation(name="a", inputs=(X, weight("w", "model")))
    source = Graph("tied", (one(tied, count=4), one(replace(tied, name="b"))), (X,)).check()
    sizes = Sizes({"batch": 1, "model": 8})
    assert source.nbytes("weight", sizes) == source.unroll().nbytes("weight", sizes) == 8 * 2


# --- networkx -------------------------------------------------------------------------------


def test_networkx_holds_operators_and_tensors():
    graph = tiny()
    assert isinstance(graph.nx, nx.DiGraph)
    assert nx.is_directed_acyclic_graph(graph.nx)
    assert list(graph.nx.nodes) == ["embedding", "up", "act", "down", "end"]
    assert set(graph.nx.edges) == {
        ("embedding", "up"), ("up", "act"), ("act", "down"), ("down", "end")
    }  # fmt: skip
    up = graph.nx.nodes["up"]
    assert (up["operator"].kind, up["block"], up["count"]) == ("gemm", "layer", 2)
    assert graph.nx.edges["up", "act"]["tensor"] == act("up", "batch wide")


@pytest.mark.parametrize("name", ["llama-3.1-8b", "gemma-2-27b"])
def test_networkx_of_a_model_is_a_dag_in_program_order(name):
    graph = load_model(name).decode
    order = [op.name for op, _ in graph.operators]
    assert list(graph.nx.nodes) == order
    assert nx.is_directed_acyclic_graph(graph.nx)
    assert nx.is_weakly_connected(graph.nx)
    assert all(order.index(a) < order.index(b) for a, b in graph.nx.edges)


def test_an_edge_tells_of_every_tensor_that_goes_along_it():
    # queries and keys both go from the view to the rotation
    parts = (("q", "batch heads"), ("k", "batch kv_heads"))
    view = View(name="split", inputs=(X,), parts=parts)
    rotary = Rotary(name="rotary", inputs=view.outputs)
    graph = Graph("two", (one(view, rotary),), (X,)).check()
    edges = str(graph.nx.get_edge_data("split", "rotary"))
    assert "split.q" in edges
    assert "split.k" in edges


# --- building -------------------------------------------------------------------------------


def test_a_block_without_operators_is_none():
    build = Builder("empty")
    (x,) = build.repeat("layer", 3, lambda x: (x,), build.input(X))
    assert x == X
    assert build.graph().blocks == ()


def test_a_body_returns_as_much_as_it_takes():
    build = Builder("bad")
    with pytest.raises(ValueError, match="zip"):
        build.repeat("layer", 3, lambda x: (), build.input(X))


def test_the_example_in_the_docstring_runs():
    import doctest

    assert "print(build.graph())" in (inspect.getdoc(Builder) or "")
    assert doctest.testmod(graph_module).failed == 0
