"""Ways in: a model's config, code or file becomes an operator graph."""

from frontends.catalogue import list_models, load_config, load_model
from frontends.decoder import Decoder
from frontends.precision import Precision, Scheme
from frontends.transformer import Transformer
from frontends.variant import Lora, Variant

__all__ = [
    "Decoder",
    "Lora",
    "Precision",
    "Scheme",
    "Transformer",
    "Variant",
    "list_models",
    "load_config",
    "load_model",
]
