"""Constants computed at once: the arithmetic of shapes, on NumPy arrays in which sizes may stand.

An open size is an object in the array, so ``[batch, seq, 64][:2]`` and the product of it are found
as for numbers. What cannot be decided without knowing a size is not folded.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from frontends.onnx.call import Call

Array = NDArray[Any]
MOST_FOLDED = 4096  # elements: shapes and small tables, no masks and no weights


def fold(call: "Call", count: int | None) -> tuple[Array, ...] | None:
    """The results of *call* as arrays; None where its inputs are not all known.

    *count*: elements of the first result, if that can be said beforehand.
    """
    rule = FOLDS.get(call.op)
    arrays = [call.content(i) for i in range(len(call.inputs))]
    known = all(a is not None for a, value in zip(arrays, call.inputs, strict=True) if value)
    if rule is None or not known:
        return None
    if count is None and call.op in _SHRINKING:
        count = sum(np.size(array) for array in arrays)
    if count is None or count > MOST_FOLDED:
        return None
    try:
        with np.errstate(all="ignore"):
            made = rule(call, *arrays)
    except (TypeError, AttributeError, ValueError, IndexError, ArithmeticError):
        return None
    return tuple(map(plain, made if isinstance(made, list) else [made]))


def plain(given: Any) -> Array:
    """The array with plain integers where no size is open."""
    array: Array = np.asarray(given)
    if array.dtype != object:
        return array
    flat = [int(x) if getattr(x, "is_Integer", True) else x for x in array.ravel()]
    if all(isinstance(x, int) for x in flat) and all(abs(x) < 2**63 for x in flat):
        return np.array(flat, np.int64).reshape(array.shape)
    result: Array = np.empty(len(flat), object)
    result[:] = flat
    return result.reshape(array.shape)


def _of(function: Callable[..., Any]) -> "Rule":
    """A rule for an operator without attributes."""
    return lambda _, *arrays: function(*arrays)


def _divide(one: Array, other: Array) -> Any:
    if one.dtype.kind == "f":
        return one / other
    if object in (one.dtype, other.dtype):
        return np.floor_divide(one.astype(object), other.astype(object))
    # integers are cut towards zero
    return np.sign(one) * np.sign(other) * (abs(one) // abs(other))


def _extreme(name: str) -> "Rule":
    def rule(_: "Call", *arrays: Array) -> Any:
        if all(a.dtype != object for a in arrays):
            function = np.maximum if name == "Max" else np.minimum
            result = arrays[0]
            for array in arrays[1:]:
                result = function(result, array)
            return result
        import sympy

        each = np.vectorize(getattr(sympy, name), otypes=[object])
        return each(*arrays)

    return rule


def _cast(call: "Call", array: Array, *_: Array) -> Any:
    from onnx import helper

    if "to" not in call.attributes:
        return None
    wanted = helper.tensor_dtype_to_np_dtype(call.attributes["to"])
    if array.dtype == object:
        if wanted.kind != "i":
            raise TypeError(wanted)
        return array
    return array.astype(wanted)


def _slice(call: "Call", array: Array, *_: Array) -> Any:
    index: list[slice] = [slice(None)] * array.ndim
    for axis, start, stop, step in call.slices(array.ndim):
        index[axis] = slice(int(start), int(stop), int(step))
    return array[tuple(index)]


def _reshape(call: "Call", array: Array, shape: Array) -> Any:
    keep = not call.attribute("allowzero", 0)
    wanted = [array.shape[i] if n == 0 and keep else int(n) for i, n in enumerate(shape)]
    return array.reshape(wanted)


def _squeeze(call: "Call", array: Array, *_: Array) -> Any:
    axes = call.axes(1)
    return np.squeeze(array, None if axes is None else tuple(axes))


def _unsqueeze(call: "Call", array: Array, *_: Array) -> Any:
    return np.expand_dims(array, tuple(call.axes(1) or ()))


def _reduce(function: Callable[..., Any]) -> "Rule":
    def rule(call: "Call", array: Array, *_: Array) -> Any:
        axes = call.axes(1)
        keep = bool(call.attribute("keepdims", 1))
        return function(array, axis=None if axes is None else tuple(axes), keepdims=keep)

    return rule


def _split(call: "Call", array: Array, *_: Array) -> list[Array]:
    axis = call.attribute("axis", 0)
    sizes = [int(n) for n in call.split_sizes(array.shape[axis])]
    return np.split(array, np.cumsum(sizes)[:-1], axis)


def _full(call: "Call", shape: Array) -> Any:
    value = call.attribute("value", np.zeros(1, np.float32))
    return np.full([int(n) for n in shape], np.ravel(value)[0])


def _range(_: "Call", start: Array, stop: Array, step: Array) -> Any:
    return np.arange(start.item(), stop.item(), step.item(), dtype=start.dtype)


def _tile(_: "Call", array: Array, repeats: Array) -> Any:
    return np.tile(array, [int(n) for n in repeats])


def _expand(_: "Call", array: Array, shape: Array) -> Any:
    return np.broadcast_to(array, np.broadcast_shapes(array.shape, tuple(int(n) for n in shape)))


Rule = Callable[..., Any]
FOLDS: Mapping[str, Rule] = {
    "Add": _of(np.add),
    "Sub": _of(np.subtract),
    "Mul": _of(np.multiply),
    "Div": _of(_divide),
    "Mod": _of(np.mod),
    "Pow": _of(np.power),
    "Neg": _of(np.negative),
    "Abs": _of(np.abs),
    "Sign": _of(np.sign),
    "Sqrt": _of(np.sqrt),
    "Reciprocal": _of(np.reciprocal),
    "Exp": _of(np.exp),
    "Log": _of(np.log),
    "Floor": _of(np.floor),
    "Ceil": _of(np.ceil),
    "Round": _of(np.round),
    "Max": _extreme("Max"),
    "Min": _extreme("Min"),
    "Equal": _of(lambda a, b: np.equal(a, b).astype(bool)),
    "Greater": _of(lambda a, b: np.greater(a, b).astype(bool)),
    "GreaterOrEqual": _of(lambda a, b: np.greater_equal(a, b).astype(bool)),
    "Less": _of(lambda a, b: np.less(a, b).astype(bool)),
    "LessOrEqual": _of(lambda a, b: np.less_equal(a, b).astype(bool)),
    "And": _of(np.logical_and),
    "Or": _of(np.logical_or),
    "Not": _of(np.logical_not),
    "Where": _of(np.where),
    "Identity": _of(np.asarray),
    "Cast": _cast,
    "Concat": lambda call, *arrays: np.concatenate(arrays, call.attribute("axis", 0)),
    "Gather": lambda call, a, i: np.take(a, i.astype(int), call.attribute("axis", 0)),
    "Slice": _slice,
    "Split": _split,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": lambda call, a: np.transpose(a, call.attribute("perm", None)),
    "Expand": _expand,
    "Tile": _tile,
    "Range": _range,
    "ConstantOfShape": _full,
    "NonZero": _of(lambda a: np.array(np.nonzero(a))),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
}
# their results have no more elements than their inputs
_SHRINKING = frozenset(["Slice", "Reshape", "Squeeze", "Unsqueeze", "Split", "NonZero"])
