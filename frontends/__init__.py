"""Ways in: a model's config, code or file becomes an operator graph.

The public names load what they need when they are first used: a catalogued model does not wait
for the readers of code and of ONNX files.
"""

from typing import TYPE_CHECKING

from opgraph.lazy import names_of

if TYPE_CHECKING:
    from frontends.catalogue import list_models, load_config, load_model
    from frontends.decoder import Decoder
    from frontends.huggingface import from_transformers
    from frontends.imported import Imported
    from frontends.onnx import from_onnx
    from frontends.precision import Precision, Scheme
    from frontends.pytorch import from_torch
    from frontends.transformer import Transformer
    from frontends.variant import Lora, Variant

_HOME = {
    "catalogue": ("list_models", "load_config", "load_model"),
    "decoder": ("Decoder",),
    "huggingface": ("from_transformers",),
    "imported": ("Imported",),
    "onnx": ("from_onnx",),
    "precision": ("Precision", "Scheme"),
    "pytorch": ("from_torch",),
    "transformer": ("Transformer",),
    "variant": ("Lora", "Variant"),
}
__getattr__, __dir__ = names_of(__name__, _HOME)

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
