"""A whole step beside AIConfigurator's own sum over its measured tables, by operator class.

``python -m validation.steps docs/steps.md`` renews the tables of that document; without a
document they go to standard output.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from frontends import load_model
from hardware import SpecError, load_platform
from opgraph import Plan, Workload
from opgraph.cost import LEVELS, cost_model
from opgraph.point import Phase, Point
from validation.extras import TABLES, needed

CLASSES = ("gemm", "attention", "moe", "collective", "elementwise", "other")
SYSTEMS = {"dgx-h100": "h100_sxm", "dgx-h200": "h200_sxm", "dgx-b200": "b200_sxm"}
MILLI = 1e3
MARKS = ("<!-- tables -->", "<!-- end of tables -->")

# what both sides run differs in where a kernel ends; a class holds the same work on both: the
# tables' products quantise their own input, their attention rotates and writes the cache
_OURS = {
    "gemm": "gemm", "quantize": "gemm", "attention": "attention", "rotary": "attention",
    "cache": "attention", "moe": "moe", "route": "moe", "dispatch": "moe", "combine": "moe",
    "all_reduce": "collective", "all_gather": "collective", "reduce_scatter": "collective",
    "all_to_all": "collective", "send": "collective", "lookup": "elementwise",
    "norm": "elementwise", "activation": "elementwise", "elementwise": "elementwise",
    "select": "elementwise",
}  # fmt: skip
_THEIRS = {
    "Gemm": "gemm", "MlaBmm": "gemm", "ContextAttention": "attention",
    "GenerationAttention": "attention", "ContextMla": "attention", "GenerationMla": "attention",
    "Moe": "moe", "MoeDispatch": "collective", "CustomAllReduce": "collective",
    "Nccl": "collective", "P2P": "collective", "Embedding": "elementwise",
    "Elementwise": "elementwise",
}  # fmt: skip


class Step(NamedTuple):
    """One step: a decode step that attends to *context* tokens, or a prefill of them."""

    phase: Phase
    batch: int
    context: int


STEPS = (
    *(Step("decode", batch, context) for context in (1024, 8192) for batch in (1, 16, 64, 256)),
    Step("prefill", 1, 2048),
    Step("prefill", 8, 2048),
)


class Share(NamedTuple):
    """An operator's part of a step, over all layers."""

    name: str
    kind: str  # one of CLASSES
    time: float  # milliseconds


@dataclass(frozen=True)
class Setup:
    """A model in the same formats on both sides.

    Attributes
    ----------
    peer : its name in AIConfigurator.
    weights, kv_cache : of `frontends.load_model`.
    modes : AIConfigurator's quantisation modes and expert parallelism.
    attention : the backend whose decode attention our kernels are fitted on, if not TRT-LLM.
    skew : the power law over experts that its MoE tables are read at.
    """

    peer: str
    weights: str | None
    kv_cache: str
    modes: Mapping[str, Any]
    attention: str = ""
    skew: float = 0.0
    tp: int = 8


SETUPS = {
    "llama-3.1-70b": Setup(
        "nvidia/Llama-3.1-70B-Instruct-FP8",
        "fp8",
        "fp8",
        {"gemm_quant_mode": "fp8_static", "kvcache_quant_mode": "fp8",
         "fmha_quant_mode": "bfloat16"},
        attention="sglang",
    ),
    "deepseek-v3": Setup(
        "deepseek-ai/DeepSeek-V3",
        None,
        "fp8",
        {"gemm_quant_mode": "fp8_block", "moe_quant_mode": "fp8_block",
         "kvcache_quant_mode": "fp8", "fmha_quant_mode": "bfloat16",
         "moe_tp_size": 8, "moe_ep_size": 1},
        skew=1.01,
    ),
}  # fmt: skip


def compare(
    model: str,
    system: str = "dgx-h200",
    *,
    backend: str = "trtllm",
    steps: Sequence[Step] = STEPS,
    levels: Sequence[str] = LEVELS,
) -> pd.DataFrame:
    """Return each step's time by operator class, ours at each level beside AIConfigurator's.

    Columns: ``model system backend phase batch context level class ours_ms theirs_ms
    difference_ms``; the class ``total`` is the step as each side states it.

    Raises SpecError for a model or system without a setup, and where the package is missing.
    """
    rows = []
    for step in steps:
        total, theirs = their_step(model, system, step, backend)
        for level in levels:
            time, ours = our_step(model, system, step, level)
            for name in (*CLASSES, "total"):
                here, there = (
                    whole if name == "total" else sum(s.time for s in shares if s.kind == name)
                    for whole, shares in ((time, ours), (total, theirs))
                )
                rows.append({
                    "model": model, "system": system, "backend": backend, **step._asdict(),
                    "level": level, "class": name, "ours_ms": here, "theirs_ms": there,
                    "difference_ms": here - there,
                })  # fmt: skip
    return pd.DataFrame(rows)


