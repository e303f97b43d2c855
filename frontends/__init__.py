"""Ways in: a model's config, code or file becomes an operator graph."""

from frontends.catalogue import list_models, load_model
from frontends.decoder import Decoder
from frontends.writer import Precision

__all__ = ["Decoder", "Precision", "list_models", "load_model"]
