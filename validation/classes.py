"""Operator classes: a kernel's physics beside the table that it is fitted on."""

from typing import NamedTuple

from opgraph.kernels import KERNELS, Kernel
from validation.datasets import Dataset
from validation.tables import DATASETS


class OperatorClass(NamedTuple):
    """Physics and data of one operator."""

    kernel: Kernel
    dataset: Dataset


CLASSES = {op: OperatorClass(kernel, DATASETS[op]) for op, kernel in KERNELS.items()}
