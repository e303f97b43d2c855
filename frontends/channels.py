"""Channels: how the features of a token are mixed."""

from dataclasses import dataclass

from frontends.writer import Writer
from opgraph.operator import Activation
from opgraph.tensor import Tensor

# SiLU, GELU: exponential, sum, quotient, product; one product more with a gate
_ACTIVATION_FLOP = 4


@dataclass(frozen=True, kw_only=True)
class FeedForward:
    """Two projections with an activation between; *gated*: its input has a second half (GLU)."""

    ffn: int
    gated: bool = True
    bias: bool = False
    label: str = ""

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Project up, activate, project down."""
        ffn = writer.dim("ffn", self.ffn, self.label)
        wide = writer.derive("gate_up", f"2*{ffn}") if self.gated else ffn
        up = writer.linear(
            "gate_up" if self.gated else "up",
            x,
            f"batch seq model, model {wide} -> batch seq {wide}",
            "ffn",
            self.bias,
        )
        hidden = writer.add(
            Activation(
                name=f"{writer.prefix}activation",
                inputs=(up,),
                dims=f"batch seq {ffn}",
                flop_per_element=_ACTIVATION_FLOP + self.gated,
            )
        )
        return writer.linear(
            "down", hidden, f"batch seq {ffn}, {ffn} model -> batch seq model", "ffn", self.bias
        )
