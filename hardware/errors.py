"""The one error a user of this package meets, and the hint at its end."""

import difflib
import reprlib
from collections.abc import Iterable

NAMES_SHOWN = 12  # as many as fit on a terminal line or two
NEAREST_SHOWN = 3  # more is a list, not a hint
ALIKE = 0.85  # of the letters, for a second and a third guess
TEXT_SHOWN = 60  # characters of a user's own words worth repeating


class SpecError(ValueError):
    """A name, a number or a file that cannot describe a machine.

    The message is one line: the user's own words, the place and the way out.
    Everything this package refuses, it refuses with this type.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about *name*, which is not among *known*.

    >>> nearest("bandwith", ["bandwidth", "capacity"])
    "; did you mean 'bandwidth'?"
    >>> nearest("colour", ["bandwidth", "capacity"])
    '; known: bandwidth, capacity'
    """
    names = sorted(known)
    close = [whole for whole in names if whole.casefold() == name.casefold()]
    close += [whole for whole in sorted(names, key=len) if len(name) > 2 and name in whole]
    close += difflib.get_close_matches(name[:TEXT_SHOWN], names, NEAREST_SHOWN, cutoff=ALIKE)
    close += difflib.get_close_matches(name[:TEXT_SHOWN], names, 1)
    if close:
        best = list(dict.fromkeys(close))[:NEAREST_SHOWN]
        return f"; did you mean {' or '.join(map(repr, best))}?"
    more = f", … ({len(names)} in all)" if len(names) > NAMES_SHOWN else ""
    return f"; known: {', '.join(names[:NAMES_SHOWN]) or 'none'}{more}"


def shown(value: object) -> str:
    """Return *value* as it appears in a message: one line, shortened if long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = TEXT_SHOWN
    short.maxlevel = 2
    try:
        text = short.repr(value)
    except ValueError:  # Python writes out no integer of more than 4300 digits
        text = f"<{type(value).__name__} of thousands of digits>"
    return " ".join(text.split())
