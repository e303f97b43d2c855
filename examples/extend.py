"""A new operator is one class: what comes out, and how much arithmetic that is."""

from dataclasses import dataclass
from functools import cached_property

from hardware import Number, load_platform
from opgraph import Builder, Operator, Plan, Sizes, Tensor
from opgraph.cost import Machine, Roofline


@dataclass(frozen=True, kw_only=True)
class Convolution(Operator):
    """A causal convolution over the last few positions of each channel."""

    width: int
    kind = "convolution"

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        """A result like the input."""
        return (self._make(self.name, self.inputs[0].dims, self.inputs[0].format),)

    def flop(self, sizes: Sizes) -> Number:
        """A product and a sum for each element and tap."""
        return 2 * self.width * self.outputs[0].numel(sizes)


build = Builder("example")
x = build.input(Tensor.of("x", "batch seq channels", "bf16"))
build.add(Convolution(name="conv", inputs=(x,), width=4))
graph = build.graph()
print(graph)

sizes = Sizes({"batch": 8, "seq": 2048, "channels": 5120})
machine = Machine(load_platform("h100-sxm:1"), Plan())
for operator, _ in graph.operators:
    cost = Roofline().cost(operator, sizes, machine)
    print(f"{operator.name}: {cost.work.flop:.4g} FLOP, {cost.time * 1e6:.1f} µs")
