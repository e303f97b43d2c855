"""The options that commands share, and what they ask for: a plan, a report."""

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from opgraph import Plan
    from opgraph.report import Report

_MICRO = 1e6


def whole(text: str | int) -> int:
    """A whole number; a message with the user's own word otherwise."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None


ModelName = Annotated[
    str, typer.Argument(help="a name of `opgraph list models`, a config.json or .onnx")
]
PlatformName = Annotated[
    str, typer.Option("--platform", "-p", help="a name, a TOML file, or CHIP:N such as h100-sxm:8")
]
Degree = Annotated[int, typer.Option("--tp", parser=whole, metavar="N", help="tensor parallelism")]
Copies = Annotated[
    int,
    typer.Option("--dp", parser=whole, metavar="N", help="data parallelism: copies of the model"),
]
Stages = Annotated[int, typer.Option("--pp", parser=whole, metavar="N", help="pipeline stages")]
ExpertChips = Annotated[
    int, typer.Option("--ep", parser=whole, metavar="N", help="chips that experts are split over")
]
ContextChips = Annotated[
    int, typer.Option("--cp", parser=whole, metavar="N", help="context parallelism")
]
AttentionCopies = Annotated[
    int | None,
    typer.Option(
        "--attention-dp",
        parser=whole,
        metavar="N",
        help="copies of attention within a stage; as many as --ep needs if not given",
    ),
]
SequenceParallel = Annotated[
    bool, typer.Option("--sp/--no-sp", help="sequence parallelism among the --tp chips")
]
Microbatches = Annotated[
    int | None,
    typer.Option(
        parser=whole,
        metavar="N",
        help="parts of the batch, no more than sequences; --pp if not given",
    ),
]
Interleave = Annotated[
    int, typer.Option(parser=whole, metavar="N", help="pieces of the model on each stage")
]
Redundant = Annotated[
    int,
    typer.Option(
        "--redundant-experts", parser=whole, metavar="N", help="copies of popular experts"
    ),
]
Overlap = Annotated[
    str, typer.Option(help="transfers under what is computed beside them: two-batch or chunked")
]
Chunks = Annotated[
    int | None,
    typer.Option(parser=whole, metavar="N", help="parts of a chunked product; 4 if not given"),
]
Order = Annotated[
    str | None,
    typer.Option(help="axes from neighbouring chips outwards: tp,cp,attention_dp,pp,dp"),
]
Layers = Annotated[str | None, typer.Option(help="layers of each stage: 20,20,20,20")]
Batch = Annotated[
    int, typer.Option("--batch", "-b", parser=whole, metavar="N", help="sequences in flight")
]
Prompt = Annotated[
    int, typer.Option("--prompt", parser=whole, metavar="N", help="tokens of each prompt")
]
Output = Annotated[
    int, typer.Option("--output", parser=whole, metavar="N", help="tokens generated for each")
]
Weights = Annotated[
    str | None, typer.Option(help="format of the weights: fp8, int4-g128, nvfp4, fp8/bf16 …")
]
KVCache = Annotated[str | None, typer.Option("--kv-cache", help="format of the KV cache: fp8 …")]
Images = Annotated[
    int, typer.Option("--images", parser=whole, metavar="N", help="images in each prompt")
]
Skew = Annotated[float, typer.Option(help="Zipf exponent of the experts' popularity")]
Absorb = Annotated[
    bool | None, typer.Option(help="latent attention in the latent space; where it pays if unset")
]
LoraRank = Annotated[
    int, typer.Option(parser=whole, metavar="N", help="rank of adapters applied at run time")
]
LoraCount = Annotated[int, typer.Option(parser=whole, metavar="N", help="adapters in memory")]
KVKept = Annotated[float, typer.Option(help="share of cached positions that is kept")]
Window = Annotated[
    int, typer.Option(parser=whole, metavar="N", help="tokens that full attention looks back")
]
Sizes = Annotated[
    list[str] | None,
    typer.Option("--size", metavar="NAME=N", help="an open size of an ONNX file; may be repeated"),
]
Cost = Annotated[
    str, typer.Option("--cost", help="the cost model: ideal, calibrated, tiled or corrected")
]
ReserveShare = Annotated[
    float, typer.Option("--reserve", help="share of the chip's memory that is left alone")
]
OffloadWeights = Annotated[
    float, typer.Option("--offload-weights", help="share of the weights in a farther tier")
]
OffloadKV = Annotated[
    float, typer.Option("--offload-kv", help="share of the KV cache in a farther tier")
]
TierName = Annotated[str, typer.Option("--tier", help="that tier; the platform's nearest if unset")]
HostStep = Annotated[float, typer.Option(help="µs that the host takes before each step")]
HostOperator = Annotated[float, typer.Option(help="least µs of an operator launched by the host")]
Plot = Annotated[Path | None, typer.Option(help="write a picture as PNG, SVG or PDF")]
PriceOf = Annotated[str | None, typer.Option(help="$ per chip-hour, or: list, ownership")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON and nothing else")]


def _sizes(words: Sequence[str]) -> dict[str, str]:
    """The open sizes that ``--size NAME=N`` gives."""
    from hardware import SpecError

    pairs = [word.partition("=") for word in words]
    for name, sign, value in pairs:
        if not (name and sign and value):
            raise SpecError(f"--size {name}: a size is given as NAME=N, such as height=48")
    return {name: value for name, _, value in pairs}


# options that mean something only beside one of others, and what those are when not in use
_BESIDE: dict[str, dict[str, Any]] = {
    "lora_count": {"lora_rank": 0},
    "interleave": {"pp": 1},
    "chunks": {"overlap": ""},
    "tier": {"offload_weights": 0, "offload_kv": 0},
}
# what such an option is when it asks for nothing
_IDLE = (None, "", 1)


def _check_beside(options: dict[str, Any]) -> None:
    """Refuse an option that has no effect."""
    from hardware import SpecError

    for name, others in _BESIDE.items():
        if options[name] not in _IDLE and all(options[n] == unused for n, unused in others.items()):
            words = " or ".join(f"--{other.replace('_', '-')}" for other in others)
            raise SpecError(f"--{name.replace('_', '-')} has no effect without {words}")


def report_of(
    model: ModelName,
    platform: PlatformName,
    tp: Degree = 1,
    pp: Stages = 1,
    ep: ExpertChips = 1,
    dp: Copies = 1,
    cp: ContextChips = 1,
    attention_dp: AttentionCopies = None,
    sp: SequenceParallel = False,
    microbatches: Microbatches = None,
    interleave: Interleave = 1,
    layers: Layers = None,
    redundant_experts: Redundant = 0,
    overlap: Overlap = "",
    chunks: Chunks = None,
    order: Order = None,
    batch: Batch = 1,
    prompt: Prompt = 2048,
    output: Output = 256,
    images: Images = 0,
    skew: Skew = 0.0,
    weights: Weights = None,
    kv_cache: KVCache = None,
    absorb: Absorb = None,
    lora_rank: LoraRank = 0,
    lora_count: LoraCount = 1,
    kv_kept: KVKept = 1.0,
    window: Window = 0,
    size: Sizes = None,
    host_step_us: HostStep = 0.0,
    host_operator_us: HostOperator = 0.0,
    reserve: ReserveShare = 0.0,
    offload_weights: OffloadWeights = 0.0,
    offload_kv: OffloadKV = 0.0,
    tier: TierName = "",
    cost: Cost = "ideal",
) -> "Report":
    """The report that the options ask for."""
    return _report(locals())


def of_a_report(command: Callable[..., None]) -> Callable[..., None]:
    """*command*, which takes a report first, as one that takes the options of `report_of`."""
    asked, own = (list(signature(f).parameters.values()) for f in (report_of, command))
    own = own[1:]

    @wraps(command)
    def run(**given: Any) -> None:
        report = report_of(**{entry.name: given.pop(entry.name) for entry in asked})
        command(report, **given)

    entries = sorted([*asked, *own], key=lambda entry: entry.default is not entry.empty)
    run.__signature__ = Signature(entries)  # type: ignore[attr-defined]
    run.__annotations__ = {entry.name: entry.annotation for entry in entries}
    return run


def _report(options: dict[str, Any]) -> "Report":
    from frontends import Lora, Variant, load_model
    from hardware import load_platform
    from opgraph import Host, Offload, Reserve, Workload, simulate

    def some(*names: str) -> dict[str, Any]:
        return {name: options[name] for name in names}

    _check_beside(options)
    rank = options["lora_rank"]
    lora = Lora(rank=rank, count=options["lora_count"]) if rank else None
    variant = Variant(lora=lora, **some("kv_kept", "window"))
    formats = some("weights", "kv_cache", "absorb")
    dims = _sizes(options["size"] or ())
    model = load_model(options["model"], **formats, variant=variant, dims=dims)
    return simulate(
        model,
        load_platform(options["platform"]),
        plan_of(options),
        Workload(**some("batch", "prompt", "output", "images", "skew")),
        cost=options["cost"],
        host=Host(
            per_step=options["host_step_us"] / _MICRO,
            per_operator=options["host_operator_us"] / _MICRO,
        ),
        reserve=Reserve(share=options["reserve"]),
        offload=Offload(
            weights=options["offload_weights"],
            kv_cache=options["offload_kv"],
            tier=options["tier"],
        ),
    )


def plan_of(options: dict[str, Any]) -> "Plan":
    """The plan that the options ask for."""
    from opgraph import Plan

    names = ("tp", "pp", "ep", "dp", "cp", "attention_dp", "sp", "microbatches", "interleave",
             "redundant_experts", "overlap", "chunks")  # fmt: skip
    chosen = {name: options[name] for name in names if options[name] is not None}
    if options["order"]:
        chosen["order"] = tuple(options["order"].split(","))
    if options["layers"]:
        chosen["layers"] = tuple(whole(word) for word in options["layers"].split(","))
    return Plan(**chosen)
