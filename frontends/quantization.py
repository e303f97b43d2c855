"""What a checkpoint says of its number formats: ``quantization_config`` and ``hf_quant_config``.

Three dialects are read: Hugging Face (``quant_method`` fp8, mxfp4, awq, gptq, bitsandbytes),
compressed-tensors and ModelOpt (``config_groups``, ``quant_algo``, ``quantized_layers``). Which
classes of weights are left out is found by matching the names that their modules have in each
layer: what most layers do holds for all, so the few layers that checkpoints except at their ends
are not told apart.
"""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from frontends.config import Config
from frontends.precision import Precision, Scheme, WeightClass
from hardware import SpecError
from hardware.errors import nearest
from opgraph.tensor import Format, as_format

_PREFIXES = ("model.", "language_model.model.", "model.language_model.", "backbone.", "")
# what the modules of a class are called within a layer, in the architectures of the catalogue
_MODULES: dict[WeightClass, tuple[str, ...]] = {
    "attention": (
        "self_attn.q_proj", "self_attn.q_b_proj", "attn.wo_b", "linear_attn.out_proj",
        "mixer.in_proj",
    ),
    "experts": (
        "mlp.experts.0.up_proj", "block_sparse_moe.experts.0.w1", "ffn.experts.0.w1",
        "mixer.experts.0.up_proj",
    ),
    "shared": (
        "mlp.shared_experts.up_proj", "mlp.shared_expert.up_proj", "ffn.shared_experts.w1",
        "mixer.shared_experts.up_proj", "block_sparse_moe.shared_experts.up_proj",
    ),
    "ffn": ("mlp.up_proj", "mlp.gate_proj", "mlp.down_proj"),
}  # fmt: skip
# layers looked at, spread evenly: enough for a majority
_SAMPLE = 8
_HEAD = ("lm_head", "language_model.lm_head", "head")

_ALGORITHMS: dict[str, str] = {
    "FP8": "fp8", "FP8_PER_CHANNEL_PER_TOKEN": "fp8", "NVFP4": "nvfp4", "MXFP8": "mxfp8",
    "MXFP4": "mxfp4", "W4A16_NVFP4": "nvfp4/bf16", "W4A16_AWQ": "int4-g128",
    "INT8_SQ": "int8", "W8A8_SQ_PER_CHANNEL": "int8",
}  # fmt: skip
# what ModelOpt writes where it leaves a class as it was
_PLAIN = (None, "", "NONE")
# a scale for each 128 × 128 weights, and for each 128 inputs (DeepSeek-V3, section 3.3.2)
_FP8_BLOCKS = Scheme(as_format("fp8-block"), as_format("fp8-row"))


def declared(config: Config) -> Precision | None:
    """The precision that *config* declares; None if it declares none.

    Raises
    ------
    SpecError : a quantisation that is not known.
    """
    given = config.values.get("quantization_config")
    if given is None:
        # of a multimodal model the text part alone may be quantised (Kimi K2.5)
        text = config.values.get("text_config")
        given = text.get("quantization_config") if isinstance(text, Mapping) else None
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise SpecError(f"{config.name}: 'quantization_config' must be a table, not {given!r}")
    chosen = _by_layer(given) or _by_exception(config, given)
    return Precision(kv_cache=_kv_cache(given), classes=chosen)


def _by_layer(given: Mapping[str, Any]) -> dict[WeightClass, Scheme]:
    """Mixed precision: each quantised module is listed with its algorithm.

    What is not listed is as in the checkpoint it was made from: in 16 bit, or in blocks of FP8
    where the keys of those are still there (DeepSeek-V4 with experts in NVFP4).
    """
    listed = given.get("quantized_layers")
    if not isinstance(listed, Mapping):
        return {}
    found: dict[WeightClass, Scheme] = {}
    for module, how in listed.items():
        inside = re.split(r"layers\.\d+\.", module)[-1]
        if inside in _HEAD:
            found["head"] = _algorithm(how.get("quant_algo"))
        for name, candidates in _MODULES.items():
            if any(c == inside or c.startswith(f"{inside}.") for c in candidates):
                found.setdefault(name, _algorithm(how.get("quant_algo")))
    if given.get("weight_block_size"):
        return {**dict.fromkeys(("attention", "ffn", "shared"), _FP8_BLOCKS), **found}
    return found


