"""A TOML writer for nested tables of numbers, texts and short lists."""

from collections.abc import Mapping
from typing import Any

DIGITS = 5


def dump(data: Mapping[str, Any], path: str = "") -> str:
    """Return TOML text; numbers keep DIGITS significant digits."""
    plain = {key: value for key, value in data.items() if not isinstance(value, Mapping)}
    nested = {key: value for key, value in data.items() if isinstance(value, Mapping)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    text = "\n".join(lines) + ("\n" if lines else "")
    for key, value in nested.items():
        inner = f"{path}.{_key(key)}" if path else _key(key)
        head = f"\n[{inner}]\n" if any(not isinstance(v, Mapping) for v in value.values()) else ""
        text += head + dump(value, inner)
    return text


def _key(key: str) -> str:
    """Return a bare or quoted key."""
    return key if key.replace("_", "").replace("-", "").isalnum() else f'"{key}"'


def _value(value: Any) -> str:
    """Return a TOML value."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    text = f"{float(value):.{DIGITS}g}"
    return text if any(mark in text for mark in ".einf") else text + ".0"