def our_step(model: str, system: str, step: Step, level: str) -> tuple[float, list[Share]]:
    """Return our time of a step in milliseconds and its operators."""
    setup = _setup(model)
    work = Workload(batch=step.batch, prompt=step.context, skew=setup.skew)
    known = load_model(model, weights=setup.weights, kv_cache=setup.kv_cache)
    plan = Plan(tp=setup.tp)
    point = Point(known, load_platform(system), plan, work, cost_model(level))
    timeline = point.timeline(step.phase, step.context)
    shares = [
        Share(
            event.name,
            _our_class(event.name, event.kind),
            float(event.time) * event.count * MILLI,
        )
        for event in timeline.events
    ]
    time = float(timeline.time) * MILLI
    return time, [*shares, Share("overlap", "other", time - sum(share.time for share in shares))]


def their_step(
    model: str, system: str, step: Step, backend: str = "trtllm"
) -> tuple[float, list[Share]]:
    """Return AIConfigurator's sum of a step in milliseconds and the operators in it.

    Of two groups side by side the longer counts. An attention block measured as one module is
    listed by its parts, as they were measured alone, and what the module differs by.
    """
    if system not in SYSTEMS:
        raise SpecError(f"no tables for {system!r}; there are {', '.join(SYSTEMS)}")
    engine, operators = _engine(model, SYSTEMS[system], backend)
    batch, context = step.batch, step.context
    decodes = step.phase == "decode"
    if decodes:  # a step from a context of isl tokens attends to isl + 1
        total = engine.decode_step_latency(batch, context - 1, 0)
        listed = engine.decode_step_per_op(batch, context - 1, 0)
    else:
        total = engine.predict_prefill_latency(batch, context)
        listed, _ = engine.run_static_per_op(
            batch_size=batch, isl=context, osl=2, mode="static_ctx"
        )
    times = {name: time for name, time, *_ in listed}
    inner = _Inner(engine, not decodes, batch, context)
    shares = [
        share
        for operator in operators["generation" if decodes else "context"]
        for share in inner.shares(operator, times)
    ]
    return float(total), shares


def their_step_fitted(model: str, system: str, step: Step) -> float:
    """Return AIConfigurator's sum with decode attention from the tables that ours is fitted on."""
    total, shares = their_step(model, system, step)
    other = _setup(model).attention
    if step.phase == "prefill" or not other:
        return total
    _, instead = their_step(model, system, step, other)
    spent, would = (
        sum(share.time for share in part if share.kind == "attention") for part in (shares, instead)
    )
    return total - spent + would


@dataclass(frozen=True)
class _Inner:
    """Looks inside the composite operators of a step."""

    engine: Any
    is_prefill: bool
    batch: int
    context: int

    def shares(self, operator: Mapping[str, Any], times: Mapping[str, float]) -> Iterator[Share]:
        """The leaves of an operator whose time the step lists; they sum to it."""
        ((kind, body),) = operator.items()
        name, whole = body["name"], times[body["name"]]
        if kind == "Overlap":
            groups = [[self._alone(part) for part in body[side]] for side in ("group_a", "group_b")]
            leaves = max(groups, key=lambda group: sum(leaf.time for leaf in group))
        elif kind == "Fallback":
            leaves = [self._alone(part) for part in body["fallback"]]
        else:
            leaves = [Share(name, _THEIRS.get(kind, "other"), whole)]
        yield from leaves
        yield Share(f"{name}, rest", "other", whole - sum(leaf.time for leaf in leaves))

    def _alone(self, operator: Mapping[str, Any]) -> Share:
        (kind,) = operator
        rows = self.batch * (self.context if self.is_prefill else 1)
        ((name, time, *_),) = self.engine.evaluate_ops_json(
            json.dumps([operator]), is_context=self.is_prefill, batch_size=self.batch,
            s=self.context, x=rows,
        )  # fmt: skip
        return Share(name, _THEIRS.get(kind, "other"), time)


