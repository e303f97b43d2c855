"""A model from a handful of sizes: published weights, counts by hand, messages."""

from dataclasses import replace

import numpy as np
import pytest

from frontends import Precision, Transformer, load_model
from hardware import SpecError, load_platform
from opgraph import Plan, Workload, simulate
from opgraph.sizes import Sizes

# what the classes of Bambhaniya et al. 2024 count: no embeddings, routers and norms
_COUNTED = ("qkv", "out", "up", "down", "gate_up")
_MIB = 2**20
_TABLE = {
    # layers, model, heads, kv_heads, ffn, gated, experts, topk -> MiB in int8 (GenZ v1, notebooks)
    "llama-2-7b": ((32, 4096, 32, 32, 11008, True, 0, 0), 6176),
    "mixtral-8x7b": ((32, 4096, 32, 8, 14336, True, 8, 2), 44288),
    "llama-3-70b": ((80, 8192, 64, 8, 28672, True, 0, 0), 65280),
    "gpt-3-175b": ((96, 12288, 96, 96, 49152, False, 0, 0), 165888),
    "gpt-4-1.8t": ((128, 10752, 84, 84, 43008, False, 16, 2), 1862784),
}


def _transformer(name: str) -> Transformer:
    layers, model, heads, kv_heads, ffn, gated, experts, topk = _TABLE[name][0]
    return Transformer(
        name=name,
        layers=layers,
        model=model,
        heads=heads,
        kv_heads=kv_heads,
        ffn=ffn,
        vocab=32000,
        gated=gated,
        experts=experts,
        topk=topk,
        precision=Precision(weights="int8"),
    )


@pytest.mark.parametrize("name", _TABLE)
def test_weights_are_those_of_the_paper(name: str) -> None:
    model = _transformer(name).to_model()
    sizes = Sizes(model.numbers, model.prefill.derived)
    total = sum(
        tensor.nbytes(sizes) * count
        for tensor, count in model.prefill.tensors("weight")
        if tensor.name.removesuffix(".weight").rpartition(".")[2].removeprefix("experts_")
        in _COUNTED
    )
    assert total == _TABLE[name][1] * _MIB


def test_sizes_of_a_known_model_give_that_model() -> None:
    own = Transformer(
        layers=32, model=4096, heads=32, kv_heads=8, ffn=14336, vocab=128256
    ).to_model()
    llama = load_model("llama-3.1-8b")
    assert own.num_parameters == llama.num_parameters
    assert own.kv_bytes_per_token == llama.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2
    platform, workload = load_platform("dgx-h100"), Workload(batch=4, prompt=512, output=8)
    mine, theirs = (simulate(m, platform, Plan(tp=2), workload) for m in (own, llama))
    assert (mine.ttft, mine.tpot) == (theirs.ttft, theirs.tpot)


def test_parameters_by_hand() -> None:
    # attention 8*(8 + 2*4 + 8), channel 2*8*32, three norms in all; embedding tied
    tiny = Transformer(
        layers=1, model=8, heads=2, kv_heads=1, ffn=32, vocab=100, gated=False, tied=True
    )
    assert tiny.to_model().num_parameters == 8 * (8 + 8 + 8) + 2 * 8 * 32 + 3 * 8 + 800
    # three matrices per expert, one router row per expert, one shared expert
    experts = replace(tiny, gated=True, experts=4, topk=2, expert_ffn=16, shared_experts=1)
    model = experts.to_model()
    assert model.num_parameters == 8 * 24 + 5 * 3 * 8 * 16 + 4 * 8 + 3 * 8 + 800
    assert model.num_active_parameters == model.num_parameters - 2 * 3 * 8 * 16


def test_head_dim_and_norm_are_as_given() -> None:
    wide = Transformer(layers=1, model=8, heads=2, ffn=8, vocab=10, head_dim=16, norm="layer")
    # four projections of 8 × 32, three matrices of 8 × 8, three norms of two vectors, both ends
    assert wide.to_model().num_parameters == 4 * 8 * 32 + 3 * 64 + 3 * 16 + 2 * 80


def test_simulates_like_a_model_and_over_arrays() -> None:
    platform = load_platform("dgx-h100")
    model = Transformer(layers=4, model=1024, heads=8, ffn=4096, vocab=1000, experts=8, topk=2)
    batch = np.array([1, 2, 64])
    many = simulate(model, platform, Plan(tp=2), Workload(batch=batch, prompt=128, output=4))
    for index, size in enumerate(batch):
        one = simulate(model, platform, Plan(tp=2), Workload(batch=int(size), prompt=128, output=4))
        assert one.ttft == pytest.approx(many.ttft[index], rel=1e-12)
        assert one.tpot == pytest.approx(many.tpot[index], rel=1e-12)
    assert model.to_model() is model.to_model()


def test_a_window_bounds_the_work() -> None:
    platform = load_platform("dgx-h100")
    whole = Transformer(layers=4, model=1024, heads=8, ffn=4096, vocab=1000)
    workload = Workload(batch=8, prompt=16384, output=4)
    near = simulate(replace(whole, window=256), platform, workload=workload)
    far = simulate(whole, platform, workload=workload)
    assert near.ttft < far.ttft
    assert near.memory.kv_cache == pytest.approx(far.memory.kv_cache * 256 / (16384 + 16))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers=0 must be a whole number from 1"),
        ({"model": 4.5}, "model=4.5 must be a whole number"),
        ({"vocab": True}, "vocab=True must be a whole number"),
        ({"window": -1}, "window=-1 must be a whole number from 0"),
        ({"heads": 3}, "model=8 is not a multiple of heads=3"),
        ({"kv_heads": 3}, "kv_heads=3 does not divide heads=2"),
        ({"kv_heads": 0}, "kv_heads=0 must be a whole number from 1"),
        ({"experts": 4}, "topk=0 does not go with experts=4"),
        ({"topk": 2}, "topk=2 does not go with experts=0"),
        ({"experts": 2, "topk": 3}, "topk=3 does not go with experts=2"),
        ({"shared_experts": 1}, "experts=0 has neither"),
        ({"norm": "batch"}, "norm='batch' must be 'rms' or 'layer'"),
    ],
)
def test_a_wrong_size_names_its_field(changes: dict[str, object], message: str) -> None:
    sizes = {"layers": 1, "model": 8, "heads": 2, "ffn": 8, "vocab": 10, **changes}
    with pytest.raises(SpecError, match=message.replace("(", r"\(")):
        Transformer(name="mine", **sizes)  # type: ignore[arg-type]
