"""Models by name: data files with a source; or from a config of one's own."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from frontends.architectures import to_decoder
from frontends.config import Config
from frontends.writer import Precision
from hardware import SpecError
from hardware.errors import nearest
from hardware.specs import read_toml
from opgraph.model import Model

_MODELS = Path(__file__).parent / "data" / "models"
# the largest config on the hub is a few hundred kB (per-layer quantisation lists)
_MAX_BYTES = 20_000_000


def list_models() -> list[str]:
    """The names of the catalogue, sorted."""
    return sorted(path.stem for path in _MODELS.glob("*.toml"))


def load_model(which: str | Path | dict[str, Any], *, precision: Precision | None = None) -> Model:
    """A model by name, from the path of a ``config.json`` (or its folder), or from its content.

    Parameters
    ----------
    which : a name of `list_models`, a path, or a config as a dictionary.
    precision : number formats; 16-bit everywhere if not given.

    Raises
    ------
    SpecError : no such name or file, or a config that does not describe a known architecture.
    """
    if isinstance(which, dict):
        return _from_config(which, "config", precision)
    if isinstance(which, str) and which in list_models():
        return _from_catalogue(which, precision) if precision else _cached(which)
    path = Path(which)
    if path.suffix in (".json", ".toml") or path.exists():
        return _from_file(path, precision)
    raise SpecError(f"no model {str(which)!r}{nearest(str(which), list_models())}")


@lru_cache
def _cached(name: str) -> Model:
    return _from_catalogue(name, None)


def _from_catalogue(name: str, precision: Precision | None) -> Model:
    spec = read_toml(_MODELS / f"{name}.toml")
    decoder = to_decoder(Config(spec["config"], name), spec["source"], spec["family"])
    return decoder.to_model(precision)


def _from_config(config: Any, name: str, precision: Precision | None) -> Model:
    if not isinstance(config, dict):
        raise SpecError(
            f"{name}: a config is a table of keys and values, not {type(config).__name__}"
        )
    return to_decoder(Config(config, name)).to_model(precision)


def _from_file(path: Path, precision: Precision | None) -> Model:
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".toml":
        return _from_config(read_toml(path).get("config"), str(path), precision)
    return _from_config(_read_json(path), str(path), precision)


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise SpecError(f"{path} is larger than {_MAX_BYTES} bytes: no config is")
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
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


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number a config may have")
