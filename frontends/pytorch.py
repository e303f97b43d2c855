"""PyTorch modules: exported on tensors without content, and lowered to a program."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from frontends import aten
from frontends.imported import Imported, to_model
from frontends.lowering import Lowering, flattened
from frontends.naming import Names
from frontends.program import Program
from hardware import SpecError
from hardware.errors import nearest

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


def from_torch(
    module: "torch.nn.Module",
    example_inputs: "Sequence[Any] | Mapping[str, Any]",
    *,
    dynamic: "Mapping[str, Sequence[str | None]] | None" = None,
    names: Names | None = None,
    name: str | None = None,
) -> Imported:
    """The model of a PyTorch module, from ``torch.export`` on tensors without content.

    Neither weights nor a GPU are needed: a module on the ``meta`` device serves as well as a real
    one. The size of an axis that stays open in the export is that of the workload, by its role.

    Parameters
    ----------
    module : anything that ``torch.export`` takes; it is traced as it stands (``eval()`` first).
    example_inputs : arguments of ``forward`` by position or by name; only shapes and dtypes count.
    dynamic : axes that stay open, by input: ``{"x": ("batch", "seq", None)}``; the words are their
        names. Every axis of every input, as far as the code allows, if not given.
    names : weights or inputs (``*`` stands for anything) → a word for each axis, or None.
    name : what the model is called; the module's class if not given.

    Raises
    ------
    SpecError : code that cannot be traced, an operator that is not known, or *names* that do not
        fit.
    """
    needs_torch()
    name = name or type(module).__name__
    places = {key: words for key, words in (dynamic or {}).items() if words}
    program = traced(module, example_inputs, name, f"torch.export of {name}", dynamic)
    return to_model(program, {**places, **(names or {})})


def needs_torch() -> None:
    """Refuse to go on without PyTorch.

    Raises
    ------
    SpecError : it is not installed.
    """
    try:
        import torch  # noqa: F401
    except ImportError:
        raise SpecError("PyTorch is not installed: pip install 'opgraph[torch]'") from None


def traced(
    module: Any,
    inputs: Sequence[Any] | Mapping[str, Any],
    name: str,
    source: str,
    dynamic: Mapping[str, Sequence[str | None]] | None = None,
) -> Program:
    """The program of *module*; tensors among *inputs* stay inputs, what else there is is fixed.

    Raises
    ------
    SpecError : it cannot be traced, or has an operator that is not in the table.
    """
    import torch

    by_name = dict(inputs) if isinstance(inputs, Mapping) else _by_position(module, inputs)
    tensors = {key: value for key, value in by_name.items() if isinstance(value, torch.Tensor)}
    fixed = {key: value for key, value in by_name.items() if key not in tensors}
    for key in dynamic or {}:
        if key not in tensors:
            raise SpecError(f"{name}: dynamic names no input {key!r}{nearest(key, tensors)}")
    open_axes = tuple(
        {axis: torch.export.Dim.AUTO for axis in range(value.ndim) if _is_open(dynamic, key, axis)}
        for key, value in tensors.items()
    )
    exported = _export(module, tensors, fixed, open_axes, name)
    return Lowering(exported, Program(name, source), aten.ATEN, list(tensors)).program()


def _export(
    module: Any, tensors: Mapping[str, Any], fixed: Mapping[str, Any], open_axes: Any, name: str
) -> "ExportedProgram":
    import torch

    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    arguments = tuple(value.to(device) for value in tensors.values())
    try:
        with torch.no_grad():
            return torch.export.export(
                _wrapped(module, tuple(tensors), fixed),
                arguments,
                dynamic_shapes=(open_axes,),
                strict=False,
            )
    except SpecError:
        raise
    except Exception as error:  # whatever the user's code or the tracer raises
        first = next(
            (line for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise SpecError(
            f"{name} cannot be traced: {type(error).__name__}: {first.strip()[:300]}"
        ) from error


def _is_open(dynamic: Mapping[str, Sequence[str | None]] | None, key: str, axis: int) -> bool:
    """Whether an axis stays open: every one, or those that *dynamic* has a word for."""
    words = dict(enumerate(dynamic.get(key, ()))) if dynamic is not None else {axis: key}
    return bool(words.get(axis))


def _by_position(module: Any, inputs: Sequence[Any]) -> dict[str, Any]:
    """Arguments by the names that ``forward`` has for them."""
    import inspect

    known = list(inspect.signature(module.forward).parameters)
    return {known[i] if i < len(known) else f"input{i}": value for i, value in enumerate(inputs)}


def _wrapped(module: Any, names: tuple[str, ...], fixed: Mapping[str, Any]) -> Any:
    """A module that takes tensors by position and calls *module* with what else it needs."""
    import torch

    class Traced(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *tensors: Any) -> Any:
            return _tensors(self.model(**dict(zip(names, tensors, strict=True)), **fixed))

    return Traced()


def _tensors(results: Any) -> Any:
    """The tensors of what a module returns."""
    import torch

    flat = [
        r
        for r in flattened(getattr(results, "to_tuple", lambda: results)())
        if isinstance(r, torch.Tensor)
    ]
    return tuple(flat)
