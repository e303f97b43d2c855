"""Which config is which decoder: one table over ``model_type``, one module per kind of model."""

from collections.abc import Callable

from frontends.architectures.dense import DENSE
from frontends.config import Config
from frontends.decoder import Decoder
from hardware import SpecError
from hardware.errors import nearest

ARCHITECTURES: dict[str, Callable[[Config, str, str], Decoder]] = {**DENSE}


def to_decoder(config: Config, source: str = "", family: str = "") -> Decoder:
    """The decoder that *config* describes, by its ``model_type``.

    Raises
    ------
    SpecError : an architecture that is not known, a size that is missing or contradicts another.
    """
    kind = config.values.get("model_type")
    if not isinstance(kind, str):
        raise SpecError(f"{config.name}: 'model_type' is missing; it names the architecture")
    if kind not in ARCHITECTURES:
        hint = nearest(kind, ARCHITECTURES)
        raise SpecError(f"{config.name}: the architecture {kind!r} is not known{hint}")
    return ARCHITECTURES[kind](config, source or config.name, family or kind)
