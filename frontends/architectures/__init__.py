"""Which config is which decoder: one table over ``model_type``, one module per kind of model."""

from collections.abc import Callable

from frontends.architectures.dense import DENSE
from frontends.architectures.hybrid import HYBRID
from frontends.architectures.linear import LINEAR
from frontends.architectures.moe import MOE
from frontends.architectures.multimodal import MULTIMODAL
from frontends.architectures.seq2seq import SEQ2SEQ
from frontends.config import Config
from frontends.decoder import Decoder
from hardware import SpecError
from hardware.errors import nearest

ARCHITECTURES: dict[str, Callable[[Config, str, str], Decoder]] = {
    **DENSE,
    **MOE,
    **HYBRID,
    **LINEAR,
    **SEQ2SEQ,
}


def to_decoder(config: Config, source: str = "", family: str = "") -> Decoder:
    """The decoder that *config* describes, by its ``model_type``.

    Raises
    ------
    SpecError : an architecture that is not known, a size that is missing or contradicts another.
    """
    kind = config.values.get("model_type")
    if not isinstance(kind, str):
        raise SpecError(f"{config.name}: 'model_type' is missing; it names the architecture")
    if kind in MULTIMODAL:
        several = MULTIMODAL[kind]
        text = to_decoder(several.text_config(config), source, family or kind)
        return several(text, config)
    if kind not in ARCHITECTURES:
        hint = nearest(kind, [*ARCHITECTURES, *MULTIMODAL])
        raise SpecError(f"{config.name}: the architecture {kind!r} is not known{hint}")
    return ARCHITECTURES[kind](config, source or config.name, family or kind)
