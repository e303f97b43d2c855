"""What only validation needs installed: SciPy, pyarrow and the measured tables."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from hardware import SpecError
from hardware.errors import nearest

TABLES, TABLES_VERSION = "aiconfigurator_core", "0.12.0"


def needed(*modules: str, extra: str = "validation") -> None:
    """Check that modules of an extra are installed.

    Raises SpecError if one is not.
    """
    for module in modules:
        if find_spec(module) is None:
            raise SpecError(f"{module} is needed for this: pip install 'opgraph[{extra}]'")


def measured_tables() -> Path:
    """Return the folder of the measured tables of the installed package."""
    needed(TABLES, "pyarrow")
    spec = find_spec(TABLES)
    if spec is None or spec.origin is None:
        raise SpecError(f"{TABLES} is installed without files")
    return Path(spec.origin).parent / "systems" / "data"


def one_of(known: Iterable[str], words: Iterable[str], what: str) -> list[str]:
    """Return the words, or all that are known if there are none.

    Raises SpecError for a word that is not known.
    """
    names, chosen = list(known), list(words)
    for word in chosen:
        if word not in names:
            raise SpecError(f"no measured {what} {word!r}{nearest(word, names)}")
    return chosen or names
