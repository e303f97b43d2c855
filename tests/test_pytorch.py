"""PyTorch modules and Transformers' models, traced without weights, against the config frontend."""

import json
import math
import sys
import warnings
from dataclasses import dataclass

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", minversion="5")
from torch import nn
from torch.nn import functional

from frontends import Precision, Transformer, from_torch, from_transformers, load_config, load_model
from frontends.aten import ATEN
from hardware import SpecError, load_platform
from opgraph import Plan, Workload, cli, simulate
from opgraph.operator import Collective
from opgraph.passes import shard
from opgraph.sizes import Sizes

pytestmark = pytest.mark.filterwarnings("ignore")
transformers.logging.set_verbosity_error()

# one of each architecture, at full width, with as many layers as its pattern needs
LAYERS = {
    "llama-3.1-8b": 2,
    "mistral-7b": 1,
    "qwen3-8b": 1,
    "gemma-3-1b": 6,
    "mixtral-8x7b": 1,
    "qwen3-30b-a3b": 1,
    "deepseek-v3": 4,
    "gpt-oss-20b": 2,
    "mamba2-2.7b": 2,
    "nemotron-h-8b": 8,
    "jamba-v0.1": 8,
    "qwen3-next-80b-a3b": 4,
    "phi-3-mini": 1,
    "falcon-7b": 1,
}
STEPS = {"prefill": (4, 1000, 1000), "decode": (32, 1, 3001)}


def shortened(config, layers):
    """A config with the first layers of a model, in what lists or words it says of each."""
    if layers is None:
        return config
    whole = config["num_hidden_layers"]
    return {
        key: value[:layers] if isinstance(value, list | str) and len(value) == whole else value
        for key, value in config.items()
    } | {"num_hidden_layers": layers}


def sizes(model, phase):
    batch, seq, context = STEPS[phase]
    step = {"batch": batch, "seq": seq, "context": context, "skew": 0.0, "images": 0}
    return Sizes({**model.numbers, **step}, getattr(model, phase).derived)


def flop(model, phase):
    at = sizes(model, phase)
    return sum(op.flop(at) * count for op, count in getattr(model, phase).operators)


def nbytes(model):
    """Bytes of all weights."""
    at = sizes(model, "prefill")
    return sum(tensor.nbytes(at) * count for tensor, count in model.weights)


