"""Ways in: a model's config, code or file becomes an operator graph."""

from frontends.catalogue import list_models, load_model
from frontends.decoder import Decoder
from frontends.precision import Precision, Scheme
from frontends.transformer import Transformer

__all__ = ["Decoder", "Precision", "Scheme", "Transformer", "list_models", "load_model"]
