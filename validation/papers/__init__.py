"""Published tables, recomputed: one module per paper, each with a function ``rows``.

``opgraph reproduce PAPER`` prints them. To add a paper, write its module and name it in `PAPERS`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from hardware import SpecError
from hardware.errors import nearest

# the word on the command line → the module
PAPERS = {
    "communication": "communication",
    "fpga": "fpga",
    "liminal": "liminal",
    "mla-moe": "mla_moe",
    "photonic": "photonic",
    "quantization": "quantization",
}


@dataclass(frozen=True)
class Row:
    """One published figure beside ours; *tolerance* is the relative difference that passes.

    Where nothing was published, ours is a prediction: it differs from nothing and passes.
    """

    case: str
    published: float | None
    ours: float
    tolerance: float = 0.0

    @property
    def difference(self) -> float | None:
        """Relative difference of ours from the published figure."""
        return None if self.published is None else self.ours / self.published - 1

    @property
    def passes(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.difference is None or abs(self.difference) <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """The row under the keys of ``--json``."""
        return asdict(self) | {"difference": self.difference, "passes": self.passes}


def reproduce(paper: str) -> list[Row]:
    """The rows of *paper*, a word of `PAPERS`.

    Raises
    ------
    SpecError : no such paper.
    """
    if paper not in PAPERS:
        raise SpecError(f"no paper {paper!r}{nearest(paper, PAPERS)}")
    rows: Callable[[], list[Row]] = import_module(f"validation.papers.{PAPERS[paper]}").rows
    return rows()
