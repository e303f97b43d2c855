"""Broken and hostile ONNX files: one clear line, and nothing opened but the file given."""

import contextlib
import os
import sys

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402

from frontends.onnx import from_onnx  # noqa: E402
from hardware import SpecError  # noqa: E402

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def weight(name, *shape, kind=FLOAT):
    return helper.make_tensor(name, kind, shape, np.zeros(shape).ravel().tolist())


def good():
    """Two projections, a norm and a residual sum."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale"], ["n"], name="norm", axis=-1),
        helper.make_node("MatMul", ["n", "up"], ["h"], name="up_proj"),
        helper.make_node("Relu", ["h"], ["a"], name="act"),
        helper.make_node("MatMul", ["a", "down"], ["d"], name="down_proj"),
        helper.make_node("Add", ["d", "x"], ["y"], name="sum"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["batch", "seq", 8])],
        [helper.make_tensor_value_info("y", FLOAT, ["batch", "seq", 8])],
        [weight("scale", 8), weight("up", 8, 16), weight("down", 16, 8)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def written(tmp_path, model):
    path = tmp_path / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def node(model, name):
    return next(n for n in model.graph.node if n.name == name)


def add(model, op, inputs, outputs=("z",), place=0, **attributes):
    """A node more, whose result takes part."""
    made = helper.make_node(op, inputs, outputs, name="extra", **attributes)
    model.graph.node.insert(place, made)
    if model.graph.output and outputs:
        model.graph.output.append(helper.make_tensor_value_info(outputs[0], FLOAT, None))


CASES = {}


def case(message):
    """Enter a function that spoils the good model, or gives the bytes of a bad file."""

    def enter(function):
        CASES[function.__name__] = (function, message)
        return function

    return enter


# ---- files ---------------------------------------------------------------------------------------


@case("no graph")
def empty_file(_):
    return b""


@case("not an ONNX file")
def random_bytes(_):
    return bytes(np.random.default_rng(0).integers(0, 256, 4096, np.uint8))


@case("not an ONNX file")
def text_file(_):
    return b"ir_version: 9 graph { node { op_type: 'Add' } }"


@case("not an ONNX file")
def cut_short(model):
    return model.SerializeToString()[:-40]


@case("not an ONNX file")
def cut_in_a_length(model):
    return model.SerializeToString()[:37]


@case("not an ONNX file")
def nested_10000_deep(_):
    """A graph in an attribute of a node of a graph …, deeper than any stack."""
    body = b""
    for _ in range(10_000):
        for tag in (0x32, 0x2A, 0x0A):  # a graph, in an attribute, of a node
            body = bytes([tag]) + varint(len(body)) + body
    return b"\x08\x09\x3a" + varint(len(body)) + body


def varint(number):
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


@case("no graph")
def without_nodes(model):
    del model.graph.node[:]


@case("no version of the standard operator set")
def without_operator_set(model):
    del model.opset_import[:]


@case("operator set 9999 is not among")
def operator_set_of_the_future(model):
    model.opset_import[0].version = 9999


@case("operator set -1 is not among")
def negative_operator_set(model):
    model.opset_import[0].version = -1


@case("imported twice")
def operator_set_twice(model):
    model.opset_import.append(helper.make_opsetid("ai.onnx", 13))


@case("'evil.corp' are not known")
def unknown_domain(model):
    model.opset_import.append(helper.make_opsetid("evil.corp", 1))


@case("'evil.corp' is not imported")
def domain_not_imported(model):
    node(model, "act").domain = "evil.corp"


@case("no operator 'Frobnicate'")
def unknown_operator(model):
    node(model, "act").op_type = "Frobnicate"


@case("no rule for com.microsoft.Frobnicate")
def unknown_contrib_operator(model):
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    node(model, "act").domain, node(model, "act").op_type = "com.microsoft", "Frobnicate"


# ---- names and order -----------------------------------------------------------------------------


@case("a cycle, or nodes out of order")
def cycle_of_two(model):
    node(model, "up_proj").input[0] = "a"


@case("a cycle, or nodes out of order")
def cycle_of_one(model):
    node(model, "act").input[0] = "a"


@case("a cycle, or nodes out of order")
def nodes_reversed(model):
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@case("reads 'nobody', which nothing makes")
def missing_input(model):
    node(model, "act").input[0] = "nobody"


@case("reads 'up', which nothing makes")
def missing_initialiser(model):
    del model.graph.initializer[1]


@case("makes 'a' again")
def made_twice(model):
    node(model, "down_proj").output[0] = "a"
    node(model, "sum").input[0] = "a"


@case("makes 'up' again, which an initialiser is")
def overwrites_a_weight(model):
    node(model, "act").output[0] = "up"


@case("makes 'x' again, which an input is")
def overwrites_an_input(model):
    node(model, "act").output[0] = "x"


@case("two initialisers are called 'up'")
def weight_twice(model):
    model.graph.initializer.append(weight("up", 8, 16))


@case("two inputs are called 'x'")
def input_twice(model):
    model.graph.input.append(model.graph.input[0])


@case("'nothing' is made by nothing")
def output_of_nothing(model):
    model.graph.output[0].name = "nothing"


@case("no text of up to 1000 letters")
def endless_names(model):
    node(model, "act").input[0] = "nobody" * 100_000


@case("no text of up to 1000 letters")
def names_with_line_breaks(model):
    node(model, "act").input[0] = "no\nbody\x1b[31m"


# ---- sizes ---------------------------------------------------------------------------------------


@case("a size of -5")
def negative_size_of_a_weight(model):
    model.graph.initializer[1].dims[0] = -5


@case("a size of 4611686018427387904")
def enormous_size_of_a_weight(model):
    model.graph.initializer[1].dims[0] = 2**62


@case("too large for a tensor")
def enormous_product(model):
    model.graph.initializer[1].dims[:] = [2**39, 2**39]


@case("33 axes")
def too_many_axes(model):
    model.graph.initializer[1].dims[:] = [1] * 33


@case("a size of -7")
def negative_size_of_an_input(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = -7


@case("a size of 4611686018427387904")
def enormous_size_of_an_input(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**62


@case("shape is not given")
def input_without_shape(model):
    model.graph.input[0].type.tensor_type.ClearField("shape")


@case("shape is not given")
def input_of_sequences(model):
    model.graph.input[0].type.Clear()
    model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = FLOAT


@case("elements of type 8 have no meaning")
def input_of_text(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING


@case("elements of type 99 have no meaning")
def weight_of_no_type(model):
    model.graph.initializer[1].data_type = 99


@case("takes 512 bytes, but there are 12")
def weight_with_less_data(model):
    tensor = model.graph.initializer[1]
    tensor.ClearField("float_data")
    tensor.raw_data = b"\0" * 12


@case("nothing says how large 'how__import__")
def open_size_that_is_code(model):
    name = "how__import__('os').system('touch owned')"
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = name


@case("nothing says how large")
def open_size_that_is_a_tower(model):
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    dim.dim_param = "9**9**9**9"


@case("no text of up to 1000 letters")
def open_size_nested_too_deeply(model):
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    dim.dim_param = "(" * 5000 + "n" + ")" * 5000


# ---- shapes that do not fit ----------------------------------------------------------------------


@case("up_proj")
def matrices_that_do_not_fit(model):
    model.graph.initializer[1].CopyFrom(weight("up", 9, 16))


@case("norm")
def axis_out_of_range(model):
    node(model, "norm").attribute[0].i = 7


@case("Reshape")
def reshape_to_another_number(model):
    model.graph.initializer.append(helper.make_tensor("s", INT, [2], [3, 5]))
    add(model, "Reshape", ["scale", "s"])


@case("Reshape")
def reshape_to_enormous(model):
    model.graph.initializer.append(helper.make_tensor("s", INT, [3], [2**31, 2**31, -1]))
    add(model, "Reshape", ["x", "s"])


@case("only known at run time")
def shape_from_data(model):
    model.graph.input.append(helper.make_tensor_value_info("s", INT, [3]))
    add(model, "Reshape", ["x", "s"])


@case("Expand")
def expand_that_does_not_broadcast(model):
    model.graph.initializer.append(helper.make_tensor("s", INT, [1], [7]))
    add(model, "Expand", ["scale", "s"])


@case("a size of 1152921504606846976")
def range_of_enormous_length(model):
    for name, number in (("a0", 0), ("b0", 2**60), ("c0", 1)):
        model.graph.initializer.append(helper.make_tensor(name, INT, [], [number]))
    add(model, "Range", ["a0", "b0", "c0"])


@case("a size of 4611686018427387904")
def filled_with_2_to_the_62(model):
    model.graph.initializer.append(helper.make_tensor("s", INT, [1], [2**62]))
    add(model, "ConstantOfShape", ["s"])


@case("too large for a tensor")
def tiled_beyond_memory(model):
    model.graph.initializer.append(helper.make_tensor("s", INT, [1], [2**39]))
    model.graph.initializer.append(weight("big", 2**12))
    add(model, "Tile", ["big", "s"])


@case("Range")
def range_with_step_0(model):
    for name, number in (("a0", 0), ("b0", 4), ("c0", 0)):
        model.graph.initializer.append(helper.make_tensor(name, INT, [], [number]))
    add(model, "Range", ["a0", "b0", "c0"])


@case("Slice")
def slice_with_step_0(model):
    for name, number in (("s0", 0), ("e0", 4), ("x0", 0), ("t0", 0)):
        model.graph.initializer.append(helper.make_tensor(name, INT, [1], [number]))
    add(model, "Slice", ["x", "s0", "e0", "x0", "t0"])


@case("Transpose")
def transposed_with_an_axis_twice(model):
    add(model, "Transpose", ["x"], perm=[0, 0, 1])


@case("Split")
def parts_that_are_not_the_whole(model):
    model.graph.initializer.append(helper.make_tensor("s", INT, [2], [3, 4]))
    add(model, "Split", ["x", "s"], ["z", "z2"], axis=2)


@case("Gather")
def entry_out_of_range(model):
    model.graph.initializer.append(helper.make_tensor("i", INT, [1], [99]))
    add(model, "Gather", ["x", "i"], axis=2)


@case("Conv")
def convolution_of_other_channels(model):
    model.graph.initializer.append(weight("k", 4, 3, 3))
    add(model, "Conv", ["x", "k"], kernel_shape=[3])


@case("Conv")
def convolution_with_stride_0(model):
    model.graph.initializer.append(weight("k", 4, 1, 3))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    add(model, "Conv", ["x", "k"], kernel_shape=[3], strides=[0])


@case("Einsum")
def equation_that_names_nothing(model):
    add(model, "Einsum", ["x", "up"], equation="ij,jk->iz")


@case("TopK")
def more_than_there_are(model):
    model.graph.initializer.append(helper.make_tensor("k", INT, [1], [99]))
    add(model, "TopK", ["x", "k"], ["z", "zi"])


@case("must be positive")
def attention_without_heads(model):
    model.opset_import[0].version = 23
    add(model, "Attention", ["x", "x", "x"], q_num_heads=0, kv_num_heads=0)


@case("do not divide")
def attention_with_heads_that_do_not_divide(model):
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    add(
        model,
        "GroupQueryAttention",
        ["x", "x", "x"],
        domain="com.microsoft",
        num_heads=3,
        kv_num_heads=3,
    )


@case("its attribute 'num_heads' is missing")
def attention_without_attributes(model):
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    add(model, "MultiHeadAttention", ["x", "x", "x"], domain="com.microsoft")


@case("bytes of weights for")
def packed_weights_too_short(model):
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.initializer.append(weight("q", 2, 1, 2, kind=TensorProto.UINT8))
    model.graph.initializer.append(weight("qs", 2))
    attributes = {"K": 8, "N": 1024, "bits": 4, "block_size": 32}
    add(model, "MatMulNBits", ["x", "q", "qs"], domain="com.microsoft", **attributes)


@case("of -3 bits")
def weights_of_negative_bits(model):
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.initializer.append(weight("q", 2, 1, 2, kind=TensorProto.UINT8))
    model.graph.initializer.append(weight("qs", 2))
    attributes = {"K": 8, "N": 4, "bits": -3, "block_size": 32}
    add(model, "MatMulNBits", ["x", "q", "qs"], domain="com.microsoft", **attributes)


# ---- graphs within graphs ------------------------------------------------------------------------


def branches(depth):
    """An If within an If …"""
    inner = [helper.make_node("Identity", ["x"], [f"r{depth}"])]
    for level in reversed(range(depth)):
        body = helper.make_graph(
            inner, "b", [], [helper.make_tensor_value_info(f"r{level + 1}", FLOAT, None)]
        )
        inner = [
            helper.make_node("If", ["true"], [f"r{level}"], then_branch=body, else_branch=body)
        ]
    return inner[0]


def with_branch(model, depth):
    model.graph.initializer.append(helper.make_tensor("true", TensorProto.BOOL, [], [True]))
    model.graph.node.insert(0, branches(depth))
    model.graph.output.append(helper.make_tensor_value_info("r0", FLOAT, None))


@case("more than 8 deep")
def branches_within_branches(model):
    with_branch(model, 12)


@case("which branch of the If is taken depends on 'c'")
def branch_on_data(model):
    with_branch(model, 1)
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    model.graph.node[0].input[0] = "c"


@case("then_branch")
def branch_without_graph(model):
    with_branch(model, 1)
    del model.graph.node[0].attribute[:]


@case("Loop")
def loop_without_end(model):
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("i", INT, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
    )
    made = helper.make_node("Loop", ["", "true"], ["z"], body=body, name="forever")
    model.graph.initializer.append(helper.make_tensor("true", TensorProto.BOOL, [], [True]))
    model.graph.node.insert(0, made)
    model.graph.output.append(helper.make_tensor_value_info("z", FLOAT, None))


def function(name, calls, times):
    nodes = [helper.make_node(calls, ["a"], [f"b{i}"], domain="own") for i in range(times)]
    return helper.make_function(
        "own",
        name,
        ["a"],
        ["b0"],
        nodes,
        [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)],
    )


@case("calls itself")
def function_that_calls_itself(model):
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.functions.append(function("F", "F", 1))
    add(model, "F", ["x"], domain="own")


@case("more than the 1000000")
def functions_that_multiply(model):
    """Ten calls in each of twelve functions: a thousand billion nodes written out."""
    model.opset_import.append(helper.make_opsetid("own", 1))
    for level in range(12):
        model.functions.append(function(f"F{level}", f"F{level + 1}", 10))
    last = helper.make_function(
        "own",
        "F12",
        ["a"],
        ["b"],
        [helper.make_node("Relu", ["a"], ["b"])],
        [helper.make_opsetid("", 18)],
    )
    model.functions.append(last)
    add(model, "F0", ["x"], domain="own")


# ---- data in other files -------------------------------------------------------------------------


def external(model, **entries):
    tensor = model.graph.initializer[1]
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


@case("not beside the file")
def data_above(model):
    external(model, location="../../../etc/passwd")


@case("not beside the file")
def data_at_an_absolute_path(model):
    external(model, location="/etc/passwd")


@case("not beside the file")
def data_on_a_drive(model):
    external(model, location="C:\\Windows\\win.ini")


@case("not beside the file")
def data_in_a_parent_written_backwards(model):
    external(model, location="weights\\..\\..\\secret")


@case("not beside the file")
def data_nowhere(model):
    external(model, offset="0")


@case("no text of up to 1000 letters")
def name_that_is_no_text(model):
    """Bytes that are no UTF-8, which protobuf hands on."""
    return model.SerializeToString().replace(b"up_proj", b"up\xff\xferoj")


@case("not beside the file")
def data_behind_a_null(model):
    external(model, location="weights.bin\0.txt")


@case("the length of its data is '-1'")
def data_of_negative_length(model):
    external(model, location="weights.bin", length="-1")


@case("the offset of its data is '1e999'")
def data_at_no_offset(model):
    external(model, location="weights.bin", offset="1e999")


@case("4611686018427387904")
def data_of_enormous_length(model):
    external(model, location="weights.bin", length=str(2**62))


@case("only known at run time")
def shape_in_another_file(model):
    tensor = TensorProto(name="s", data_type=INT, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="shape.bin")
    model.graph.initializer.append(tensor)
    add(model, "Reshape", ["x", "s"])


# ---- attributes ----------------------------------------------------------------------------------


@case("act")
def attribute_of_another_type(model):
    node(model, "act").op_type = "Concat"
    node(model, "act").attribute.append(helper.make_attribute("axis", "last"))


@case("Cast")
def cast_to_nothing(model):
    add(model, "Cast", ["x"], to=77)


@case("Constant")
def constant_without_value(model):
    add(model, "Constant", [])


@case("Constant")
def constant_of_text(model):
    add(model, "Constant", [], value_string="rm -rf")


def test_there_are_enough():
    assert len(CASES) >= 60


def test_the_good_model_is_good(tmp_path):
    model = from_onnx(written(tmp_path, good()))
    assert model.num_parameters == 8 + 8 * 16 + 16 * 8


@pytest.mark.parametrize("name", CASES)
def test_one_clear_line(name, tmp_path, opened):
    spoil, message = CASES[name]
    model = good()
    spoiled = spoil(model)
    path = written(tmp_path, model if spoiled is None else spoiled)
    del opened[:]
    with pytest.raises(SpecError) as caught:
        from_onnx(path)
    text = str(caught.value)
    assert message in text
    assert str(path) in text
    assert "\n" not in text
    assert "\x1b" not in text
    assert len(text) < 800
    assert [file for file in opened if not file.endswith((".py", ".pyc"))] == [str(path)]


@pytest.fixture(scope="session")
def _log():
    """Every file that Python opens from now on; an audit hook cannot be taken away again."""
    log = []

    def note(event, arguments):
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            log.append(os.fsdecode(arguments[0]))

    sys.addaudithook(note)
    return log


@pytest.fixture
def opened(_log, tmp_path):
    # what is imported on first use is not of the file
    from_onnx(written(tmp_path, good()))
    return _log


@pytest.mark.parametrize("name", ["missing.onnx", "folder.onnx", "pipe.onnx"])
def test_no_file(name, tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(SpecError, match="there is no file"):
        from_onnx(tmp_path / name)


def test_weights_in_other_files_are_not_opened(tmp_path):
    """Not even where they are: a pipe would wait for ever."""
    model = good()
    external(model, location="weights.bin", offset="0", length="512")
    os.mkfifo(tmp_path / "weights.bin")
    assert from_onnx(written(tmp_path, model)).num_parameters == 8 + 2 * 8 * 16


@pytest.mark.parametrize("seed", range(40))
def test_any_byte_changed(seed, tmp_path):
    """Flipped, dropped and doubled bytes: a model or one clear line."""
    random = np.random.default_rng(seed)
    data = bytearray(good().SerializeToString())
    for place in random.integers(0, len(data), 3):
        data[place] = random.integers(0, 256)
    start = random.integers(0, len(data))
    data[start:start] = data[start : start + random.integers(0, 9)]
    with contextlib.suppress(SpecError):
        from_onnx(written(tmp_path, bytes(data)))
