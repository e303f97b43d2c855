"""Hugging Face models by their config: built without weights, traced whole at full size.

What ``transformers`` lets one choose an implementation of (attention, experts, kernels of
recurrences) is traced as one operator; the rest is whatever the model's code does.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from frontends.imported import Imported, to_model
from frontends.lowering import Call, Lowering, aten
from frontends.naming import Names
from frontends.program import Value
from frontends.pytorch import needs_torch, traced
from hardware import SpecError

if TYPE_CHECKING:
    import torch

# what the inputs of an example are as large as; any number from 2 on that divides nothing by chance
_BATCH, _SEQ = 3, 67

_SCHEMAS = {
    "attention": "(Tensor q, Tensor k, Tensor v, Tensor? sinks, int window, bool causal) -> Tensor",
    "experts": "(Tensor x, Tensor routes, Tensor scores, Tensor up, Tensor down, Tensor? up_bias, "
    "Tensor? down_bias, bool gated, bool transposed) -> Tensor",
    "conv": "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    "ssd": "(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? bias, "
    "int chunk) -> Tensor",
    "selective": "(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
    "Tensor? bias) -> Tensor",
    "delta": "(Tensor v, Tensor k, Tensor q, Tensor decay, Tensor beta) -> Tensor",
}


def from_transformers(
    config: "Mapping[str, Any] | str | Path | Any",
    *,
    layers: int | None = None,
    names: Names | None = None,
) -> Imported:
    """A model of the ``transformers`` library, traced from its own code; nothing is downloaded.

    Parameters
    ----------
    config : a config object, its content as a dictionary with a ``model_type``, or the path of a
        ``config.json``.
    layers : trace this many layers only.
    names : weights → a word for each axis, where the role of a dimension is not seen.

    Raises
    ------
    SpecError : no such config, or code that cannot be traced or has an operator that is not known.
    """
    needs_torch()
    found = _config(config, layers)
    model, inputs = _build(found)
    name = found.model_type
    source = f"transformers {_version()}, {type(model).__name__}"
    with _seams(model):
        # the code for images computes with their height and width
        fixed = {"pixel_values": ("batch",)} if "pixel_values" in inputs else None
        return to_model(traced(model, inputs, name, source, fixed), names)


def _version() -> str:
    import transformers

    return str(transformers.__version__)


def _config(config: Any, layers: int | None) -> Any:
    from transformers import AutoConfig, PretrainedConfig

    if isinstance(config, PretrainedConfig):
        content = config.to_dict()
    elif isinstance(config, Mapping):
        content = dict(config)
    else:
        from frontends.catalogue import load_config

        content = load_config(config)
    kind = content.pop("model_type", None)
    try:
        found = AutoConfig.for_model(kind, **content)
    except Exception as error:  # whatever the config's own class checks
        raise SpecError(f"transformers has no model for this config: {_short(error)}") from error
    if layers is not None:
        found = _shortened(found, layers)
    return found


def _shortened(config: Any, layers: int) -> Any:
    """The config of a model with fewer layers."""
    text = config.get_text_config()
    whole = text.num_hidden_layers
    for key, value in list(vars(text).items()):
        if isinstance(value, list | str) and len(value) == whole:
            setattr(text, key, value[:layers])
    text.num_hidden_layers = layers
    return config


def _short(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _build(config: Any) -> tuple[Any, dict[str, Any]]:
    """The model on no device, and inputs for it."""
    import torch

    _register()
    auto = _auto_class(config)
    dtype = torch.float16 if config.dtype == torch.float16 else torch.bfloat16
    with torch.device("meta"):
        try:
            model = auto.from_config(config, dtype=dtype, attn_implementation="opgraph")
        except (KeyError, ValueError):  # a file that has its attention to itself
            model = auto.from_config(config, dtype=dtype, attn_implementation="eager")
        try:
            inputs = _example(model.eval(), config, dtype)
        except AttributeError as error:
            raise SpecError(
                f"{config.model_type}: its inputs are not known ({_short(error)}); trace it "
                "with from_torch and example inputs"
            ) from None
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("opgraph")
    fixed = {"use_cache": False, "return_dict": False} if "use_cache" in _parameters(model) else {}
    return model, inputs | fixed


def _example(model: Any, config: Any, dtype: Any) -> dict[str, Any]:
    """Inputs by what the model's main one is: tokens, an image or sound."""
    import torch

    tokens = torch.zeros(_BATCH, _SEQ, dtype=torch.long)
    if model.main_input_name == "pixel_values":
        size = config.image_size
        return {"pixel_values": torch.zeros(_BATCH, config.num_channels, size, size, dtype=dtype)}
    if model.main_input_name == "input_features":
        shape = (_BATCH, config.num_mel_bins, 2 * config.max_source_positions)
        return {"input_features": torch.zeros(shape, dtype=dtype), "decoder_input_ids": tokens}
    both = {"decoder_input_ids": tokens} if config.is_encoder_decoder else {}
    return {"input_ids": tokens, **both}


def _parameters(model: Any) -> set[str]:
    import inspect

    return set(inspect.signature(model.forward).parameters)


