"""Models by name: data files with a source; or from a config of one's own."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from frontends.architectures import to_decoder
from frontends.config import Config
from frontends.decoder import Absorb
from frontends.doors import door
from frontends.precision import Precision
from frontends.quantization import declared
from frontends.variant import AS_TRAINED, Variant
from hardware import SpecError
from hardware.errors import nearest, shown
from hardware.specs import read_toml
from opgraph.model import Model

_MODELS = Path(__file__).parent / "data" / "models"
_AS_IT_IS = (None, None, None, None, AS_TRAINED)
# the largest config on the hub is a few hundred kB (per-layer quantisation lists)
_MAX_BYTES = 20_000_000


def list_models() -> list[str]:
    """The names of the catalogue, sorted."""
    return sorted(path.stem for path in _MODELS.glob("*.toml"))


def load_model(  # noqa: PLR0913 - each is an option of its own
    which: str | Path | dict[str, Any],
    *,
    precision: Precision | None = None,
    weights: str | None = None,
    kv_cache: str | None = None,
    absorb: Absorb = None,
    variant: Variant = AS_TRAINED,
    dims: Mapping[str, str | int] | None = None,
) -> Model:
    """A model by name, from the path of a ``config.json`` (or its folder), or from its content; or
    from an ONNX file, or from code, given as ``package.module:factory`` (see `frontends.doors`).

    Parameters
    ----------
    which : a name of `list_models`, a path, or a config as a dictionary.
    precision : number formats; those that the config's ``quantization_config`` declares if not
        given, 16 bit if it declares none.
    weights, kv_cache : one of these formats in place of the precision's, such as ``fp8``.
    absorb : whether latent attention (MLA) runs in the latent space, in both phases or by phase
        (``{"prefill": False, "decode": True}``); where that pays if not given.
    variant : adapters, a pruned cache, a window.
    dims : what the open sizes of an ONNX file are, see `from_onnx`.

    Raises
    ------
    SpecError : no such name or file, or a config that does not describe a known architecture.
    """
    as_it_is = (precision, weights, kv_cache, absorb, variant) == _AS_IT_IS
    if (opened := door(which, dims)) is not None:
        if not as_it_is:
            raise SpecError(f"{which}: formats and variants are its own")
        return opened()
    if isinstance(which, str) and as_it_is:
        return _plain(which)
    config, source, family = _describe(which)
    chosen = precision or declared(config) or Precision()
    if weights is not None:
        chosen = replace(chosen, weights=weights, classes={})
    if kv_cache is not None:
        chosen = replace(chosen, kv_cache=kv_cache)
    return to_decoder(config, source, family).to_model(chosen, absorb, variant)


def load_config(which: str | Path) -> dict[str, Any]:
    """The config of a model by name, or from the path of a ``config.json`` or its folder.

    Raises
    ------
    SpecError : no such name or file, or one that holds no config.
    """
    return dict(_describe(which)[0].values)


def _plain(name: str) -> Model:
    """A model as its config has it; those of the catalogue are kept."""
    return _cached(name) if name in list_models() else _as_declared(name)


def _as_declared(which: str) -> Model:
    config, source, family = _describe(which)
    return to_decoder(config, source, family).to_model(declared(config))


_cached = lru_cache(_as_declared)


def _describe(which: str | Path | dict[str, Any]) -> tuple[Config, str, str]:
    """The config, its source and its family; source and family are empty where not known."""
    if isinstance(which, dict):
        return Config(which, "config"), "", ""
    if not isinstance(which, str | Path):
        raise SpecError(f"{shown(which)} is neither a model's name, nor a path, nor a config")
    if str(which) in list_models():
        spec = read_toml(_MODELS / f"{which}.toml")
        return Config(spec["config"], str(which)), spec["source"], spec["family"]
    path = _config_file(str(which))
    content = read_toml(path).get("config") if path.suffix == ".toml" else _with_formats(path)
    if not isinstance(content, dict):
        raise SpecError(
            f"{path}: a config is a table of keys and values, not {type(content).__name__}"
        )
    return Config(content, str(path)), "", ""


def _config_file(text: str) -> Path:
    path = Path(text)
    try:
        is_path = path.suffix in (".json", ".toml") or (bool(text) and path.exists())
        inside = is_path and path.is_dir()
    except OSError as error:
        raise SpecError(f"{shown(text)} cannot be read: {error.strerror}") from None
    if not is_path:
        raise SpecError(f"no model {shown(text)}{nearest(text, list_models())}")
    return path / "config.json" if inside else path


def _with_formats(path: Path) -> Any:
    """A config.json, with the formats that ModelOpt writes into a file beside it."""
    config = _read_json(path)
    beside = path.with_name("hf_quant_config.json")
    if isinstance(config, dict) and "quantization_config" not in config and beside.exists():
        config["quantization_config"] = _read_json(beside).get("quantization")
    return config


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise SpecError(f"{path} is larger than {_MAX_BYTES} bytes: no config is")
        text = path.read_text(encoding="utf-8-sig")  # some editors write a byte-order mark
        return json.loads(text, parse_constant=_constant, object_pairs_hook=_each_once)
    except FileNotFoundError:
        raise SpecError(f"there is no file {path}") from None
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SpecError(f"{path} is not a text file: a config.json is expected") from None
    except RecursionError:
        raise SpecError(f"{path} is nested too deeply for a config") from None
    except ValueError as error:
        raise SpecError(f"{path} is not valid JSON: {error}") from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A table, of which JSON would take the last of equal keys without a word."""
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} stands twice in a table")
    return table


def _constant(text: str) -> float:
    """Infinity, the limit of Mamba's time steps in released configs; NaN is no number."""
    if text == "NaN":
        raise ValueError(f"{text} is not a number a config may have")
    return float(text)
