"""Sessions of ONNX Runtime: an ONNX file run with random inputs, and the profile of its runs."""

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hardware import SpecError
from hardware.errors import nearest, shown
from validation.extras import needed

_TYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_,
}  # fmt: skip
# what random indices stay below: any vocabulary, table of positions or length has as many
_INDICES = 2
_LARGEST = 2**31  # of a size


def read_sizes(words: Iterable[str]) -> dict[str, int]:
    """Sizes by name from words such as ``batch_size=1``.

    Raises
    ------
    SpecError : a word that is something else.
    """
    sizes = {}
    for word in words:
        name, _, number = word.partition("=")
        if not (name and number.isascii() and number.isdigit() and 0 <= int(number) < _LARGEST):
            raise SpecError(f"--size {shown(word)}: a size is given as batch_size=1")
        sizes[name] = int(number)
    return sizes


def capture_onnx(
    path: Path, folder: Path, sizes: Mapping[str, int], *, threads: int = 1, repeats: int = 7
) -> Path:
    """Run an ONNX file on the processor, write ONNX Runtime's profile into *folder*.

    The model as it was optimised, whose nodes the profile names, is written beside it.

    Raises
    ------
    SpecError : ONNX Runtime is missing or refuses the file, or an input has a size without a
        number in *sizes* or is of a type that holds no numbers.
    """
    needed("onnxruntime")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / f"{path.stem}.optimized.onnx")
    with tempfile.TemporaryDirectory() as place:
        options.profile_file_prefix = str(Path(place) / path.stem)
        try:
            session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001  it has a class for each reason, all its own
            reason = " ".join(str(error).split())
            raise SpecError(f"{path}: ONNX Runtime refuses it: {reason:.200}") from None
        inputs = {each.name: _random(each, sizes) for each in session.get_inputs()}
        for _ in range(repeats + 1):
            session.run(None, inputs)
        written = Path(session.end_profiling())
        target = folder / f"{path.stem}.profile.json"
        shutil.move(written, target)
    return target


def _random(tensor: Any, sizes: Mapping[str, int]) -> Any:
    """Random numbers for an input; indices that any table has."""
    kind = _TYPES.get(tensor.type)
    if kind is None:
        raise SpecError(f"input {tensor.name!r} is a {tensor.type}: no numbers to fill it with")
    shape = [_size(tensor.name, side, sizes) for side in tensor.shape]
    random = np.random.default_rng(0)
    if np.issubdtype(kind, np.floating):
        return random.standard_normal(shape).astype(kind)
    return random.integers(_INDICES, size=shape).astype(kind)


def _size(tensor: str, side: Any, sizes: Mapping[str, int]) -> int:
    if isinstance(side, int):
        return side
    if side not in sizes:
        hint = nearest(str(side), sizes) if sizes else ""
        raise SpecError(f"input {tensor!r} has the size {side!r}: give --size {side}=N{hint}")
    return sizes[side]
