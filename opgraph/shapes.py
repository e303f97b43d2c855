"""Single operators by shape: one product, one attention, one collective, or a table of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware import Number, Platform, SpecError
from hardware.errors import nearest
from opgraph.cost import LIMITERS, CostModel, Machine
from opgraph.operator import Attention, Collective, Einsum, Elementwise, Norm, Operator
from opgraph.plan import Plan
from opgraph.sizes import Sizes
from opgraph.tensor import Tensor
from opgraph.workload import LARGEST

Words = Mapping[str, str]
PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class Shape:
    """A kind of operator and the columns that give its shape.

    Attributes
    ----------
    make : the operator, from the words among its columns.
    required : columns of whole numbers ≥ 1.
    optional : columns with the value they have when not given; numbers or words.
    """

    make: Callable[[Words], Operator]
    required: tuple[str, ...]
    optional: Mapping[str, int | str] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, required ones first."""
        return (*self.required, *self.optional)


def _gemm(words: Words) -> Operator:
    x = Tensor.of("x", "m k", words["dtype"])
    weight = Tensor.of("weight", "n k", words["dtype"], "weight")
    return Einsum(name="gemm", inputs=(x, weight), pattern="m k, n k -> m n")


def _attention(words: Words) -> Operator:
    query = Tensor.of("q", "batch seq heads head_dim", words["dtype"])
    key, value = (
        Tensor.of(name, "batch seq kv_heads head_dim", words["dtype"]) for name in ("k", "v")
    )
    caches = (
        Tensor.of(f"{name}_cache", "batch context kv_heads head_dim", words["kv_dtype"], "cache")
        for name in ("k", "v")
    )
    window = None if words["window"] == "0" else "window"
    return Attention(name="attention", inputs=(query, key, value, *caches), window=window)


def _norm(words: Words) -> Operator:
    x = Tensor.of("x", "rows cols", words["dtype"])
    return Norm(name="norm", inputs=(x, Tensor.of("weight", "cols", words["dtype"], "weight")))


def _elementwise(words: Words) -> Operator:
    return Elementwise(name="elementwise", inputs=(Tensor.of("x", "rows cols", words["dtype"]),))


def _collective(kind: str) -> Callable[[Words], Operator]:
    def make(words: Words) -> Operator:
        del words  # bytes are bytes, whatever they hold
        buffer = Tensor.of("buffer", "bytes", "int8")
        return Collective(name=kind, inputs=(buffer,), collective=kind, axes=("tp",))  # type: ignore[arg-type]

    return make


SHAPES: dict[str, Shape] = {
    "gemm": Shape(_gemm, ("m", "n", "k"), {"dtype": "bf16"}),
    "attention": Shape(
        _attention,
        ("batch", "seq", "heads", "head_dim"),
        {
            "phase": "prefill",
            "context": 0,
            "kv_heads": 0,
            "window": 0,
            "dtype": "bf16",
            "kv_dtype": "",
        },
    ),
    "norm": Shape(_norm, ("rows", "cols"), {"dtype": "bf16"}),
    "elementwise": Shape(_elementwise, ("rows", "cols"), {"dtype": "bf16"}),
    **{
        kind: Shape(_collective(kind), ("bytes", "chips"), {"dtype": "bf16"})
        for kind in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
    },
}


def price(
    kind: str, columns: Mapping[str, Sequence[Any]], platform: Platform, cost: CostModel
) -> dict[str, list[Any]]:
    """Price a table of shapes of one kind of operator on one chip of *platform*.

    Parameters
    ----------
    columns : the shape's columns, each with one entry per row; see `SHAPES`.

    Returns
    -------
    Columns ``time_us limiter low_us high_us flop bytes``: of a collective, *bytes* is the buffer.

    Raises
    ------
    SpecError : an unknown kind or column, a missing one, an entry that is no such number.
    """
    if kind not in SHAPES:
        raise SpecError(f"no operator {kind!r}{nearest(kind, SHAPES)}")
    shape = SHAPES[kind]
    table = _complete(kind, shape, columns)
    rows = len(next(iter(table.values())))
    answer: dict[str, list[Any]] = {name: [None] * rows for name in ANSWER}
    for group in _alike(shape, table, rows):
        words = {name: str(table[name][group[0]]) for name in shape.optional}
        numbers: dict[str, Number] = {
            name: np.array([float(value[row]) for row in group])
            for name, value in table.items()
            if not isinstance(value[group[0]], str)
        }
        _price_group(shape.make(words), numbers, Machine(platform, Plan()), cost, (answer, group))
    return answer


