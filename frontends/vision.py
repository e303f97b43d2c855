"""Vision: patches of an image become vectors, and the tower's vectors become tokens."""

from dataclasses import dataclass
from typing import Literal

from frontends.writer import NormKind, Writer
from opgraph.operator import Activation, Elementwise, Lookup, View
from opgraph.tensor import Tensor

# tanh-approximated GELU, as counted for the decoder's activations
_ACTIVATION_FLOP = 4


@dataclass(frozen=True, kw_only=True)
class Patches:
    """The stem of a vision transformer (Dosovitskiy et al. 2021): a product for each patch.

    Attributes
    ----------
    model : width of the tower.
    pixels : numbers in a patch: colours × frames × height × width.
    patches : patches in an image.
    bias : of the product.
    classes : vectors of the tower's own that stand before the patches (CLIP's class token).
    tables : learned vectors by place that are added: a name and the rows of each table.
    scalars : learned numbers that gate them.
    norm : whether what comes out is normalised.
    """

    model: int
    pixels: int
    patches: int
    bias: bool = False
    classes: int = 0
    tables: tuple[tuple[str, int], ...] = ()
    scalars: tuple[str, ...] = ()
    norm: bool = False

    def write(self, writer: Writer) -> Tensor:
        """Embed the patches and their places."""
        model = writer.dim("model.vision", self.model)
        pixels = writer.dim("pixels", self.pixels)
        patches = writer.dim("patches", self.patches)
        image = Tensor.of("pixels", f"batch images patches {pixels}", writer.precision.activations)
        tokens = f"batch images {patches}"
        pattern = f"{tokens} {pixels}, {pixels} {model} -> {tokens} {model}"
        entered = writer.build.input(image)
        x = writer.linear("patch", entered, pattern, "vision", self.bias)
        if self.classes:
            x = self._with_classes(writer, x, model)
        if self.tables:
            x = self._with_places(writer, x, model)
        return writer.norm("norm", x, dim=model)[0] if self.norm else x

    def _with_classes(self, writer: Writer, x: Tensor, model: str) -> Tensor:
        places = writer.derive("places", f"patches + {self.classes}")
        own = writer.weight("class.weight", model)
        dims = f"batch images {places} {model}"
        return writer.add(
            Elementwise(
                name=f"{writer.prefix}class", inputs=(x, own), dims=dims, flop_per_element=0
            )
        )

    def _with_places(self, writer: Writer, x: Tensor, model: str) -> Tensor:
        *tokens, _ = x.dims
        index = writer.build.input(Tensor.of("places", " ".join(tokens), "int32"))
        found = []
        for name, rows in self.tables:
            dim = writer.dim(f"rows.{name}", rows)
            table = writer.weight(f"{name}.weight", f"{dim} {model}", "vision")
            lookup = Lookup(name=f"{writer.prefix}{name}", inputs=(index, table))
            found.append(writer.add(lookup))
        gates = tuple(writer.weight(f"{name}.weight", "") for name in self.scalars)
        flop = len(found) + len(gates)
        return writer.elementwise("place_sum", x, *found, *gates, flop=flop)


@dataclass(frozen=True, kw_only=True)
class Projector:
    """The tower's vectors in the width of the decoder: products with activations between.

    Attributes
    ----------
    merge : neighbouring patches whose vectors become one, side by side.
    pool : neighbouring patches whose vectors become their mean.
    hidden : widths between.
    bias : of the products.
    norm, kind : of what enters: of each ``patch``, or of patches side by side (``merged``).
    standard : what enters is scaled and shifted by learned vectors first.
    taps : vectors of that many layers of the tower side by side are what enters.
    tower_classes : whether the tower's own vectors enter, too.
    """

    merge: int = 1
    pool: int = 1
    hidden: tuple[int, ...] = ()
    bias: bool = False
    norm: Literal["", "patch", "merged"] = ""
    kind: NormKind = "layer"
    standard: bool = False
    taps: int = 1
    tower_classes: bool = False

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Merge, normalise, project."""
        writer.norm_kind = self.kind
        x = self._drop_classes(writer, x)
        if self.pool > 1:
            tokens = writer.derive("image_tokens", f"patches // {self.pool}")
            dims = f"batch images {tokens} {x.dims[-1]}"
            x = self._reshape(writer, "pool", x, dims, self.pool)
        if self.standard:
            width = x.dims[-1]
            scale, shift = (writer.weight(f"{name}.weight", width) for name in ("scale", "shift"))
            x = writer.elementwise("standard", x, scale, shift, flop=2)
        if self.norm == "patch":
            x = writer.norm("norm", x, dim=x.dims[-1])[0]
        x = self._merge(writer, x)
        if self.norm == "merged":
            x = writer.norm("norm", x, dim=x.dims[-1])[0]
        return self._project(writer, x)

    def _drop_classes(self, writer: Writer, x: Tensor) -> Tensor:
        if x.dims[2] == "patches" or self.tower_classes or x.dims[2] == "image_tokens":
            return x
        parts = (("", f"batch images patches {x.dims[-1]}"),)
        return writer.add(View(name=f"{writer.prefix}patches", inputs=(x,), parts=parts))

    def _merge(self, writer: Writer, x: Tensor) -> Tensor:
        places, width = x.dims[-2:]
        if self.taps > 1:
            wide = writer.derive("tapped", f"{self.taps}*{width}")
            return self._reshape(writer, "taps", x, f"batch images {places} {wide}", 0)
        if self.merge > 1:
            tokens = writer.derive("image_tokens", f"{places} // {self.merge}")
            wide = writer.derive("merged", f"{self.merge}*{width}")
            parts = (("", f"batch images {tokens} {wide}"),)
            return writer.add(View(name=f"{writer.prefix}merge", inputs=(x,), parts=parts))
        return x

    def _reshape(self, writer: Writer, name: str, x: Tensor, dims: str, flop: int) -> Tensor:
        shape = Elementwise(
            name=writer.prefix + name, inputs=(x,), dims=dims, flop_per_element=flop
        )
        return writer.add(shape)

    def _project(self, writer: Writer, x: Tensor) -> Tensor:
        tokens = " ".join(x.dims[:-1])
        for index, size in enumerate(self.hidden):
            wide = writer.dim(f"ffn.projector{index or ''}", size)
            pattern = f"{tokens} {x.dims[-1]}, {x.dims[-1]} {wide} -> {tokens} {wide}"
            x = writer.linear(f"linear{index}", x, pattern, "vision", self.bias)
            active = Activation(
                name=f"{writer.prefix}activation{index}",
                inputs=(x,),
                flop_per_element=_ACTIVATION_FLOP,
            )
            x = writer.add(active)
        pattern = f"{tokens} {x.dims[-1]}, {x.dims[-1]} model -> {tokens} model"
        return writer.linear("linear", x, pattern, "vision", self.bias)


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Projectors one after the other."""

    projectors: tuple[Projector, ...]

    def write(self, writer: Writer, x: Tensor) -> Tensor:
        """Append them in order."""
        prefix = writer.prefix
        for index, projector in enumerate(self.projectors):
            writer.prefix = f"{prefix}{index}."
            x = projector.write(writer, x)
        return x
