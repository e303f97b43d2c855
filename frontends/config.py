"""A Hugging Face ``config.json``, read key by key, with messages that name key, value and place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hardware import SpecError
from hardware.errors import nearest

# no real model comes near; beyond it sizes are typing errors
LARGEST = 2**31


@dataclass(frozen=True)
class Config:
    """A config with the words of its place for messages."""

    values: Mapping[str, Any]
    name: str

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number ≥ 0.

        Raises
        ------
        SpecError : it is missing and has no default, or is no such number.
        """
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise SpecError(f"{self.name}: {key!r} is missing{nearest(key, list(self.values))}")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
            raise SpecError(
                f"{self.name}: {key!r} is {value!r}, but must be a whole number from 0 to {LARGEST}"
            )
        return value

    def positive(self, key: str, default: int | None = None) -> int:
        """A whole number ≥ 1."""
        value = self.whole(key, default)
        if value < 1:
            raise SpecError(f"{self.name}: {key!r} is {value}, but must be at least 1")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """A truth value."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise SpecError(f"{self.name}: {key!r} is {value!r}, but must be true or false")
        return value

    def words(self, key: str, length: int) -> tuple[str, ...]:
        """A list of *length* words, or none at all."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise SpecError(f"{self.name}: {key!r} must be a list of words, not {value!r}")
        if len(value) != length:
            raise SpecError(
                f"{self.name}: {key!r} has {len(value)} entries, but there are {length} layers"
            )
        return tuple(value)
