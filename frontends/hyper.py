"""Hyper-connections: several residual streams, mixed anew around every part of a layer.

Zhu et al., Hyper-Connections, 2024; with normalised mixing as in DeepSeek-V4, 2026.
"""

from dataclasses import dataclass

from frontends.writer import Part, Writer
from opgraph.hyper import Merge, Mix, Spread
from opgraph.operator import Elementwise
from opgraph.tensor import Tensor

# of reading, of writing, of mixing the streams with each other
_SCALES = 3


@dataclass(frozen=True, kw_only=True)
class HyperLayer:
    """A mixer and a channel, each reading a mixture of the streams and adding to all of them."""

    mixer: Part
    channel: Part

    def write(self, writer: Writer, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """From the streams before this layer to those after it; *x* is the same as *residual*."""
        del x
        # how much of each stream is read, how much is written to each, each pair of streams
        mixed = writer.derive("mixtures", "2*streams + streams*streams")
        scales = writer.dim("scales", _SCALES)
        for name, part in (("attention", self.mixer), ("ffn", self.channel)):
            inputs = (residual, *_weights(writer, f"{name}_mix", mixed, scales))
            mix = Mix(name=f"{writer.prefix}{name}_mix", inputs=inputs)
            mixture, plan = writer.build.add(mix)
            delta = part.write(writer, writer.norm(f"{name}_norm", mixture)[0])
            spread = Spread(name=f"{writer.prefix}{name}_spread", inputs=(residual, delta, plan))
            residual = writer.add(spread)
        return residual, residual


def expand(writer: Writer, x: Tensor, streams: int) -> Tensor:
    """Every stream starts as the embedding."""
    dims = f"batch seq {writer.dim('streams', streams)} model"
    return writer.add(Elementwise(name="streams", inputs=(x,), dims=dims, flop_per_element=0.0))


def merge(writer: Writer, residual: Tensor) -> Tensor:
    """The mixture of the streams that the head reads."""
    mixed = writer.derive("merged", "streams")
    weights = _weights(writer, "merge", mixed, writer.dim("one", 1))
    return writer.add(Merge(name="merge", inputs=(residual, *weights)))


def _weights(writer: Writer, name: str, mixed: str, scales: str) -> tuple[Tensor, ...]:
    """What makes the coefficients: a matrix over all streams, a bias, and scales."""
    return (
        writer.weight(f"{name}.weight", f"{mixed} streams model"),
        writer.weight(f"{name}.bias", mixed),
        writer.weight(f"{name}.scale", scales),
    )
