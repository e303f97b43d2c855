"""A trace file as a stream: its events one at a time, so that its size does not matter.

Python's own decoder takes one value after another out of a window over the file; nothing larger
than a value is ever in memory. A library for this (ijson 3, C backend) takes twice the time, and a
file that nests three million lists ends its process.
"""

import codecs
import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hardware import SpecError
from hardware.errors import shown

EVENTS = "traceEvents"
# an event of PyTorch's is a few hundred characters, of the longest stack a hundred thousand
LARGEST_VALUE = 8 * 2**20
LARGEST_RATIO = 200  # unpacked bytes for each packed one; traces reach 60
MOST_ENTRIES = 1000  # of the document besides its events: PyTorch writes a dozen
_CHUNK = 2**20
_PACKED = b"\x1f\x8b"
_SPACE = " \t\n\r"


class Document:
    """A Chrome trace: a list of events, or an object with such a list under ``traceEvents``.

    Iterate over it once for the events; *head* fills with the document's other entries as they
    are met.

    Raises
    ------
    SpecError : the file cannot be read or is no trace; the message names the event. Only while
        it is iterated over.
    """

    def __init__(self, path: Path) -> None:
        self.where = f"trace {shown(str(path))}"
        self.head: dict[str, Any] = {}
        self._path = path
        self._decoder = json.JSONDecoder(parse_constant=_refuse)
        self._text, self._at, self._ended = "", 0, False
        self._more: Callable[[], str] = str
        self._count = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            if not self._path.is_file():
                reason = "it is no file" if self._path.exists() else "there is no such file"
                raise SpecError(f"{self.where}: {reason}")
            with self._path.open("rb") as file:
                self._more = _reader(file, self._path.stat().st_size, self.where)
                yield from self._events() if self._next() == "[" else self._entries()
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise SpecError(f"{self.where}: {reason}") from None
        except UnicodeDecodeError:
            raise SpecError(f"{self.where}: not text in UTF-8, hence no JSON") from None

    def _entries(self) -> Iterator[dict[str, Any]]:
        """The events of an object; its other entries go to the head."""
        self._expect("{")
        found = False
        while self._next() != "}":
            if self.head or found:
                self._expect(",")
            key = self._value()
            self._expect(":")
            if key == EVENTS and not found:
                found = True
                yield from self._events()
            else:
                self.head[str(key)] = self._value()
                if len(self.head) > MOST_ENTRIES:
                    raise SpecError(f"{self.where}: over {MOST_ENTRIES} entries that are no events")
        if not found:
            raise SpecError(f"{self.where}: no {EVENTS!r} in it, and no list of events")

    def _events(self) -> Iterator[dict[str, Any]]:
        self._expect("[")
        first = True
        while self._next() != "]":
            if not first:
                self._expect(",")
            first = False
            event = self._value()
            if not isinstance(event, dict):
                raise SpecError(f"{self._place}: {shown(event)} is no event")
            self._count += 1
            yield event
        self._expect("]")

    @property
    def _place(self) -> str:
        return f"{self.where}, event {self._count}"

    def _next(self) -> str:
        """The next character that is no space; it stays to be read."""
        while True:
            text, at = self._text, self._at
            while at < len(text) and text[at] in _SPACE:
                at += 1
            self._at = at
            if at < len(text):
                return text[at]
            if not self._fill():
                raise SpecError(f"{self._place}: the file ends before the trace does")

    def _expect(self, mark: str) -> None:
        found = self._next()
        if found != mark:
            raise SpecError(f"{self._place}: not JSON: {mark!r} expected, {shown(found)} found")
        self._at += 1

    def _value(self) -> Any:
        """The next value; the window grows until it is whole."""
        self._next()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                # a number at the window's end may go on
                if end < len(self._text) or not self._fill():
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                long = len(self._text) - self._at > LARGEST_VALUE
                if long or not self._fill():
                    told = f"over {LARGEST_VALUE >> 20} MiB in one value" if long else error.msg
                    raise SpecError(f"{self._place}: not JSON, or cut off: {told}") from None
            except RecursionError:
                raise SpecError(f"{self._place}: nested too deeply") from None
            except ValueError as error:  # no number, or one of too many digits
                raise SpecError(f"{self._place}: {error}") from None

    def _fill(self) -> bool:
        """Move the window on; False where the file has ended."""
        more = "" if self._ended else self._more()
        self._ended = not more
        self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _reader(file: BinaryIO, size: int, where: str) -> Callable[[], str]:
    """What gives the next piece of text of a file that may be packed; empty at its end."""
    is_packed = file.read(len(_PACKED)) == _PACKED
    file.seek(0)
    source: Any = gzip.GzipFile(fileobj=file) if is_packed else file
    most = max(LARGEST_RATIO * size, _CHUNK) if is_packed else math.inf
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    read = 0

    def more() -> str:
        nonlocal read
        text = ""
        while not text:
            content = source.read(_CHUNK)
            read += len(content)
            if read > most:
                raise SpecError(
                    f"{where}: unpacks to over {LARGEST_RATIO} times its size: no trace"
                )
            text = decoder.decode(content, final=not content)
            if not content:
                break
        return text

    return more
