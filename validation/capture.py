"""A capture: one step of a model of the catalogue, run by PyTorch under its profiler.

What runs is the model's code in Hugging Face transformers with random weights, on the processor
or GPU of this machine, one operator after another. The trace is Kineto's own; under the key
``opgraph`` it also says what was run, on what, and how long the step takes without a profiler.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from frontends import load_config
from hardware import SpecError
from validation.extras import needed
from validation.machine import this_machine
from validation.microbenchmarks import attend

KEY = "opgraph"  # of the trace's own metadata
_ATTENTION = "opgraph"  # under which transformers finds our attention
_NOT_DIMENSIONS = ("model_type", "architectures", "torch_dtype", "dtype")


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is run.

    Attributes
    ----------
    model : a name of the catalogue.
    phase : ``prefill`` of *tokens* each, or ``decode`` of one with *tokens* in its context.
    batch, tokens : sequences, and tokens of each.
    layers, vocab : in place of the model's own; 0 leaves them. Few layers and a small vocabulary
        leave a step of layers alone.
    """

    model: str
    phase: Literal["prefill", "decode"]
    batch: int = 1
    tokens: int = 512
    layers: int = 0
    vocab: int = 0

    @property
    def config(self) -> dict[str, Any]:
        """The model's config with those changes; SpecError for an unknown model."""
        changes = {"num_hidden_layers": self.layers, "vocab_size": self.vocab}
        return load_config(self.model) | {key: new for key, new in changes.items() if new}

    @property
    def before(self) -> int:
        """Tokens that the cache holds before the step."""
        return 0 if self.phase == "prefill" else self.tokens - 1

    @property
    def name(self) -> str:
        """What a file of this step may be called."""
        part = f"-{self.layers}layers" if self.layers else ""
        return f"{Path(self.model).name}{part}-{self.phase}-{self.batch}x{self.tokens}"


def capture(
    step: Step, folder: Path, *, device: str = "cpu", threads: int = 1, repeats: int = 7,
    traced: int = 3,
) -> Path:  # fmt: skip
    """Run a step, write its trace into *folder*, return where.

    A step to warm up comes first; then *repeats* steps are timed alone, and *traced* more run
    under the profiler.

    Raises
    ------
    SpecError : PyTorch, transformers or the device is missing; the model is unknown, keeps
        something else than keys and values of each head, or attends within a window that is
        shorter than the step's context.
    """
    needed("torch", "transformers", extra="torch")
    from torch.profiler import ProfilerActivity, profile, record_function

    machine = this_machine(device, threads)
    run = _runner(step, device)
    seconds = [_timed(run) for _ in range(repeats + 1)][1:]
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device == "cuda")]
    run.name_modules()
    known = {**asdict(step), **machine.facts(), "step_ms": statistics.median(seconds) * 1e3}
    with profile(activities=activities, record_shapes=True) as profiler:
        profiler.add_metadata_json(KEY, json.dumps(known))
        for _ in range(traced):
            with record_function(step.phase):
                run()
    path = folder / f"{step.name}.json.gz"
    profiler.export_chrome_trace(str(path))
    return path


def _timed(run: "_Run") -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class _Run:
    """A model with its cache, ready to do one step again and again."""

    def __init__(self, step: Step, model: Any, cache: Any, device: str) -> None:
        import torch

        self.model, self.cache = model, cache
        size = (step.batch, step.tokens - step.before)
        self.tokens = torch.randint(model.config.vocab_size, size, device=device)
        self.positions = torch.arange(step.before, step.tokens, device=device)[None]

    def __call__(self) -> Any:
        """One step, up to the tokens drawn, which are on the host when it returns."""
        import torch

        with torch.inference_mode():
            logits = self.model(
                input_ids=self.tokens, position_ids=self.positions, past_key_values=self.cache,
                use_cache=True, logits_to_keep=1,
            ).logits  # fmt: skip
            return torch.multinomial(logits[:, -1].float().softmax(-1), 1).cpu()

    def name_modules(self) -> None:
        """Let every module annotate the trace with its path while it runs."""
        for name, module in self.model.named_modules():
            if name:
                enter, leave = _annotation(name)
                module.register_forward_pre_hook(enter)
                module.register_forward_hook(leave)


def _annotation(name: str) -> tuple[Callable[..., None], Callable[..., None]]:
    from torch.profiler import record_function

    inside: list[Any] = []

    def enter(*_: Any) -> None:
        inside.append(record_function(name))
        inside[-1].__enter__()

    def leave(*_: Any) -> None:
        inside.pop().__exit__(None, None, None)

    return enter, leave


def _runner(step: Step, device: str) -> _Run:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    _register(step)
    torch.manual_seed(0)
    given = step.config
    kept = {key: value for key, value in given.items() if key not in _NOT_DIMENSIONS}
    config = AutoConfig.for_model(given["model_type"], **kept)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation=_ATTENTION
        ).eval()
        size = _head_size(step, model)
        shape = (step.batch, config.num_key_value_heads, step.tokens, size)
        return _Run(step, model, _cache(step, config.num_hidden_layers, shape), device)


def _head_size(step: Step, model: Any) -> int:
    """Numbers of a head, of a model that caches the keys and values of its heads."""
    layers = getattr(getattr(model, "model", None), "layers", [])
    sizes: list[Any] = [
        getattr(getattr(layer, "self_attn", None), "head_dim", None) for layer in layers
    ]
    if not sizes or None in sizes:
        raise SpecError(
            f"{step.model} is no decoder that caches keys and values of each head in every layer: "
            "such a one is captured"
        )
    return int(sizes[0])


def _cache(step: Step, layers: int, shape: tuple[int, ...]) -> Any:
    """A cache in which the tokens before the step are random, and those of it are written in place.

    The one of transformers scatters them number by number, which on a processor takes longer than
    the attention.
    """
    import torch
    from transformers.cache_utils import Cache, StaticLayer

    class Layer(StaticLayer):  # type: ignore[misc]
        def update(self, key: Any, value: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
            self.keys[:, :, step.before :] = key
            self.values[:, :, step.before :] = value
            return self.keys, self.values

        def get_seq_length(self) -> int:
            return step.before

    made = [Layer(max_cache_len=step.tokens) for _ in range(layers)]
    for layer in made:
        layer.lazy_initialization(*(torch.randn(shape, dtype=torch.bfloat16) for _ in range(2)))
        layer.keys.normal_()
        layer.values.normal_()
    return Cache(layers=made)


def _register(step: Step) -> None:
    """Give transformers an attention that needs no mask and copies no keys."""
    from transformers import AttentionInterface, AttentionMaskInterface

    def attention(
        module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any
    ) -> tuple[Any, None]:
        window = options.get("sliding_window")
        if window is not None and window < step.tokens:
            raise SpecError(f"{step.model} attends within {window} tokens: capture fewer")
        attended = attend(query, key, value, options.get("scaling"))
        return attended.transpose(1, 2).contiguous(), None

    AttentionInterface.register(_ATTENTION, attention)
    AttentionMaskInterface.register(_ATTENTION, lambda *_, **__: None)
