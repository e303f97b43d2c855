"""Products with weights: projections, convolutions and experts, written as operators."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from frontends.dim import Dim
from frontends.dimensions import is_patching
from frontends.emission import Emit, Emitter, format_of
from frontends.fusion import activation_flop
from frontends.others import opaque, squared
from frontends.program import Node, Value
from opgraph.experts import Combine, Dispatch, GroupedEinsum, Route
from opgraph.operator import Activation, Einsum, View
from opgraph.tensor import Tensor


def _project(emitter: Emitter, node: Node) -> None:
    x, rest = node.operand(), node.inputs[1:]
    weights, biases = [v for v in rest[::2] if v], rest[1::2]
    first, second = str(node["equation"]).partition("->")[0].split(",")
    inner = [emitter.dims.of[weights[0]][i] for i, letter in enumerate(second) if letter in first]
    contracted = emitter.named(a for dim in inner if dim for a in dim.atoms)
    before = emitter.tensor(x)
    outer = [_kept(emitter, weight, first, second) for weight in weights]
    if len(weights) == 1:
        name = emitter.called(node, "product")
        tensor, made = _matrix(emitter, weights[0], first, second, before)
        extra = tuple(emitter.tensor(v) for v in biases if v is not None)
    else:
        name = emitter.unique(emitter.together(node))
        made = (_joined(emitter, name, outer),)
        tensor = Tensor.of(
            f"{name}.weight", " ".join((*contracted, *made)), format_of(weights[0]), "weight"
        )
        extra = _biases(emitter, name, outer, biases)
    kept = [dim for dim in before.dims if dim not in contracted]
    pattern = f"{' '.join(before.dims)}, {' '.join(tensor.dims)} -> {' '.join((*kept, *made))}"
    product = Einsum(name=name, inputs=(before, tensor, *extra), pattern=pattern)
    if len(weights) == 1:
        emitter.add(product, node.output)
        if made != emitter.named(atom for dim in outer[0] for atom in dim.atoms):
            emitter.arranged(node.output, emitter.names(node.output))
        return
    whole = Value(name, (), node.output.dtype)
    emitter.add(product, whole)
    for value in node.outputs:
        emitter.part(value, whole)


def _matrix(
    emitter: Emitter, weight: Value, first: str, second: str, x: Tensor
) -> tuple[Tensor, tuple[str, ...]]:
    """The tensor of a weight, and what its columns are called: apart from what *x* has by the same
    name, as where a product makes as many features of the model as it takes.
    """
    tensor, dims, made = emitter.tensor(weight), list[str](), list[str]()
    for letter, dim in zip(second, emitter.dims.of[weight], strict=True):
        for atom in dim.atoms if dim is not None else ():
            (name,) = emitter.named([atom])
            taken = dims if letter in first else (*dims, *x.dims)
            if name in taken and isinstance(atom.root.size, int):
                name = emitter.writer.dim(f"{name}.other", atom.root.size)
            if letter not in first:
                made.append(name)
            dims.append(name)
    if set(dims) != set(tensor.dims):
        tensor = replace(tensor, dims=tuple(dims))
    return tensor, tuple(made)


def _kept(emitter: Emitter, weight: Value, first: str, second: str) -> list[Dim]:
    axes = zip(second, emitter.dims.of[weight], strict=True)
    return [dim for letter, dim in axes if letter not in first and dim is not None]


def _joined(emitter: Emitter, name: str, outer: Sequence[Sequence[Dim]]) -> str:
    """The dimension of several sets of columns side by side."""
    terms: dict[str, int] = {}
    for dims in outer:
        text = "*".join(emitter.named(atom for dim in dims for atom in dim.atoms))
        terms[text] = terms.get(text, 0) + 1
    text = " + ".join(f"{count}*{term}" if count > 1 else term for term, count in terms.items())
    return emitter.derive(name.rpartition(".")[2], text)


def _biases(
    emitter: Emitter, name: str, outer: Sequence[Sequence[Dim]], biases: Sequence[Value | None]
) -> tuple[Tensor, ...]:
    have = [dims for dims, bias in zip(outer, biases, strict=True) if bias is not None]
    if not have:
        return ()
    bias = next(bias for bias in biases if bias is not None)
    dims = _joined(emitter, name, have)
    return (Tensor.of(f"{name}.bias", dims, format_of(bias), "weight"),)


def _conv(emitter: Emitter, node: Node) -> None:
    """A product over the places that each place sees."""
    x, weight, *bias = (v for v in node.inputs if v is not None)
    if node["groups"] != 1 or node.attributes.get("transposed"):
        opaque(emitter, node)
        return
    source, matrix = emitter.tensor(x), emitter.tensor(weight)
    made, *inner = matrix.dims
    out = emitter.names(node.output)
    places = [dim for dim in out if dim != made]
    if not is_patching(node):
        parts = (("", " ".join((*places, *inner))),)
        seen = View(name=emitter.scoped(node, "windows"), inputs=(source,), parts=parts)
        (source,) = emitter.add(seen)
    if not set(places) <= {*source.dims, *matrix.dims}:
        opaque(emitter, node)
        return
    pattern = f"{' '.join(source.dims)}, {' '.join(matrix.dims)} -> {' '.join((*places, made))}"
    inputs = (source, matrix, *(emitter.tensor(v) for v in bias))
    emitter.add(
        Einsum(name=emitter.called(node, "conv"), inputs=inputs, pattern=pattern), node.output
    )


def _experts(emitter: Emitter, node: Node) -> None:
    """Route, send each token to its experts, compute their rows and add them up."""
    writer, scope = emitter.writer, partial(emitter.scoped, node)
    tokens, topk = emitter.tensor(node.operand()), writer.dim("topk", node["k"])
    routes = emitter.tensor(node.operand(1))
    if topk not in routes.dims:
        biases = tuple(emitter.tensor(v) for v in node.inputs[8:] if v is not None)
        (routes,) = emitter.add(Route(name=scope("route"), inputs=(routes, *biases), topk=topk))
    up, down, up_bias, down_bias, *gate = node.inputs[2:8]
    weights = emitter.dims.of[node.operand(3)]
    narrow = 1 if node["transposed"] else 2
    experts, ffn = emitter.axis(weights[0], "experts"), emitter.axis(weights[narrow], "ffn")
    writer.inactive[experts] = topk
    columns = emitter.derive("expert_gate_up", f"2*{ffn}") if node["gated"] else ffn
    (rows,) = emitter.add(Dispatch(name=scope("dispatch"), inputs=(tokens, routes)))
    rows = _grouped(
        emitter, node, "up", rows, ((up, up_bias), gate), (experts, rows.dims[-1], columns)
    )
    activation = Activation(
        name=scope("experts_activation"),
        inputs=(rows,),
        dims=" ".join((*rows.dims[:-1], ffn)),
        flop_per_element=activation_flop(gated=node["gated"]),
    )
    (rows,) = emitter.add(activation)
    rows = _grouped(
        emitter, node, "down", rows, ((down, down_bias),), (experts, ffn, tokens.dims[-1])
    )
    emitter.add(Combine(name=scope("combine"), inputs=(rows, routes)), node.output)


def _grouped(
    emitter: Emitter,
    node: Node,
    label: str,
    rows: Tensor,
    pairs: Sequence[Sequence[Value | None]],
    dims: tuple[str, str, str],
) -> Tensor:
    """The product of each row with the matrices of its expert, which are one: each of *pairs* is a
    matrix and its bias; *dims* are those of the weight.
    """
    name, shape = emitter.scoped(node, label), " ".join(dims)
    matrices, biases = ([v for v in column if v is not None] for column in zip(*pairs, strict=True))
    alone = len(matrices) == 1
    weight = matrices[0].name if alone else f"{name}.weight"
    inputs = [rows, Tensor.of(weight, shape, format_of(matrices[0]), "weight")]
    if biases:
        bias = biases[0].name if alone else f"{name}.bias"
        inputs.append(Tensor.of(bias, f"{dims[0]} {dims[2]}", format_of(biases[0]), "weight"))
    pattern = f"{' '.join(rows.dims)}, {shape} -> {' '.join((*rows.dims[:-1], dims[2]))}"
    operator = GroupedEinsum(name=name, inputs=tuple(inputs), pattern=pattern, experts=dims[0])
    return emitter.add(operator)[0]


def _einsum(emitter: Emitter, node: Node) -> None:
    """A product of two activations."""
    if len(node.inputs) != 2:
        raise emitter.program.refuse(f"a product of {len(node.inputs)}: write several of two")
    atoms = [atom.root for atom in emitter.dims.atoms(node.output)]
    if len(set(atoms)) < len(atoms):
        squared(emitter, node)
        return
    values = (node.operand(), node.operand(1), node.output)
    *dims, result = emitter.apart(*values)
    inputs = tuple(emitter.arranged(v, d) for v, d in zip(values[:2], dims, strict=True))
    pattern = f"{', '.join(map(' '.join, dims))} -> {' '.join(result)}"
    name = emitter.scoped(node, "einsum")
    emitter.add(Einsum(name=name, inputs=inputs, pattern=pattern), node.output)
    emitter.arranged(node.output, emitter.names(node.output))


PRODUCTS: Mapping[str, Emit] = {
    "einsum": _einsum,
    "project": _project,
    "conv": _conv,
    "experts": _experts,
}
