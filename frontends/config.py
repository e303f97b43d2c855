"""A Hugging Face ``config.json``, read key by key, with messages that name key, value and place."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hardware import SpecError
from hardware.errors import nearest

# no real model comes near; beyond it sizes are typing errors
LARGEST = 2**31
MOST_LAYERS = 1000


@dataclass(frozen=True)
class Config:
    """A config with the words of its place for messages.

    *aliases*: what the config calls a key, where that differs; a dot leads into a table.
    """

    values: Mapping[str, Any]
    name: str
    aliases: Mapping[str, str] = field(default_factory=dict)

    def key(self, key: str) -> str:
        """What the config calls *key*."""
        return self.aliases.get(key, key)

    def get(self, key: str) -> Any:
        """The value of *key*, whatever it is; None if there is none."""
        found: Any = self.values
        for step in self.key(key).split("."):
            found = found.get(step) if isinstance(found, Mapping) else None
        return found

    def given(self, key: str) -> bool:
        """Whether *key* is there, and not null."""
        return self.get(key) is not None

    def called(self, **aliases: str) -> "Config":
        """The same config, in which keys have other names."""
        return replace(self, aliases={**self.aliases, **aliases})

    def section(self, key: str) -> "Config":
        """The table *key*.

        Raises
        ------
        SpecError : it is missing or no table.
        """
        value = self.get(key)
        if not isinstance(value, Mapping):
            raise SpecError(f"{self.name}: {self.key(key)!r} must be a table, not {value!r}")
        return Config(value, f"{self.name}, {self.key(key)}")

    def layer(self, index: int, count: int) -> "Config":
        """The config as one of *count* layers sees it: of lists with an entry for each, its own."""
        values = {key: _entry(value, index, count) for key, value in self.values.items()}
        return replace(self, values=values)

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number ≥ 0.

        Raises
        ------
        SpecError : it is missing and has no default, or is no such number.
        """
        value = self.get(key)
        if value is None:
            if default is None:
                hint = nearest(self.key(key), list(self.values))
                raise SpecError(f"{self.name}: {self.key(key)!r} is missing{hint}")
            return default
        if isinstance(value, list):
            raise SpecError(self._wrong_length(key, value))
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
            raise SpecError(
                f"{self.name}: {self.key(key)!r} is {value!r}, but must be a whole number "
                f"from 0 to {LARGEST}"
            )
        return value

    def layers(self, default: int | None = None) -> int:
        """How many layers, each of which is read: no more than a thousand."""
        count = self.positive("num_hidden_layers", default)
        if count > MOST_LAYERS:
            raise SpecError(
                f"{self.name}: {self.key('num_hidden_layers')!r} is {count}, but a config is read "
                f"layer by layer, up to {MOST_LAYERS}"
            )
        return count

    def positive(self, key: str, default: int | None = None) -> int:
        """A whole number ≥ 1."""
        value = self.whole(key, default)
        if value < 1:
            raise SpecError(f"{self.name}: {self.key(key)!r} is {value}, but must be at least 1")
        return value

    def share(self, key: str, default: float = 1.0) -> float:
        """A part of a whole: a number from 0 to 1."""
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise SpecError(
                f"{self.name}: {self.key(key)!r} is {value!r}, but must be a number from 0 to 1"
            )
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """A truth value."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise SpecError(
                f"{self.name}: {self.key(key)!r} is {value!r}, but must be true or false"
            )
        return value

    def word(self, key: str, default: str = "") -> str:
        """A word."""
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, list):
            raise SpecError(self._wrong_length(key, value))
        if not isinstance(value, str):
            raise SpecError(f"{self.name}: {self.key(key)!r} is {value!r}, but must be a word")
        return value

    def indices(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers ≥ 0; empty where it is missing."""
        value = self.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(type(i) is int and i >= 0 for i in value):
            raise SpecError(
                f"{self.name}: {self.key(key)!r} must be a list of whole numbers, not {value!r}"
            )
        return tuple(value)

    def words(self, key: str, length: int) -> tuple[str, ...]:
        """A list of *length* words, or none at all."""
        value = self.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise SpecError(
                f"{self.name}: {self.key(key)!r} must be a list of words, not {value!r}"
            )
        if len(value) != length:
            raise SpecError(self._wrong_length(key, value))
        return tuple(value)

    def _wrong_length(self, key: str, value: list[Any]) -> str:
        layers = f"'num_hidden_layers' is {self.values.get(self.key('num_hidden_layers'))}"
        return f"{self.name}: {self.key(key)!r} has {len(value)} entries, but {layers}"


def _entry(value: Any, index: int, count: int) -> Any:
    if isinstance(value, list):
        return value[index] if len(value) == count else value
    if isinstance(value, Mapping):
        return {key: _entry(inner, index, count) for key, inner in value.items()}
    return value
