"""Plans in any combination: what is conserved, what is sent, and when stages run."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontends import load_model
from hardware import SpecError, load_platform
from opgraph import Plan, Workload, best_plans, simulate
from opgraph.model import Model
from opgraph.operator import Collective
from opgraph.passes import shard
from opgraph.pipeline import Pipeline
from opgraph.routing import imbalance, popularity, slots, touched_experts
from opgraph.stages import cut, even, num_layers

BF16 = 2
DEGREES = (1, 2, 4, 8)
SHAPE = {"hidden_size": 64, "intermediate_size": 512, "num_hidden_layers": 8, "vocab_size": 1024,
         "num_attention_heads": 64, "num_key_value_heads": 64, "head_dim": 8,
         "tie_word_embeddings": False}  # fmt: skip


@cache
def dense() -> Model:
    return load_model({"model_type": "llama", **SHAPE})


@cache
def sparse() -> Model:
    return load_model(
        {"model_type": "mixtral", **SHAPE, "num_local_experts": 64, "num_experts_per_tok": 4}
    )


@st.composite
def plans(draw: st.DrawFn, *, experts: bool = False) -> Plan:
    """Any combination of up to 64 chips."""
    degrees = {axis: draw(st.sampled_from(DEGREES)) for axis in ("tp", "cp", "attention_dp", "dp")}
    stage = degrees["tp"] * degrees["cp"] * degrees["attention_dp"]
    while stage * degrees["dp"] > 64:
        axis = max(degrees, key=lambda name: degrees[name])
        degrees[axis] //= 2
        stage = degrees["tp"] * degrees["cp"] * degrees["attention_dp"]
    ep = draw(st.sampled_from([n for n in (1, 2, 4, 8, 16, 32, 64) if stage % n == 0]))
    pp = draw(st.sampled_from([n for n in (1, 2, 4) if stage * degrees["dp"] * n <= 64]))
    order = draw(st.permutations(("tp", "cp", "attention_dp", "pp", "dp")))
    return Plan(**degrees, pp=pp, ep=ep if experts else 1, sp=draw(st.booleans()), order=order)


# --- the mesh -------------------------------------------------------------------------------


@given(plans(experts=True))
def test_the_mesh_is_both_arrangements_of_the_same_chips(plan):
    sizes = {axis: size for axis, (size, _) in plan.mesh.items()}
    for axis in ("tp", "cp", "attention_dp"):
        assert sizes[axis] * sizes[f"{axis}.ep"] == getattr(plan, axis)
    assert np.prod([sizes[f"{axis}.ep"] for axis in ("tp", "cp", "attention_dp")]) == plan.ep
    assert np.prod(list(sizes.values())) == plan.num_chips
    # strides: every chip has one place in the mesh, so that all places together are all chips
    places = [0]
    for size, stride in plan.mesh.values():
        places = [place + i * stride for place in places for i in range(size)]
    assert sorted(places) == list(range(plan.num_chips))


def test_experts_are_split_over_the_chips_of_attention_copies():
    plan = Plan(tp=4, ep=8)
    assert (plan.attention_dp, plan.num_chips) == (2, 8)
    assert {a: s for a, s in plan.mesh.items() if s[0] > 1} == {
        "tp.ep": (4, 1),
        "attention_dp.ep": (2, 4),
    }
    # four of eight chips share an expert's columns
    assert Plan(tp=8, ep=2).mesh["tp"] == (4, 1)
    assert Plan(tp=8, ep=2).mesh["tp.ep"] == (2, 4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tp": 2, "ep": 3}, ["ep=3", "tp × cp = 2", "attention_dp"]),
        ({"tp": 8, "ep": 3, "attention_dp": 1}, ["ep=3", "8 chips of a stage"]),
        ({"tp": 4, "attention_dp": 3, "ep": 4}, ["ep=4", "unevenly"]),
        ({"order": ("tp", "pp")}, ["order", "each of"]),
        ({"order": ("tp", "cp", "attention_dp", "pp", "pd")}, ["'pd'", "known: attention_dp"]),
        ({"pp": 2, "layers": (1, 2, 3)}, ["layers", "give 2 numbers"]),
        ({"microbatches": 0}, ["microbatches=0"]),
        ({"interleave": 0}, ["interleave=0"]),
        ({"redundant_experts": -1}, ["redundant_experts=-1"]),
    ],
)
def test_plans_that_make_no_sense(fields, words):
    with pytest.raises(SpecError) as error:
        Plan(**fields)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(ep=8), ["ep=8", "no experts"]),
        (Plan(redundant_experts=8), ["redundant_experts=8", "no experts"]),
        (Plan(pp=2, layers=(3, 4)), ["stages of 3, 4 layers hold 7", "has 8"]),
        (Plan(tp=128), ["128 chips", "has 64"]),
    ],
)
def test_plans_that_the_model_or_the_platform_does_not_allow(plan, words):
    with pytest.raises(SpecError) as error:
        simulate(dense(), load_platform("dgx-h100:8"), plan)
    assert all(word in str(error.value) for word in words), error.value


def test_redundant_experts_that_do_not_divide_are_told_how_many_would():
    with pytest.raises(SpecError, match="so would redundant_experts=16"):
        simulate(sparse(), load_platform("dgx-h100:2"), Plan(ep=16, redundant_experts=7))


def test_experts_that_do_not_divide_are_told_how_many_copies_would():
    with pytest.raises(SpecError, match="redundant_experts=8"):
        simulate(sparse(), load_platform("gb200-nvl72"), Plan(ep=9))
    report = simulate(sparse(), load_platform("gb200-nvl72"), Plan(ep=9, redundant_experts=8))
    alone = simulate(sparse(), load_platform("gb200-nvl72"))
    assert report.memory.by_class["experts"] * 9 / 72 == pytest.approx(
        alone.memory.by_class["experts"] / 64
    )


# --- conservation ---------------------------------------------------------------------------

WORKLOAD = {"batch": 64, "images": 0, "skew": 0.0}


@settings(deadline=None, max_examples=60)
@given(plans(experts=True), st.booleans(), st.sampled_from([dense, sparse]))
def test_work_and_memory_are_conserved(plan, decodes, make):
    """What all chips do together is the whole, times the chips of axes that split none of it."""
    model = make()
    if make is dense and plan.ep > 1:
        return
    graph = model.decode if decodes else model.prefill
    seq, context = (1, 512) if decodes else (512, 512)
    numbers = {**model.numbers, **WORKLOAD, "seq": seq, "context": context}
    whole = Plan().bind(numbers, graph.derived, decodes)
    sizes = plan.bind(numbers, graph.derived, decodes)
    before = {op.name: op for op, _ in graph.operators}
    ways = {axis: size for axis, (size, _) in plan.mesh.items()}
    for op, _ in shard(graph, plan, decodes=decodes).operators:
        if isinstance(op, Collective) or op.is_view:
            continue
        used = {axis for tensor in op.inputs for axes in tensor.split for axis in axes}
        copies = np.prod([size for axis, size in ways.items() if axis not in used and axis != "pp"])
        chips = plan.num_chips / plan.pp
        expected = before[op.name].flop(whole) * copies
        assert op.flop(sizes) * chips == pytest.approx(expected, rel=1e-9), op
        for tensor, one in zip(op.inputs, before[op.name].inputs, strict=True):
            if tensor.role != "activation":
                share = np.prod([ways[a] for axes in tensor.split for a in axes])
                assert tensor.nbytes(sizes) * share == pytest.approx(one.nbytes(whole), rel=1e-9)


@settings(deadline=None, max_examples=40)
@given(plans(experts=True), st.sampled_from([dense, sparse]))
def test_any_combination_simulates_and_no_stream_runs_two_at_once(plan, make):
    if make is dense and plan.ep > 1:
        return
    work = Workload(batch=64, prompt=512, output=8)
    report = simulate(make(), load_platform("dgx-h100:8"), plan, work)
    for timeline in (report.prefill, report.decode):
        by_stream: dict[str, list[tuple[float, float]]] = {}
        for event in timeline.events:
            spans = by_stream.setdefault(event.stream, [])
            spans += [(float(s), float(s + event.time)) for s in event.starts.ravel()]
        end = max(last for spans in by_stream.values() for _, last in spans)
        for spans in by_stream.values():
            assert all(one[1] <= two[0] + 1e-12 for one, two in pairwise(sorted(spans)))
            busy = sum(last - first for first, last in spans)
            assert busy <= timeline.time * (1 + 1e-9)
        if timeline is report.prefill:
            assert end == pytest.approx(timeline.time, rel=1e-9)
    if plan.num_chips == 1:
        assert not any(event.kind in ("all_reduce", "send") for event in report.decode.events)


@settings(deadline=None, max_examples=30)
@given(plans(experts=True), st.sampled_from(["prefill", "decode"]))
def test_weights_and_caches_of_all_stages_are_the_whole(plan, phase):
    model = sparse()
    work = Workload(batch=64, prompt=512, output=16)
    point = simulate(model, load_platform("dgx-h100:8"), plan, work).point
    sizes = point.sizes(phase, 528, whole=True)
    ways = {axis: size for axis, (size, _) in plan.mesh.items()}
    held = sum(
        tensor.nbytes(sizes) * count * np.prod([ways[a] for axes in tensor.split for a in axes])
        for piece in point.pieces(phase)
        for tensor, count in piece.graph.tensors("weight")
    )
    assert held == pytest.approx(model.num_parameters * BF16)


# --- what is sent ---------------------------------------------------------------------------


def sent(model: Model, plan: Plan, *, decodes: bool, tokens: int = 64) -> dict[str, float]:
    """Kind of collective → bytes of the buffer of one chip, over the whole step of all stages."""
    seq = 1 if decodes else 8
    work = {"batch": tokens // seq, "images": 0, "skew": 0.0, "seq": seq, "context": 8}
    graph = model.decode if decodes else model.prefill
    sizes = plan.bind({**model.numbers, **work}, graph.derived, decodes)
    totals: dict[str, float] = {}
    for op, count in shard(graph, plan, decodes=decodes).operators:
        if isinstance(op, Collective):
            totals[op.kind] = totals.get(op.kind, 0.0) + op.work(sizes).sent * count
    return totals


LAYERS, HIDDEN, VOCAB, TOPK = 8, 64, 1024, 4


@pytest.mark.parametrize("tp", [2, 8])
def test_tensor_parallelism_sums_twice_a_layer_and_once_for_the_embedding(tp):
    message = 64 * HIDDEN * BF16
    found = sent(dense(), Plan(tp=tp), decodes=True)
    assert found == {"all_reduce": (2 * LAYERS + 1) * message, "all_gather": 64 * VOCAB * BF16}


def test_sequence_parallelism_scatters_and_gathers_instead():
    message = 64 * HIDDEN * BF16
    found = sent(dense(), Plan(tp=4, sp=True), decodes=False)
    assert found["reduce_scatter"] == (2 * LAYERS + 1) * message
    logits = 8 * VOCAB * BF16
    assert found["all_gather"] == 2 * LAYERS * message + logits
    # only the last position of the sequences, which one chip has
    assert found["all_reduce"] == 8 * HIDDEN * BF16


@pytest.mark.parametrize("ep", [2, 8])
def test_experts_of_attention_copies_exchange_rows_all_to_all(ep):
    rows = 64 / ep * TOPK * HIDDEN * BF16
    # a chip sends its tokens' rows, and gets as many; then they go back
    assert sent(sparse(), Plan(ep=ep), decodes=True) == {"all_to_all": 2 * LAYERS * rows}


def test_experts_among_chips_that_have_every_token_need_one_sum():
    found = sent(sparse(), Plan(tp=8, ep=8), decodes=True)
    assert found["all_reduce"] == (2 * LAYERS + 1) * 64 * HIDDEN * BF16
    assert "all_to_all" not in found


@pytest.mark.parametrize("cp", [2, 4])
def test_context_parallelism_gathers_keys_and_values(cp):
    keys = 64 * 64 * 8 * BF16
    found = sent(dense(), Plan(cp=cp), decodes=False)
    assert found["all_gather"] == 2 * LAYERS * keys
    # in decode each chip attends to its part of the cache
    found = sent(dense(), Plan(cp=cp), decodes=True)
    assert found == {"all_reduce": LAYERS * 64 * 64 * 8 * BF16}


def test_a_skewed_choice_of_experts_slows_the_exchange_as_it_does_the_experts():
    skewed, even_ = (
        simulate(sparse(), load_platform("dgx-h100"), Plan(ep=8), Workload(batch=64, skew=s))
        for s in (1.0, 0.0)
    )
    found = [
        {e.name: e.work.sent for e in report.decode.events if e.kind == "all_to_all"}
        for report in (skewed, even_)
    ]
    factor = imbalance(64, TOPK, 1.0, 8)
    assert factor > 1.2
    for name, nbytes in found[0].items():
        assert nbytes == pytest.approx(factor * found[1][name])


# --- experts in several copies --------------------------------------------------------------


@given(st.integers(0, 64), st.floats(0, 2))
def test_copies_of_experts_share_their_rows(redundant, skew):
    found = slots(64, 4, skew, redundant)
    assert len(found) == 64 + redundant
    assert found.sum() == pytest.approx(4)
    assert np.all(np.diff(found) <= 1e-12)
    assert found[0] <= popularity(64, 4, skew)[0] + 1e-12


def test_copies_of_popular_experts_even_out_the_chips_by_hand():
    # chances 6, 3, 2 of 11; a second copy of the first: 3, 3, 3, 2; two chips get 3 + 3, 3 + 2
    assert imbalance(3, 1, 1.0, 2, 1) == pytest.approx(2 * 6 / 11)
    assert imbalance(3, 1, 1.0, 2, 1) < imbalance(3, 1, 1.0, 2)
    one_token = touched_experts(3, 1, 1.0, 2, 1, 1)
    assert one_token == pytest.approx(6 / 11)


# --- pipelines ------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 4), st.floats(0.1, 9), st.floats(0, 9))
def test_a_pipeline_of_equal_stages_takes_what_the_formula_says(stages, pieces, groups, time, send):
    """Fill, steady state and drain: (M·v + S − 1)·t for M microbatches in whole groups of S, v
    pieces a stage (Narayanan et al. 2021, section 2.2), transfers for free.
    """
    count = groups * stages
    pipeline = Pipeline(stages, stages * pieces, count, decodes=False)
    run = pipeline.run([time] * stages * pieces, [0.0] * stages * pieces)
    assert run.time == pytest.approx((count * pieces + stages - 1) * time)
    # in decode, a round of M microbatches: as long as a stage is busy or one token under way
    pipeline = Pipeline(stages, stages, count, decodes=True)
    run = pipeline.run([time] * stages, [send] * stages)
    assert run.time == pytest.approx(max(count * max(time, send), stages * (time + send)))


@given(st.lists(st.floats(0.1, 9), min_size=1, max_size=6), st.integers(1, 9), st.floats(0, 5))
def test_unequal_stages_wait_for_the_slowest(times, count, send):
    pipeline = Pipeline(len(times), len(times), count, decodes=False)
    run = pipeline.run(times, [send] * len(times))
    transfers = send * (len(times) - 1)
    slowest = max(*times, send) if len(times) > 1 else times[0]
    last = pipeline.run(times, [send] * (len(times) - 1) + [0.0]).time
    assert last == pytest.approx(sum(times) + transfers + (count - 1) * slowest)
    assert run.time >= last - 1e-9


@pytest.mark.parametrize("name", ["llama-3.1-8b", "gemma-3-27b", "deepseek-v3", "whisper-large-v3",
                                  "jamba-1.5-large", "gpt-oss-20b"])  # fmt: skip
@pytest.mark.parametrize("pieces", [2, 3, 5])
def test_pieces_of_a_graph_are_the_graph(name, pieces):
    model = load_model(name)
    for decodes, graph in ((False, model.prefill), (True, model.decode)):
        parts = cut(graph, even(num_layers(graph), pieces), decodes=decodes)
        assert all(part.check() is part for part in parts)
        ops = sum(len(b.operators) * b.count for p in parts for b in p.blocks if b.name != "send")
        assert ops == sum(len(b.operators) * b.count for b in graph.blocks)
        numbers = {**model.numbers, "batch": 1, "seq": 1, "context": 8, "images": 0, "skew": 0.0,
                   "source": 8}  # fmt: skip
        sizes = Plan().bind(numbers, graph.derived, decodes)
        whole = sum(op.flop(sizes) * count for op, count in graph.operators)
        assert sum(
            op.flop(sizes) * count for part in parts for op, count in part.operators
        ) == pytest.approx(whole, rel=1e-12)


def test_one_microbatch_in_stages_takes_as_long_as_without_them_but_for_the_transfers():
    work = Workload(batch=1, prompt=256, output=4)
    platform = load_platform("dgx-h100")
    alone = simulate(dense(), platform, Plan(), work)
    staged = simulate(dense(), platform, Plan(pp=4), work)
    sends = [event for event in staged.prefill.events if event.kind == "send"]
    # hidden state and residual from three of four stages
    assert len(sends) == 2 * 3
    assert {float(event.work.sent) for event in sends} == {256 * HIDDEN * BF16}
    assert staged.ttft == pytest.approx(alone.ttft + sum(float(e.time) for e in sends))


def test_what_crosses_nodes_is_what_lies_on_two_nodes():
    # two stages of four chips to a node of eight: stages 0 and 1 on one, stage 2 on the other
    platform, prompt = load_platform("dgx-h100:2"), 64
    plan = Plan(tp=4, pp=3, interleave=2, microbatches=1)
    report = simulate(dense(), platform, plan, Workload(prompt=prompt))
    node, hidden = [0, 0, 1], SHAPE["hidden_size"] * BF16 / 4
    for timeline, tokens in ((report.prefill, prompt), (report.decode, 1)):
        sends = {(e.name.split(".")[0], e.name): e for e in timeline.events if e.kind == "send"}
        assert {piece for piece, _ in sends} >= set("01234")
        for (piece, _), event in sends.items():
            # the last piece sends tokens of 4 bytes
            nbytes = 4 if piece == "5" else tokens * hidden
            apart = node[int(piece) % 3] != node[(int(piece) + 1) % 3]
            time = 3e-6 + nbytes / 50e9 if apart else 1e-6 + nbytes / 450e9
            assert event.time == pytest.approx(time, rel=1e-9)


def test_a_tied_embedding_is_on_a_stage_once():
    shape = SHAPE | {"tie_word_embeddings": True}
    model, platform = load_model({"model_type": "llama", **shape}), load_platform("dgx-h100")
    table = SHAPE["vocab_size"] * SHAPE["hidden_size"] * BF16
    for plan in (Plan(), Plan(interleave=4), Plan(pp=2), Plan(pp=2, interleave=2)):
        memory = simulate(model, platform, plan).memory
        assert memory.by_class["embedding and head"] == table


def test_stages_with_layers_of_their_own():
    report = simulate(
        dense(), load_platform("dgx-h100"), Plan(pp=2, layers=(5, 3)), Workload(batch=4)
    )
    counts = {e.name: e.count // e.rounds for e in report.prefill.events if "qkv" in e.name}
    assert counts == {"0.layer.qkv": 5, "1.layer.qkv": 3}


def test_an_array_of_plans_is_each_of_them():
    tp, pp = np.array([1, 2, 4])[:, None], np.array([1, 2, 4])
    batch = np.array([1, 6, 64])[:, None, None]
    platform = load_platform("dgx-h100:4")
    work = {"prompt": 300, "output": 20}
    whole = simulate(
        sparse(), platform, Plan(tp=tp, pp=pp, ep=2 * tp), Workload(batch=batch, **work)
    )
    for index in np.ndindex(3, 3, 3):
        plan = Plan(tp=int(tp[index[1], 0]), pp=int(pp[index[2]]), ep=2 * int(tp[index[1], 0]))
        one = simulate(sparse(), platform, plan, Workload(batch=int(batch[index[0], 0, 0]), **work))
        for name in ("ttft", "tpot"):
            assert getattr(whole, name)[index] == pytest.approx(getattr(one, name), rel=1e-12)
        assert whole.memory.total[index] == pytest.approx(one.memory.total, rel=1e-12)
        assert whole.at(*index).tpot == one.tpot


@pytest.mark.parametrize("overlap", ["", "two-batch", "chunked"])
def test_plans_that_use_other_axes_do_not_change_each_other(overlap):
    # transfers of an axis of one chip are none: nothing is cut or issued otherwise for their sake
    degrees = {"tp": [1, 4, 1, 2, 16], "cp": [1, 1, 2, 2, 1], "attention_dp": [2, 2, 4, 1, 1],
               "ep": [2, 4, 1, 4, 16]}  # fmt: skip
    model, platform = load_model("deepseek-v3"), load_platform("dgx-h200:2")
    work = Workload(batch=49, prompt=2349, output=3)
    arrays = {axis: np.array(some) for axis, some in degrees.items()}
    whole = simulate(model, platform, Plan(overlap=overlap, **arrays), work)
    for i in range(5):
        plan = Plan(overlap=overlap, **{axis: some[i] for axis, some in degrees.items()})
        one = simulate(model, platform, plan, work)
        figures = (
            (whole.ttft, one.ttft),
            (whole.tpot, one.tpot),
            (whole.memory.total, one.memory.total),
        )
        for of_all, of_one in figures:
            assert of_all[i] == pytest.approx(of_one, rel=1e-12)


def test_timelines_of_an_array_of_pipelines_are_those_of_each():
    platform, batches = load_platform("dgx-h100"), (4, 16)
    plan = Plan(tp=2, pp=2)
    whole = simulate(dense(), platform, plan, Workload(batch=np.array(batches)))
    for i, batch in enumerate(batches):
        one = simulate(dense(), platform, plan, Workload(batch=batch))
        assert whole.decode.time[i] == pytest.approx(one.decode.time, rel=1e-12)
        assert whole.energy[i] == pytest.approx(one.energy, rel=1e-12)


@pytest.mark.parametrize("plan", [{"pp": np.array([1, 2])},
                                  {"pp": 2, "microbatches": np.array([1, 4])}])  # fmt: skip
def test_unlike_pipelines_have_no_timeline_in_common(plan):
    report = simulate(dense(), load_platform("dgx-h100"), Plan(**plan), Workload(batch=8))
    for phase in ("prefill", "decode"):
        with pytest.raises(SpecError, match=r"report\.at"):
            getattr(report, phase)
    assert report.at(0).decode.time > 0


def test_moving_an_axis_over_slower_links_costs():
    work, platform = Workload(batch=32, prompt=512, output=8), load_platform("dgx-h100:2")
    inside = simulate(dense(), platform, Plan(tp=2, dp=8), work)
    order = ("dp", "tp", "cp", "attention_dp", "pp")
    across = simulate(dense(), platform, Plan(tp=2, dp=8, order=order), work)
    assert across.ttft > 1.1 * inside.ttft


# --- what fits, and the best plan -----------------------------------------------------------


@pytest.mark.parametrize("plan", [Plan(tp=8), Plan(tp=2, pp=4), Plan(tp=4, dp=2)])
def test_the_largest_batch_fits_and_one_more_does_not(plan):
    model, platform = load_model("llama-3.1-70b"), load_platform("dgx-h100")

    def fits(batch: int, prompt: int = 2048) -> bool:
        return bool(simulate(model, platform, plan, Workload(batch=batch, prompt=prompt)).fits)

    report = simulate(model, platform, plan, Workload(batch=4))
    most = report.max_batch
    assert fits(most)
    assert not fits(most + plan.dp * plan.pp)
    longest = report.max_context - 256
    assert fits(4, longest)
    assert not fits(4, longest + 16)


def test_no_batch_fits_where_the_weights_do_not():
    report = simulate(load_model("llama-3.1-405b"), load_platform("dgx-h100"), Plan(tp=8))
    assert (report.max_batch, report.max_context) == (0, 0)


@cache
def search():
    return best_plans(
        sparse(), load_platform("dgx-h100"), Workload(prompt=256, output=16), slo_tpot=1e-3
    )


def test_every_plan_found_uses_all_chips_and_keeps_the_slo():
    table = search().table
    chips = table["tp"] * table["pp"] * table["cp"] * table["attention_dp"] * table["dp"]
    assert set(chips) == {8}
    assert table["tpot_ms"].max() <= 1
    assert table["tokens_per_s_per_chip"].is_monotonic_decreasing
    # no plan is missing: every way to write 8 as four degrees, and every split of experts
    everything = {
        (tp, pp, copies, ep)
        for tp in DEGREES for pp in DEGREES for copies in DEGREES
        if 8 % (tp * pp * copies) == 0
        for ep in DEGREES if (tp * copies) % ep == 0
    }  # fmt: skip
    kept = set(map(tuple, table[["tp", "pp", "attention_dp", "ep"]].to_numpy().tolist()))
    assert kept == everything


def test_the_rows_of_a_search_are_what_simulate_says():
    found = search()
    for row in range(0, len(found.table), 37):
        report, told = found.report(row), found.table.iloc[row]
        assert report.ttft * 1e3 == pytest.approx(told["ttft_ms"], rel=1e-12)
        assert report.tpot * 1e3 == pytest.approx(told["tpot_ms"], rel=1e-12)
        assert report.throughput_per_chip == pytest.approx(told["tokens_per_s_per_chip"])


def test_the_front_is_what_nothing_beats():
    table = search().table
    users, chips = (table[f"tokens_per_s_per_{what}"].to_numpy() for what in ("user", "chip"))
    beaten = [
        np.any((users >= u) & (chips >= c) & ((users > u) | (chips > c)))
        for u, c in zip(users, chips, strict=True)
    ]
    assert not np.any(np.array(beaten) & table["pareto"].to_numpy())
    front = search().pareto
    assert len(front) > 3
    assert front["tokens_per_s_per_chip"].is_monotonic_increasing


def test_a_search_that_finds_nothing_says_why():
    none = best_plans(load_model("llama-3.1-405b"), load_platform("h100-sxm:4"))
    assert not len(none.table)
    with pytest.raises(SpecError, match="does not fit"):
        _ = none.best
    late = best_plans(dense(), load_platform("h100-sxm:2"), slo_tpot=1e-12)
    with pytest.raises(SpecError, match="SLO"):
        _ = late.best


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "speed"}, ["'speed'", "throughput"]),
        ({"slo_ttft": 0}, ["slo_ttft", "above 0"]),
        ({"slo_tpot": float("nan")}, ["slo_tpot"]),
        ({"slo_tpot": "fast"}, ["slo_tpot", "'fast'"]),
        ({"objective": None}, ["None", "throughput"]),
        ({"axes": ("tp", "ep")}, ["'ep'"]),
        ({"axes": ()}, ["axes", "tp"]),
        ({"batch": np.array([1, 2])}, ["(2,)"]),
        ({"workload": Workload(prompt=np.array([10, 20]))}, ["(2,)"]),
        ({"workload": 3}, ["best_plans", "workload"]),
        ({"plan": 3}, ["best_plans", "plan"]),
    ],
)
def test_searches_that_make_no_sense(options, words):
    with pytest.raises(SpecError) as error:
        best_plans(dense(), load_platform("h100-sxm:2"), **options)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("name", ["host", "reserve", "offload"])
def test_settings_of_another_kind_are_named(name):
    with pytest.raises(SpecError, match=rf"{name} must be a {name.title()}\(\.\.\.\), not 0\.1"):
        simulate(dense(), load_platform("dgx-h100"), **{name: 0.1})