def _auto_class(config: Any) -> Any:
    import transformers
    from transformers.models.auto import modeling_auto

    for table, name in (
        ("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES", "AutoModelForSpeechSeq2Seq"),
        ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "AutoModelForSeq2SeqLM"),
        ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "AutoModelForCausalLM"),
        ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", "AutoModelForImageClassification"),
    ):
        if config.model_type in getattr(modeling_auto, table):
            return getattr(transformers, name)
    return transformers.AutoModel


# the places where transformers takes another implementation


@lru_cache(maxsize=1)
def _register() -> Any:
    """The operators that stand for whole kernels, known to torch and to transformers."""
    import torch
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    library = torch.library.Library("opgraph", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        library.define(name + schema)
        torch.library.register_fake(
            f"opgraph::{name}", _like_value if name == "attention" else _like_first
        )
    ALL_ATTENTION_FUNCTIONS.register("opgraph", _attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register("opgraph", lambda **_: None)
    ALL_EXPERTS_FUNCTIONS.register("opgraph", _ask_experts)
    return library


def _like_first(x: "torch.Tensor", *_: Any) -> "torch.Tensor":
    return x.new_empty(x.shape)


def _like_value(q: "torch.Tensor", k: "torch.Tensor", v: "torch.Tensor", *_: Any) -> "torch.Tensor":
    del k
    return q.new_empty((*q.shape[:3], v.shape[3]))


def _attend(module: Any, q: Any, k: Any, v: Any, _: Any, **options: Any) -> tuple[Any, None]:
    import torch

    causal = options.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    window = options.get("sliding_window") or 0
    result = torch.ops.opgraph.attention(q, k, v, options.get("s_aux"), window, bool(causal))
    return result.transpose(1, 2), None


def _ask_experts(module: Any, x: Any, chosen: Any, scores: Any) -> Any:
    import torch

    gated, biased = module.has_gate, module.has_bias
    up = module.gate_up_proj if gated else module.up_proj
    up_bias = getattr(module, "gate_up_proj_bias" if gated else "up_proj_bias") if biased else None
    down_bias = module.down_proj_bias if biased else None
    return torch.ops.opgraph.experts(
        x, chosen, scores, up, module.down_proj, up_bias, down_bias, gated, module.is_transposed
    )


def _convolve(x: Any, weight: Any, bias: Any = None, activation: Any = None, **_: Any) -> Any:
    import torch

    del activation
    return torch.ops.opgraph.conv(x, weight, bias)


def _ssd(x: Any, dt: Any, A: Any, B: Any, C: Any, chunk_size: int, **options: Any) -> Any:  # noqa: N803
    import torch

    bias, final = options.get("dt_bias"), options.get("return_final_states")
    result = torch.ops.opgraph.ssd(x, dt, A, B, C, options.get("D"), bias, chunk_size)
    return (result, None) if final else result


def _selective(x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any = None, **options: Any) -> Any:  # noqa: N803
    import torch

    z, bias = options.get("z"), options.get("delta_bias")
    result = torch.ops.opgraph.selective(x, dt, A, B, C, D, z, bias)
    return (result, None) if options.get("return_last_state") else result


def _delta(query: Any, key: Any, value: Any, g: Any, beta: Any, **_: Any) -> Any:
    import torch

    return torch.ops.opgraph.delta(value, key, query, g, beta), None


# kernels of recurrences, by the name under which modeling files fall back to their own code
_KERNELS = {
    "causal_conv1d_fn": _convolve,
    "mamba2_chunk_scan": _ssd,
    "mamba_selective_scan": _selective,
    "torch_chunk_gated_delta_rule": _delta,
}


@contextmanager
def _seams(model: Any) -> Iterator[None]:
    """While it lasts, kernels in the model's file are operators."""
    files: set[ModuleType] = {sys.modules[type(part).__module__] for part in model.modules()}
    with ExitStack() as stack:
        for file in files:
            for name, kernel in _KERNELS.items():
                if hasattr(file, name):
                    stack.enter_context(patch.object(file, name, kernel))
        yield


@aten("opgraph.attention")
def _whole_attention(low: Lowering, call: Call) -> Value:
    causal, window = call["causal"], call["window"]
    return low.p.attention(*call.arguments[:3], None, call["sinks"], causal=causal, window=window)


@aten("opgraph.experts")
def _whole_experts(low: Lowering, call: Call) -> Value:
    weights = [call[name] for name in ("up", "down", "up_bias", "down_bias")]
    k, options = call["routes"].shape[-1], {key: call[key] for key in ("gated", "transposed")}
    routes = {"chosen": call["routes"], "k": k}
    return low.p.experts(call["x"], call["scores"], weights, **routes, **options)


@aten("opgraph.conv", "opgraph.ssd", "opgraph.selective", "opgraph.delta")
def _whole_scan(low: Lowering, call: Call) -> Value:
    kind = str(call.node.target).split(".")[1]
    inputs = [v for v in call.arguments if v is None or isinstance(v, Value)]
    return low.p.scan(kind, inputs, call.shape, chunk=call.get("chunk", 0))
