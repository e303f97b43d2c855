"""Ways in: a model's config, code or file becomes an operator graph."""

from frontends.catalogue import list_models, load_config, load_model
from frontends.decoder import Decoder
from frontends.huggingface import from_transformers
from frontends.imported import Imported
from frontends.onnx import from_onnx
from frontends.precision import Precision, Scheme
from frontends.pytorch import from_torch
from frontends.transformer import Transformer
from frontends.variant import Lora, Variant

__all__ = [
    "Decoder",
    "Imported",
    "Lora",
    "Precision",
    "Scheme",
    "Transformer",
    "Variant",
    "from_onnx",
    "from_torch",
    "from_transformers",
    "list_models",
    "load_config",
    "load_model",
]