ANSWER = ("time_us", "limiter", "low_us", "high_us", "flop", "bytes")


def _price_group(
    operator: Operator,
    numbers: Mapping[str, Number],
    machine: Machine,
    cost: CostModel,
    into: tuple[dict[str, list[Any]], NDArray[np.intp]],
) -> None:
    """Price rows that differ in numbers only, and put them in their places."""
    plan = Plan(tp=numbers["chips"]) if "chips" in numbers else Plan()
    sizes = plan.bind(numbers, {})
    if isinstance(operator, Collective):
        sizes = Sizes({"bytes": numbers["bytes"]}, {}, plan.degrees)
    found = cost.cost(operator, sizes, Machine(machine.platform, plan))
    work, micro = found.work, 1e6
    moved = numbers.get("bytes", work.moved)
    low = found.time if found.low is None else found.low
    high = found.time if found.high is None else found.high
    answer, group = into
    values = np.broadcast_arrays(
        found.time * micro, found.limiter, low * micro, high * micro, work.flop, moved
    )
    for name, value in zip(ANSWER, values, strict=True):
        for row, item in zip(group, value.ravel(), strict=True):
            answer[name][row] = LIMITERS[int(item)] if name == "limiter" else float(item)


def _complete(
    kind: str, shape: Shape, columns: Mapping[str, Sequence[Any]]
) -> dict[str, list[Any]]:
    """All columns of the shape, checked, with what is not given filled in."""
    for name in columns:
        if name not in shape.columns:
            raise SpecError(f"{kind} has no column {name!r}{nearest(name, shape.columns)}")
    for name in shape.required:
        if name not in columns and not (name == "seq" and "phase" in columns):
            raise SpecError(f"{kind} needs {name!r}; its columns are {', '.join(shape.columns)}")
    rows = max((len(values) for values in columns.values()), default=0)
    if not rows:
        raise SpecError(f"{kind}: the table has no rows")
    table = {name: list(values) for name, values in columns.items()}
    for name in shape.columns:
        default = shape.optional.get(name, 1)
        table.setdefault(name, [default] * rows)
        table[name] = [_entry(kind, name, value, default) for value in table[name]]
    return _consistent(kind, table) if kind == "attention" else table


def _consistent(kind: str, table: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Fill in what follows from the rest: a decode step's one token, equal heads, own context."""
    for row, phase in enumerate(table["phase"]):
        if phase not in PHASES:
            raise SpecError(f"{kind}: phase is {phase!r}{nearest(phase, PHASES)}")
        if phase == "decode":
            table["context"][row] = table["context"][row] or table["seq"][row]
            table["seq"][row] = 1
        table["context"][row] = table["context"][row] or table["seq"][row]
        table["kv_heads"][row] = table["kv_heads"][row] or table["heads"][row]
        table["kv_dtype"][row] = table["kv_dtype"][row] or table["dtype"][row]
        seq, context = table["seq"][row], table["context"][row]
        if seq > context:
            raise SpecError(f"{kind}: seq {seq} is longer than the context {context} it ends")
        heads, kv_heads = table["heads"][row], table["kv_heads"][row]
        if heads % kv_heads:
            raise SpecError(f"{kind}: {heads} heads cannot share {kv_heads} KV heads evenly")
    return table


def _entry(kind: str, name: str, value: Any, default: int | str) -> int | str:
    if isinstance(default, str):
        return str(value).strip() or default
    least = 0 if default == 0 else 1
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise SpecError(f"{kind}: {name} is {value!r}, but must be a whole number") from None
    if not (least <= number <= LARGEST and number.is_integer()):
        raise SpecError(
            f"{kind}: {name} is {value}, but must be a whole number from {least} to {LARGEST}"
        )
    return int(number)


def _alike(shape: Shape, table: dict[str, list[Any]], rows: int) -> list[NDArray[np.intp]]:
    """The rows that share all words, and whether there is a window."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for row in range(rows):
        key = tuple(
            bool(table[name][row]) if name == "window" else table[name][row]
            for name, default in shape.optional.items()
            if isinstance(default, str) or name == "window"
        )
        groups.setdefault(key, []).append(row)
    return [np.array(group) for group in groups.values()]