def _by_exception(config: Config, given: Mapping[str, Any]) -> dict[WeightClass, Scheme]:
    """One scheme for all classes but those that are left out."""
    scheme, text = _scheme(config, given), config.values.get("text_config")
    inner = Config(text, config.name) if isinstance(text, Mapping) else config
    layers = inner.whole("num_hidden_layers", 1)
    left_out = [
        pattern
        for key in ("modules_to_not_convert", "ignore", "exclude_modules")
        for pattern in given.get(key) or ()
    ]
    kept: dict[WeightClass, Scheme] = {
        name: scheme
        for name, modules in _MODULES.items()
        if not any(_excepted(module, left_out, layers) for module in modules)
    }
    if inner.word("expert_dtype") == "fp4":
        # E2M1 with a power of two for each 32, entered by what the other matrices are (DeepSeek-V4)
        kept["experts"] = Scheme(as_format("mxfp4"), scheme.inputs)
    # a checkpoint that quantises nothing else quantises its experts, whatever they are called
    return kept or {"experts": scheme}


def _excepted(module: str, patterns: Sequence[str], layers: int) -> bool:
    """Whether *module* is left out of most layers."""
    sample = range(0, layers, max(1, layers // _SAMPLE))
    hits = sum(
        any(_matches(f"{prefix}layers.{layer}.{module}", patterns) for prefix in _PREFIXES)
        for layer in sample
    )
    return 2 * hits > len(sample)


def _matches(module: str, patterns: Sequence[str]) -> bool:
    """Whether a list of exceptions names *module*: by regular expression, wildcard or word."""
    for pattern in patterns:
        if pattern.startswith("re:"):
            if re.fullmatch(pattern[3:], module):
                return True
        elif "*" in pattern:
            if fnmatchcase(module, pattern) or fnmatchcase(module, f"{pattern}.*"):
                return True
        elif f".{pattern}." in f".{module}.":
            return True
    return False


def _scheme(config: Config, given: Mapping[str, Any]) -> Scheme:
    groups = given.get("config_groups")
    if isinstance(groups, Mapping) and groups:
        return _group(config, next(iter(groups.values())), str(given.get("format", "")))
    if given.get("quant_algo") not in _PLAIN:
        return _algorithm(given["quant_algo"])
    method = str(given.get("quant_method", ""))
    if method == "fp8":
        return _FP8_BLOCKS if given.get("weight_block_size") else Scheme.of("fp8")
    if method == "mxfp4":
        return Scheme.of("mxfp4")
    if method in ("awq", "gptq"):
        bits, group = Config(given, config.name).positive("bits"), given.get("group_size", 128)
        return Scheme(as_format(f"int{bits}-g{group}"))
    if method == "bitsandbytes":
        return Scheme(as_format("int4-g64" if given.get("load_in_4bit") else "int8"))
    known = ("fp8", "mxfp4", "awq", "gptq", "bitsandbytes", "compressed-tensors", "modelopt")
    raise SpecError(f"{config.name}: quantisation {method!r} is not known{nearest(method, known)}")


def _group(config: Config, group: Any, written: str) -> Scheme:
    """One group of compressed-tensors: the weights' and the inputs' bits, type and group size."""
    if not isinstance(group, Mapping) or not isinstance(group.get("weights"), Mapping):
        raise SpecError(f"{config.name}: a group of 'config_groups' has no 'weights'")
    weights = _group_format(config, group["weights"], str(group.get("format", written)))
    inputs = group.get("input_activations")
    return Scheme(weights, _group_format(config, inputs, "") if inputs else None)


def _group_format(config: Config, spec: Mapping[str, Any], written: str) -> Format:
    bits = Config(spec, config.name).positive("num_bits")
    size = spec.get("group_size") or 0
    if "mxfp4" in written:
        return as_format("mxfp4")
    if spec.get("type") == "float":
        return as_format({4: "nvfp4", 8: "fp8"}.get(bits, f"fp{bits}"))
    if size:
        # symmetric integers: a 16-bit scale for each group and no zero point
        return Format(bits, size, 16, name=f"int{bits}-g{size}s", compute=f"int{bits}")
    return as_format(f"int{bits}")


def _algorithm(name: Any) -> Scheme:
    if name not in _ALGORITHMS:
        raise SpecError(f"quant_algo {name!r} is not known{nearest(str(name), _ALGORITHMS)}")
    return Scheme.of(_ALGORITHMS[name])


def _kv_cache(given: Mapping[str, Any]) -> str:
    scheme = given.get("kv_cache_scheme") or given.get("kv_cache_quant_algo")
    if isinstance(scheme, Mapping):
        return "fp8" if scheme.get("type") == "float" else f"int{scheme.get('num_bits', 8)}"
    return _ALGORITHMS.get(str(scheme), "bf16")
