"""ONNX files: read with suspicion, lowered to a program, and from there to a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontends.onnx.sizes import OWN
from hardware import SpecError
from hardware.errors import shown
from opgraph.graph import GraphError

if TYPE_CHECKING:
    from frontends.imported import Imported
    from frontends.naming import Names
    from frontends.program import Program


def from_onnx(
    path: str | Path,
    *,
    dims: Mapping[str, str | int] | None = None,
    inputs: Mapping[str, Any] | None = None,
    names: "Names | None" = None,
) -> "Imported":
    """A model from an ONNX file. No weights are read, and no file but this one is opened.

    Parameters
    ----------
    dims : what the open sizes of the file are, by its own names: a number, or an expression over
        ``batch``, ``seq`` (the new tokens of a sequence) and ``context`` (all of them), such as
        ``{"past_length": "context - seq", "height": 48}``. Customary names need none.
    inputs : values of inputs that the file branches on, such as ``{"use_cache_branch": True}``.
    names : weights or inputs (``*`` stands for anything) → a word for each axis, where the role of
        a dimension is not seen.

    Raises
    ------
    SpecError : no such file, a file that no graph can be made of, an operator that is not known,
        an open size that nobody says.

    Notes
    -----
    Meanings of operators: ONNX 1.23 (operator sets up to 28) and ONNX Runtime's
    ``docs/ContribOperators.md``. A causal model without a cache is given one, and its head runs on
    the last position only, as engines serve it.
    """
    from frontends.imported import to_model

    program = program_of(path, dims=dims, inputs=inputs)
    try:
        return to_model(program, names)
    except GraphError as error:
        raise SpecError(f"{path}: {error}") from None


def program_of(
    path: str | Path,
    *,
    dims: Mapping[str, str | int] | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> "Program":
    """The flat program of an ONNX file; parameters and errors are those of `from_onnx`."""
    from frontends.onnx.lowering import lower
    from frontends.onnx.reading import read

    program = lower(read(path), str(path), dims or {}, inputs or {})
    free = {
        symbol.name
        for node in program.nodes
        for value in node.outputs
        for size in value.shape
        for symbol in getattr(size, "free_symbols", ())
    }
    if unknown := sorted(free - set(OWN)):
        raise SpecError(
            f"{path}: nothing says how large {', '.join(map(shown, unknown))} "
            f"{'are' if unknown[1:] else 'is'}; give dims={{{shown(unknown[0])}: …}}: a number, or "
            f"an expression over {', '.join(OWN)}"
        )
    return program
