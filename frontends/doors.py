"""Doors for models that are no config: what code or a file is given as on the command line."""

import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from hardware import SpecError
from opgraph.model import Model

_PLACE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def door(which: object, dims: Mapping[str, str | int] | None = None) -> Callable[[], Model] | None:
    """What reads *which*, if it is an ONNX file or the place of code; None if it is not.

    *dims*: open sizes of an ONNX file, see `frontends.from_onnx`.

    ``package.module:factory`` names a function without arguments, found from the folder that the
    command runs in. It returns a module and example inputs, a config of ``transformers`` (an
    object or a dictionary with a ``model_type``), or a model.
    """
    text = str(which)
    if isinstance(which, str | Path) and Path(which).suffix == ".onnx":
        return lambda: _from_file(which, dims)
    if dims:
        raise SpecError(f"{text}: only an ONNX file has open sizes, such as {next(iter(dims))!r}")
    if isinstance(which, str) and _PLACE.fullmatch(text):
        return lambda: _from_code(text)
    return None


def _from_file(path: str | Path, dims: Mapping[str, str | int] | None) -> Model:
    from frontends.onnx import from_onnx

    return from_onnx(path, dims=dims)


def _from_code(place: str) -> Model:
    """The model that a function makes.

    Raises
    ------
    SpecError : no such module or function, or one that returns something else.
    """
    from frontends.huggingface import from_transformers
    from frontends.pytorch import from_torch

    path, _, name = place.partition(":")
    found = getattr(_module(path, place), name, None)
    if not callable(found):
        raise SpecError(f"{place}: {path} has no function {name!r}")
    made: Any = found()
    if isinstance(made, Model):
        return made
    if isinstance(made, tuple) and len(made) == 2 and hasattr(made[0], "forward"):
        return from_torch(made[0], made[1], name=name)
    if isinstance(made, dict) or hasattr(made, "model_type"):
        return from_transformers(made)
    raise SpecError(
        f"{place} returns {type(made).__name__}, but must return a module and example inputs, a "
        "config of transformers, or a model"
    )


def _module(path: str, place: str) -> Any:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return import_module(path)
    except ImportError as error:
        raise SpecError(f"{place}: there is no module {path} ({error})") from None
    finally:
        sys.path.remove(here)
