"""The configs of day-zero models, as the wheel aiconfigurator-core carries them from the hub.

Every one loads, has the published size, stores its weights in the formats that it declares, and
runs on one chip. Some are abridged (Llama 4 and MiniMax-M3 without their vision towers).
"""

import json
import re
import shutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from frontends import load_model
from frontends.catalogue import _MODELS
from hardware import load_platform
from hardware.specs import read_toml
from opgraph import Plan, Workload, simulate

SPEC = find_spec("aiconfigurator_core")  # found without running it
if SPEC is None:
    pytest.skip("needs the wheel aiconfigurator-core", allow_module_level=True)

FOLDER = Path(SPEC.submodule_search_locations[0]) / "model_configs"
FORMATS = "_hf_quant_config.json"
NAMES = sorted(
    path.name.removesuffix("_config.json")
    for path in FOLDER.glob("*_config.json")
    if not path.name.endswith(FORMATS)
)

# Endings that name a format, a version or a use, not a size; what is left is the catalogue's name,
# whose file cites the published count, or one of those below.
ENDING = re.compile(r"-(FP8|NVFP4|BF16|Instruct|Thinking|Base|v0\.1|v1|Static-PerTensor|8K)(?=-|$)")
SAME = {
    "minimax-m2.5": "minimax-m2",
    "minimax-m2.7": "minimax-m2",
    "qwen3.6-27b": "qwen3.5-27b",
    "qwen3.6-35b-a3b": "qwen3.5-35b-a3b",
    "deepseek-v3.1": "deepseek-v3",
    "meta-llama-3.1-8b": "llama-3.1-8b",
    "meta-llama-3.1-70b": "llama-3.1-70b",
    "meta-llama-3.1-405b": "llama-3.1-405b",
    "llama-3_3-nemotron-super-49b": "llama-3.3-nemotron-super-49b",
    "llama-4-maverick-17b-128e": "llama-4-maverick",
    "llama-4-scout-17b-16e": "llama-4-scout",
    "gemma-4-31b-it": "gemma-4-31b",
    "nvidia-nemotron-3-nano-30b-a3b": "nemotron-3-nano-30b-a3b",
    "nvidia-nemotron-3-super-120b-a12b": "nemotron-3-super-120b-a12b",
    "nvidia-nemotron-3-ultra-550b-a55b": "nemotron-3-ultra-550b-a55b",
    "nvidia-nemotron-3.5-lightning-30b-a3b": "nemotron-3-nano-30b-a3b",
}
# Kimi-K2 with MoonViT (0.4 B: model card of moonshotai/Kimi-K2.5)
_KIMI_K25 = 1_026_408_235_864 + 400_000_000
# What the catalogue does not have.
PUBLISHED = {
    "kimi-k2.5": _KIMI_K25,
    "kimi-k2.6": _KIMI_K25,
    "kimi-k2.7-code": _KIMI_K25,
    "kimi-k3": 2.8e12,  # https://github.com/moonshotai: "a 2.8T-parameter model"
    # its text part, which is all that the config describes (Step 3.5 Flash: arXiv 2602.10604)
    "step-3.7-flash": 196e9,
}


def published(name):
    """Parameters that the maker states."""
    size = ENDING.sub("", name.split("--")[1]).lower()
    if size in PUBLISHED:
        return PUBLISHED[size]
    return read_toml(_MODELS / f"{SAME.get(size, size)}.toml")["published"]["parameters"]


def load(name, folder):
    """The model from files under their hub names."""
    target = folder / name
    target.mkdir()
    shutil.copy(FOLDER / f"{name}_config.json", target / "config.json")
    formats = FOLDER / f"{name}{FORMATS}"
    if formats.exists():
        shutil.copy(formats, target / "hf_quant_config.json")
    return load_model(target / "config.json")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    return {name: load(name, folder) for name in NAMES}


def weights(model):
    """Bytes of all weights."""
    sizes = model._sizes
    return sum(float(tensor.nbytes(sizes)) * count for tensor, count in model.weights)


def test_the_wheel_has_at_least_88_configs():
    assert len(NAMES) >= 88


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_published(models, name):
    assert models[name].num_parameters == pytest.approx(published(name), rel=0.01)


