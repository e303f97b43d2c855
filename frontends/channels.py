"""Channels: how the features of a token are mixed."""

from dataclasses import dataclass

from frontends.precision import WeightClass
from frontends.writer import Part, Writer
from opgraph.experts import Combine, Dispatch, GroupedEinsum, Route
from opgraph.operator import Activation, Lookup
from opgraph.tensor import Tensor

# SiLU, GELU: exponential, sum, quotient, product; one product more with a gate
_ACTIVATION_FLOP = 4


@dataclass(frozen=True, kw_only=True)
class FeedForward:
    """Two projections with an activation between; *gated*: its input has a second half (GLU).

    *name* begins the names of its operators, where a layer has more than one.
    """

    ffn: int
    gated: bool = True
    bias: bool = False
    label: str = ""
    name: str = ""
    weight_class: WeightClass = "ffn"

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Project up, activate, project down."""
        *places, model = x.dims
        tokens = " ".join(places)
        ffn = writer.dim("ffn", self.ffn, self.label)
        wide = writer.derive("gate_up", f"2*{ffn}") if self.gated else ffn
        up = writer.linear(
            self.name + ("gate_up" if self.gated else "up"),
            x,
            f"{tokens} {model}, {model} {wide} -> {tokens} {wide}",
            self.weight_class,
            self.bias,
        )
        hidden = writer.add(
            Activation(
                name=f"{writer.prefix}{self.name}activation",
                inputs=(up,),
                dims=f"{tokens} {ffn}",
                flop_per_element=_ACTIVATION_FLOP + self.gated,
            )
        )
        pattern = f"{tokens} {ffn}, {ffn} {model} -> {tokens} {model}"
        return writer.linear(f"{self.name}down", hidden, pattern, self.weight_class, self.bias)


@dataclass(frozen=True, kw_only=True)
class MixtureOfExperts:
    """Each token goes to *topk* of the *experts*, which are feed-forward networks (Shazeer 2017).

    Parameters
    ----------
    experts, topk, ffn : how many there are, how many a token goes to, how wide each is.
    gated, bias : as in `FeedForward`.
    router_bias : a number per expert is added to its score.
    router_norm : the router reads a normalised input of its own (Gemma 4).
    table : rows of a table that chooses the experts by the token (DeepSeek-V4; 0: by the scores).
    latent, latent_norm : width on which the experts work, between two projections (0: the
        model's), and whether it is normalised before.
    shared, shared_gate : a network that every token goes to, and a factor for its result.
    """

    experts: int
    topk: int
    ffn: int
    gated: bool = True
    bias: bool = False
    router_bias: bool = False
    router_norm: bool = False
    table: int = 0
    latent: int = 0
    latent_norm: bool = False
    shared: FeedForward | None = None
    shared_gate: bool = False

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Route, compute each expert's rows, add them up; and what is shared."""
        experts = writer.dim("experts", self.experts)
        topk = writer.dim("topk", self.topk)
        writer.inactive[experts] = topk
        routes = self._route(writer, x, topk)
        narrow = self._latent(writer, x)
        tokens = (writer.entering(narrow, "experts"), routes)
        rows = writer.add(Dispatch(name=f"{writer.prefix}dispatch", inputs=tokens))
        rows = self._feed(writer, rows, experts)
        out = writer.add(Combine(name=f"{writer.prefix}combine", inputs=(rows, routes)))
        if self.latent:
            pattern = f"batch seq {narrow.dims[-1]}, {narrow.dims[-1]} model -> batch seq model"
            out = writer.linear("latent_up", out, pattern, "ffn")
        if self.shared:
            out = writer.sum("experts_sum", out, self._share(writer, x, self.shared))
        return out

    def _route(self, writer: Writer, x: Tensor, topk: str) -> Tensor:
        choices = writer.dim("choices", self.experts)
        x = writer.norm("router_norm", x)[0] if self.router_norm else x
        pattern = f"batch seq model, {choices} model -> batch seq {choices}"
        inputs = [writer.linear("router", x, pattern, None)]
        if self.router_bias:
            inputs.append(writer.weight("router.bias", choices))
        if self.table:
            ids = writer.dim("ids", self.table)
            table = Tensor.of(f"{writer.prefix}table.weight", f"{ids} {topk}", "int32", "weight")
            look = Lookup(name=f"{writer.prefix}table", inputs=(writer.tokens, table))
            inputs.append(writer.add(look))
        return writer.add(Route(name=f"{writer.prefix}route", inputs=tuple(inputs), topk=topk))

    def _latent(self, writer: Writer, x: Tensor) -> Tensor:
        if not self.latent:
            return x
        latent = writer.dim("latent_model", self.latent)
        pattern = f"batch seq model, model {latent} -> batch seq {latent}"
        narrow = writer.linear("latent_down", x, pattern, "ffn")
        return writer.norm("latent_norm", narrow, dim=latent)[0] if self.latent_norm else narrow

    def _feed(self, writer: Writer, rows: Tensor, experts: str) -> Tensor:
        *places, model = rows.dims
        at = " ".join(places)
        ffn = writer.dim("expert_ffn", self.ffn)
        wide = writer.derive("expert_gate_up", f"2*{ffn}") if self.gated else ffn
        name = "experts_gate_up" if self.gated else "experts_up"
        pattern = f"{at} {model}, {experts} {model} {wide} -> {at} {wide}"
        up = self._grouped(writer, name, rows, pattern)
        flop = _ACTIVATION_FLOP + self.gated
        activation = Activation(
            name=f"{writer.prefix}experts_activation",
            inputs=(up,),
            dims=f"{at} {ffn}",
            flop_per_element=flop,
        )
        hidden = writer.entering(writer.add(activation), "experts")
        pattern = f"{at} {ffn}, {experts} {ffn} {model} -> {at} {model}"
        return self._grouped(writer, "experts_down", hidden, pattern)

    def _grouped(self, writer: Writer, name: str, rows: Tensor, pattern: str) -> Tensor:
        dims = pattern.split("->", maxsplit=1)[0].split(",")[1]
        experts, _, out = dims.split()
        inputs = [rows, writer.weight(f"{name}.weight", dims, "experts")]
        if self.bias:
            inputs.append(writer.weight(f"{name}.bias", f"{experts} {out}"))
        product = GroupedEinsum(
            name=writer.prefix + name,
            inputs=tuple(inputs),
            pattern=pattern,
            experts=experts,
            dtype_out=writer.precision.activations,
        )
        return writer.add(product)

    def _share(self, writer: Writer, x: Tensor, shared: FeedForward) -> Tensor:
        out = shared.write(writer, x)
        if not self.shared_gate:
            return out
        pattern = f"batch seq model, {writer.dim('one', 1)} model -> batch seq one"
        return writer.scale("shared_scale", out, writer.linear("shared_gate", x, pattern, None))


@dataclass(frozen=True, kw_only=True)
class Branches:
    """Channels side by side, each between norms of its own but for the first one's input."""

    parts: tuple[Part, ...]

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """The sum of the normalised results."""
        results = []
        for index, part in enumerate(self.parts):
            own = writer.norm(f"branch{index}_norm", x)[0] if index else x
            results.append(writer.norm(f"branch{index}_post_norm", part.write(writer, own))[0])
        return writer.sum("branches_sum", *results)
