"""Checks of tenants' input. Each gives the cleaned value or raises InvalidArgument naming the field and the limit."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from uuid import UUID

from daemonkit.errors import InvalidArgument

NAME_MAX = 255
METADATA_ENTRIES_MAX = 128


def text(field: str, value: str, *, length_max: int = NAME_MAX, empty: bool = True) -> str:
    """Printable text: no control characters, no surrogates, no bidirectional overrides."""
    if not value and not empty:
        raise InvalidArgument(field, "must not be empty")
    if len(value) > length_max:
        raise InvalidArgument(field, f"at most {length_max} characters, has {len(value)}")
    for character in value:
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
            raise InvalidArgument(field, f"must not hold the control character U+{ord(character):04X}")
    return value


def name(field: str, value: str) -> str:
    """1 to 255 printable characters, not blank at its ends."""
    if value != value.strip():
        raise InvalidArgument(field, "must not begin or end with a blank")
    return text(field, value, empty=False)


def between(field: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise InvalidArgument(field, f"from {low} to {high}, is {value}")
    return value


def one_of(field: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise InvalidArgument(field, f"one of {', '.join(allowed)}; is {value!r}")
    return value


def resource_id(field: str, value: str) -> str:
    """Errors: InvalidArgument when it is no UUID (a name, say)."""
    try:
        return str(UUID(value))
    except ValueError:
        raise InvalidArgument(field, f"is not an id (UUID): {value[:64]!r}") from None


def metadata(field: str, values: Mapping[str, str]) -> dict[str, str]:
    if len(values) > METADATA_ENTRIES_MAX:
        raise InvalidArgument(field, f"at most {METADATA_ENTRIES_MAX} entries, has {len(values)}")
    return {text(field, k, empty=False): text(field, v) for k, v in values.items()}