def agree(ours, theirs):
    assert ours.num_parameters == theirs.num_parameters
    assert ours.num_active_parameters == theirs.num_active_parameters
    assert nbytes(ours) == nbytes(theirs)
    assert ours.kv_bytes_per_token == theirs.kv_bytes_per_token
    for phase in STEPS:
        assert flop(ours, phase) == pytest.approx(flop(theirs, phase), rel=2e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_agree_with_the_config(name):
    config = shortened(load_config(name), LAYERS[name])
    agree(from_transformers(config), load_model(config, precision=Precision()))


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_whole_models_agree_with_the_config(name):
    config = load_config(name)
    agree(from_transformers(config), load_model(name, precision=Precision()))


def test_layers_argument_is_a_shorter_config():
    config = load_config("gemma-3-1b")
    agree(
        from_transformers(config, layers=6),
        load_model(shortened(config, 6), precision=Precision()),
    )


@pytest.mark.slow
def test_whisper_agrees_with_the_config():
    """Encoder in the prefill only, cross-attention over kept keys, in 16-bit floats."""
    ours = from_transformers(load_config("whisper-large-v3"))
    theirs = load_model("whisper-large-v3", precision=Precision())
    agree(ours, theirs)
    assert len(ours.decode.blocks) < len(ours.prefill.blocks)


def whisper(layers=2):
    config = load_config("whisper-large-v3")
    keys = ("encoder_layers", "decoder_layers", "num_hidden_layers")
    return {**config, **{key: layers for key in keys if key in config}}


def test_short_whisper_agrees_with_the_config():
    agree(from_transformers(whisper()), load_model(whisper(), precision=Precision()))


def test_vit_agrees_with_the_published_figures():
    """ViT-B/16: 86,567,656 parameters (torchvision's model card), and the FLOP of its products."""
    config = {"model_type": "vit", "num_labels": 1000}
    model = from_transformers(config)
    assert model.num_parameters == 86_567_656
    batch, width, layers, tokens = STEPS["prefill"][0], 768, 12, 197
    products = 4 * width * width + 2 * width * 4 * width
    each = tokens * products * layers + 2 * tokens * tokens * width * layers
    patches = (tokens - 1) * width * 3 * 16 * 16
    expected = 2 * batch * (each + patches + width * 1000)
    assert flop(model, "prefill") == pytest.approx(expected, rel=0.01)
    assert not list(model.prefill.tensors("cache"))


@pytest.mark.parametrize("name", ["llama-3.1-8b", "mixtral-8x7b", "deepseek-v3"])
def test_same_collectives_and_timeline_as_the_config(name):
    config = shortened(load_config(name), LAYERS[name])
    ours, theirs = from_transformers(config), load_model(config, precision=Precision())
    platform, workload = load_platform("dgx-h100"), Workload(batch=8, prompt=1024, output=16)
    for plan in (Plan(), Plan(tp=4)):
        one, other = (simulate(model, platform, plan, workload) for model in (ours, theirs))
        assert one.ttft == pytest.approx(other.ttft, rel=1e-9)
        assert one.tpot == pytest.approx(other.tpot, rel=1e-9)
        assert one.memory.total == pytest.approx(other.memory.total, rel=1e-9)
        lines = [timeline(report.decode) for report in (one, other)]
        if name == "deepseek-v3":  # independent projections in another order
            lines = [sorted((line[:3], line[4].expected) for line in one) for one in lines]
        assert lines[0] == lines[1]
    for phase in STEPS:
        moved = [transfers(getattr(model, phase)) for model in (ours, theirs)]
        assert moved[0] == moved[1] != []


def transfers(graph):
    sharded = shard(graph, Plan(tp=4)).operators
    return [
        (op.collective, op.axes, sorted(op.outputs[0].dims), n)
        for op, n in sharded
        if isinstance(op, Collective)
    ]


def timeline(step):
    """Kind, stream, count, start and time of the operators, without what costs nothing."""
    return [
        (e.kind, e.stream, e.count, *(pytest.approx(t, rel=1e-9) for t in (e.starts[0], e.time)))
        for e in step.events
        if e.time
    ]


# modules of one's own


@dataclass(frozen=True)
class Shape:
    model: int = 256
    heads: int = 8
    kv_heads: int = 2
    ffn: int = 640

    @property
    def head_dim(self):
        return self.model // self.heads


class Rms(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
        return (wide * self.weight.float()).to(x.dtype)


def rotated(x, places):
    half = x.shape[-1] // 2
    rates = 1 / 10000 ** (torch.arange(half, device=x.device) / half)
    angles = (places[:, None].float() * rates).repeat(1, 2)
    other = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * angles.cos().to(x.dtype) + other * angles.sin().to(x.dtype)


class Layer(nn.Module):
    """A Llama layer as one would write it, attention spelled out or whole."""

    def __init__(self, shape, *, whole=False, fixed=False):
        super().__init__()
        self.shape, self.whole, self.fixed = shape, whole, fixed
        width, kv = shape.model, shape.kv_heads * shape.head_dim
        self.norm1, self.norm2 = Rms(width), Rms(width)
        self.q, self.o = (nn.Linear(width, width, bias=False) for _ in "qo")
        self.k, self.v = (nn.Linear(width, kv, bias=False) for _ in "kv")
        self.gate, self.up = (nn.Linear(width, shape.ffn, bias=False) for _ in range(2))
        self.down = nn.Linear(shape.ffn, width, bias=False)

    def forward(self, x, past_k=None, past_v=None):
        batch, seq, _ = x.shape
        before = 0 if past_k is None or self.fixed else past_k.shape[2]
        places = torch.arange(seq, device=x.device) + before
        normed = self.norm1(x)
        query, key, value = (
            part(normed).view(batch, seq, -1, self.shape.head_dim).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        query, key = rotated(query, places), rotated(key, places)
        if past_k is not None and self.fixed:
            key, value = past_k.index_copy(2, places, key), past_v.index_copy(2, places, value)
        elif past_k is not None:
            key, value = torch.cat([past_k, key], 2), torch.cat([past_v, value], 2)
        mixed = self.attend(query, key, value, places).transpose(1, 2).reshape(batch, seq, -1)
        x = x + self.o(mixed)
        normed = self.norm2(x)
        x = x + self.down(functional.silu(self.gate(normed)) * self.up(normed))
        return x if past_k is None else (x, key, value)

    def attend(self, query, key, value, places):
        group = self.shape.heads // self.shape.kv_heads
        key, value = (x.repeat_interleave(group, 1) for x in (key, value))
        if self.whole:
            return functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        scores = query @ key.transpose(-1, -2) / math.sqrt(self.shape.head_dim)
        seen = torch.arange(key.shape[2], device=key.device) <= places[:, None]
        scores = scores.masked_fill(~seen, float("-inf"))
        return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value


def traced(shape=None, *, cached=False, device="meta", **how):
    shape = shape or Shape()
    with torch.device(device):
        module = Layer(shape, **how).to(torch.bfloat16)
        inputs = [torch.zeros(3, 17, shape.model, dtype=torch.bfloat16)]
        if cached:
            cache = (3, shape.kv_heads, 11, shape.head_dim)
            inputs += [torch.zeros(cache, dtype=torch.bfloat16) for _ in range(2)]
    return from_torch(module, tuple(inputs))


def reference(shape=None):
    """The same layer built from sizes, without what is around the layers of a model."""
    shape = shape or Shape()
    return Transformer(
        layers=1,
        model=shape.model,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        ffn=shape.ffn,
        vocab=2,
    ).to_model()


def matrix_costs(model, phase):
    at = sizes(model, phase)
    kinds = ("gemm", "attention", "rotary", "activation")
    found = [(op, op.work(at)) for op, _ in getattr(model, phase).operators if op.kind in kinds]
    return [(op.kind, w.flop, w.read, w.written) for op, w in found if op.name != "head"]


@pytest.mark.parametrize(
    "how",
    [{}, {"whole": True}, {"cached": True}, {"cached": True, "fixed": True}, {"device": "cpu"}],
)
def test_layer_of_ones_own_is_the_built_one(how):
    model = traced(**how)
    assert model.unnamed == {}
    for phase in STEPS:
        assert matrix_costs(model, phase) == matrix_costs(reference(), phase)
    assert (
        list(transfers(model.prefill))
        == [("all_reduce", ("tp",), ["batch", "model", "seq"], 1)] * 2
    )


def test_open_sizes_take_arrays():
    import numpy as np

    batch = np.array([1, 16, 256])
    platform, plan = load_platform("h100-sxm:1"), Plan()
    many = simulate(traced(), platform, plan, Workload(batch=batch, prompt=100, output=4))
    for index, one in enumerate(batch):
        alone = simulate(traced(), platform, plan, Workload(batch=int(one), prompt=100, output=4))
        assert many.ttft[index] == pytest.approx(alone.ttft, rel=1e-12)
        assert many.tpot[index] == pytest.approx(alone.tpot, rel=1e-12)


def test_flop_of_torchs_own_encoder_layer():
    """Against `FlopCounterMode`, which counts products, on the module as it runs."""
    from torch.utils.flop_counter import FlopCounterMode

    batch, seq, _ = STEPS["prefill"]
    module = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True).eval()
    model = from_torch(module, (torch.zeros(3, 17, 64),))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.train()(torch.zeros(batch, seq, 64))
    at = sizes(model, "prefill")
    ours = sum(op.flop(at) for op, _ in model.prefill.operators if op.unit == "matrix")
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_names_of_open_axes():
    module = nn.Linear(8, 16)
    model = from_torch(
        module,
        {"input": torch.zeros(3, 5, 8)},
        dynamic={"input": ("batch", "seq", None)},
        names={"weight": ("ffn", "model")},
    )
    assert model.numbers == {"ffn": 16, "model": 8}
    (product,) = model.prefill.operators
    assert product[0].outputs[0].dims == ("batch", "seq", "ffn")


class Refused(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.matrix = nn.Linear(8, 8)

    def forward(self, x):
        return self.function(self.matrix(x))


HOSTILE = {
    "an operator that is not known": (torch.fft.fft, "no rule for the operator fft_fft"),
    "a branch on a value": (lambda x: x if x.sum() > 0 else -x, "cannot be traced"),
    "a size from a value": (lambda x: x.nonzero(), "cannot be traced|no rule for"),
    "no tensors": (lambda x: 3, "cannot be traced|returns no tensor"),
    "an exception": (lambda x: 1 / 0, "cannot be traced: ZeroDivisionError"),
    "wrong sizes": (lambda x: x @ torch.zeros(5, 5), "cannot be traced"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_one_clear_error(case):
    function, message = HOSTILE[case]
    with pytest.raises(SpecError, match=message) as caught:
        from_torch(Refused(function), (torch.zeros(3, 8),))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "lama"}, "transformers has no model for this config"),
        ({}, "transformers has no model for this config"),
        ({"model_type": "llama", "num_hidden_layers": "many"}, "transformers|traced"),
        ("no-such-model", "no model 'no-such-model'"),
    ],
)
def test_configs_that_are_none(config, message):
    with pytest.raises(SpecError, match=message):
        from_transformers(config)


def test_wrong_name_of_an_input():
    with pytest.raises(SpecError, match="dynamic names no input 'x'"):
        from_torch(nn.Linear(8, 8), {"input": torch.zeros(3, 8)}, dynamic={"x": ("batch", None)})


def test_table_knows_what_transformers_use():
    assert {"linear", "scaled_dot_product_attention", "embedding", "silu", "topk"} <= set(ATEN)


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run the command line in a folder with code of the user's."""
    (tmp_path / "tiny_models.py").write_text(
        "def llama():\n"
        "    return {'model_type': 'llama', 'num_hidden_layers': 2, 'hidden_size': 64,\n"
        "            'intermediate_size': 128, 'num_attention_heads': 4, 'vocab_size': 100}\n"
        "def nothing():\n"
        "    return 3\n"
    )
    monkeypatch.chdir(tmp_path)

    def call(place):
        words = ["opgraph", "simulate", place, "--platform", "h100-sxm:1", "--json"]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return call


def test_command_line_takes_the_place_of_code(command):
    code, out, _ = command("tiny_models:llama")
    assert code == 0
    assert json.loads(out)["fits"] is True


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("tiny_models:nothing", "returns int"),
        ("tiny_models:missing", "has no function 'missing'"),
        ("no_such_module:llama", "there is no module no_such_module"),
    ],
)
def test_place_of_code_that_is_none(command, place, message):
    code, out, err = command(place)
    assert (code, out) == (2, "")
    assert message in err