@cache
def _engine(model: str, system: str, backend: str) -> tuple[Any, dict[str, list[Any]]]:
    """AIConfigurator's compiled engine for a model, and its operators by phase."""
    needed(TABLES, "pyarrow", "yaml")
    core = import_module(f"{TABLES}.sdk.engine")
    builders = import_module(f"{TABLES}.sdk.config_builders")
    models = import_module(f"{TABLES}.sdk.models")
    setup = _setup(model)
    modes = {"moe_tp_size": 1, "moe_ep_size": 1, "attention_dp_size": 1, "pp_size": 1}
    modes |= {"tp_size": setup.tp, **setup.modes}
    engine = core.EngineHandle.compile(setup.peer, system, backend, **modes)
    described = models.get_model(setup.peer, builders.build_model_config(**modes), backend)
    phases = {"context": described.context_ops, "generation": described.generation_ops}
    return engine, {name: json.loads(core.build_ops_json(ops)) for name, ops in phases.items()}


def _setup(model: str) -> Setup:
    if model not in SETUPS:
        raise SpecError(f"no setup for {model!r}; there are {', '.join(SETUPS)}")
    return SETUPS[model]


def _our_class(name: str, kind: str) -> str:
    """The class of one of our operators; what runs on experts' rows is inside their kernel."""
    return (
        "moe"
        if ".experts_" in name and kind in {"activation", "quantize"}
        else _OURS.get(kind, "other")
    )


def totals(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per step: theirs, ours at each level and the last level's difference."""
    whole = frame[frame["class"] == "total"]
    table = whole.pivot(index=list(Step._fields), columns="level", values="ours_ms")
    levels = [level for level in LEVELS if level in table]
    table = table[levels].reindex(_steps(frame))
    table.insert(0, "AIC", whole.groupby(list(Step._fields))["theirs_ms"].first())
    return table.assign(difference=table[levels[-1]] / table["AIC"] - 1)


def classes(frame: pd.DataFrame, level: str = LEVELS[-1]) -> pd.DataFrame:
    """Return one line per step, one column per class at a level: ours / theirs (difference)."""
    part = frame[(frame["level"] == level) & (frame["class"] != "total")]
    cells = part.assign(cell=[_cell(*row) for row in part[["ours_ms", "theirs_ms"]].to_numpy()])
    table = cells.pivot(index=list(Step._fields), columns="class", values="cell")
    return table[list(CLASSES)].reindex(_steps(frame))


def markdown(model: str, system: str = "dgx-h200", backend: str = "trtllm") -> str:
    """Return both tables of a model as Markdown; times in milliseconds."""
    frame = compare(model, system, backend=backend)
    steps = totals(frame)
    if _setup(model).attention:
        fitted = [their_step_fitted(model, system, step) for step in _steps(frame)]
        steps["AIC, fitted attention"] = fitted
        steps["difference to that"] = steps[LEVELS[-1]] / fitted - 1
    for column in steps:
        form = "{:+.0%}" if str(column).startswith("difference") else "{:.2f}"
        steps[column] = [form.format(value) for value in steps[column]]
    head = f"{model}, TP 8 on {system}, tables of {backend}, ms"
    return (
        f"**{head}: the step**\n\n{_table(steps)}\n"
        f"**{head}: ours at {LEVELS[-1]} / AIC (difference)**\n\n{_table(classes(frame))}"
    )


def _steps(frame: pd.DataFrame) -> list[Step]:
    """The steps of a comparison, in its order."""
    unique = frame[list(Step._fields)].drop_duplicates()
    return [Step(*row) for row in unique.itertuples(index=False, name=None)]


def _cell(ours: float, theirs: float) -> str:
    return f"{ours:.2f} / {theirs:.2f} ({ours - theirs:+.2f})" if ours or theirs else "–"


def _table(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table, its index first."""
    plain = frame.reset_index()
    lines = [list(map(str, plain.columns)), ["---"] * len(plain.columns)]
    lines += [list(map(str, row)) for row in plain.itertuples(index=False, name=None)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(path: str = "") -> None:
    """Write the tables of all setups to standard output, or between the marks of a document."""
    tables = "\n".join(map(markdown, SETUPS))
    if not path:
        sys.stdout.write(tables)
        return
    document = Path(path).read_text("utf-8")
    before, _, rest = document.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    text = f"{before}{MARKS[0]}\n\n{tables}\n{MARKS[1]}{after}"
    Path(path).write_text(text, "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:2])
