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


# what a checkpoint's numbers may be, by PyTorch's names (torch.dtype); the precision is chosen
# elsewhere, but a name that does not exist is a slip in the config
_DTYPES = ("auto", "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


def to_decoder(config: Config, source: str = "", family: str = "") -> Decoder:
    """The decoder that *config* describes, by its ``model_type``.

    Raises
    ------
    SpecError : an architecture that is not known, a size that is missing or contradicts another.
    """
    kind = config.word("model_type")
    if not kind:
        raise SpecError(f"{config.name}: 'model_type' is missing; it names the architecture")
    _check_dtype(config)
    if kind in MULTIMODAL:
        several = MULTIMODAL[kind]
        text = to_decoder(several.text_config(config), source, family or kind)
        return several(text, config)
    if kind not in ARCHITECTURES:
        hint = nearest(kind, [*ARCHITECTURES, *MULTIMODAL])
        raise SpecError(f"{config.name}: the architecture {kind!r} is not known{hint}")
    return ARCHITECTURES[kind](config, source or config.name, family or kind)


def _check_dtype(config: Config) -> None:
    for key in ("torch_dtype", "dtype"):
        word = config.word(key, "auto").removeprefix("torch.")
        if word not in _DTYPES:
            raise SpecError(f"{config.name}: {key!r} is {word!r}{nearest(word, _DTYPES)}")