# Bytes of a weight, all classes and scales together. FP8 and NVFP4 checkpoints leave embedding,
# head, norms and routers in 16 bit, some their attention too: hence a range, and exceptions.
PER_WEIGHT = {"NVFP4": (0.5625, 0.65), "FP8": (1.0, 1.06), "": (2.0, 2.0)}
DECLARED = {
    # the config itself declares blocks of FP8
    "DeepSeek-R1": "FP8",
    "DeepSeek-V3": "FP8",
    "DeepSeek-V3.2": "FP8",
    "Kimi-K2-Instruct": "FP8",
    "MiMo-V2-Flash": "FP8",
    "MiniMax-M2.5": "FP8",
    "MiniMax-M2.7": "FP8",
}
OF_THEIR_OWN = {
    # FP8 with experts in FP4 (expert_dtype): 4.25 bits
    "DeepSeek-V4-Flash": (0.53, 0.56),
    "DeepSeek-V4-Pro": (0.53, 0.56),
    # experts in MXFP4, the rest in 16 bit: the checkpoints of the gpt-oss model card (table 1)
    "gpt-oss-120b": (60.8 * 2**30 / 116.83e9 * 0.995, 60.8 * 2**30 / 116.83e9 * 1.005),
    "gpt-oss-20b": (12.8 * 2**30 / 20.91e9 * 0.995, 12.8 * 2**30 / 20.91e9 * 1.005),
    # experts in INT4 by groups of 32, 16-bit scales: 4.5 bits; 595 GB on the hub
    "Kimi-K2.5": (595e9 / 1026.9e9 * 0.995, 595e9 / 1026.9e9 * 1.005),
    # experts in MXFP4: 4.25 bits
    "Kimi-K3": (0.53125, 0.57),
    # attention in 16 bit: of 31.3 B, 20.8 B (60 layers × 3 × 5376 × 21504) in NVFP4
    "Gemma-4-31B-IT-NVFP4": (1.03, 1.06),
    # attention in 16 bit, of a small model with a large vocabulary: 22.8 B in NVFP4
    "Gemma-4-26B-A4B-NVFP4": (0.70, 0.75),
    # attention in FP8 and a large embedding in 16 bit
    "Qwen3.6-27B-NVFP4": (0.74, 0.80),
}


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_stored_as_declared(models, name):
    short = name.split("--")[1]
    kind = next((k for k in ("NVFP4", "FP8") if k in short), DECLARED.get(short, ""))
    least, most = OF_THEIR_OWN.get(short, PER_WEIGHT[kind])
    assert least <= weights(models[name]) / models[name].num_parameters <= most


@pytest.mark.parametrize("name", NAMES)
def test_every_config_runs_on_one_chip(models, name):
    """Whether it fits or not, both phases have a price."""
    platform = load_platform("gb200-nvl72")
    report = simulate(models[name], platform, Plan(tp=1), Workload(prompt=128, output=4))
    assert 0 < report.ttft < np.inf
    assert 0 < report.tpot < np.inf


# ---- against transformers --------------------------------------------------------------------

# MiniMax-M3-NVFP4 has the same text part as MiniMax-M3, and a class.
WITHOUT_CLASS = ("kimi_k3", "minimax_m3", "nemotron-nas")
TOWERS = ("vision_model.", "multi_modal_projector.")


@pytest.fixture(scope="module")
def oracle():
    """The helpers of test_transformers.py, where torch and transformers are installed."""
    try:
        return import_module("test_transformers")
    except pytest.skip.Exception as reason:
        pytest.skip(str(reason))


def text_alone(config):
    """Whether a config has only the text part of a class that would fill in a tower."""
    return config["model_type"] in ("llama4", "step3p7") and "vision_config" not in config


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_transformers(models, oracle, name):
    config = json.loads((FOLDER / f"{name}_config.json").read_text())
    if config["model_type"] in WITHOUT_CLASS:
        pytest.skip(f"transformers has no class for {config['model_type']}")
    if config["model_type"] == "step3p7":  # abridged to one level
        config = {"model_type": "step3p7", "text_config": config}
    module = oracle.meta(config)
    towers = sum(
        parameter.numel()
        for path, parameter in module.named_parameters()
        if text_alone(config) and path.removeprefix("model.").startswith(TOWERS)
    )
    assert models[name].num_parameters == oracle.stored(module) - towers
