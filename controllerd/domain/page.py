"""Pages of lists: a marker in creation order, so that a page costs the same wherever it is and nothing is skipped."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from daemonkit.errors import InvalidArgument

T = TypeVar("T")

SIZE_DEFAULT = 100
SIZE_MAX = 1000
TOKEN_LENGTH_MAX = 512
TIME_MAX = 1e18  # of a marker: above all times and numbers of events, and still one of SQLite's integers


@dataclass(frozen=True)
class Page:
    limit: int = SIZE_DEFAULT
    after_time: float = -1.0
    after_id: str = ""

    @classmethod
    def parse(cls, size: int, token: str) -> Page:
        """Errors: InvalidArgument naming page_size or page_token."""
        if size > SIZE_MAX:
            raise InvalidArgument("page_size", f"at most {SIZE_MAX}, is {size}")
        if not token:
            return cls(size or SIZE_DEFAULT)
        try:
            if len(token) > TOKEN_LENGTH_MAX:
                raise ValueError
            after_time, after_id = json.loads(base64.urlsafe_b64decode(token.encode()))
            plain = isinstance(after_id, str) and after_id.isascii() and after_id.isprintable()
            if not (plain and abs(after_time) <= TIME_MAX):
                raise ValueError
            return cls(size or SIZE_DEFAULT, float(after_time), after_id)
        except (ValueError, TypeError, OverflowError, RecursionError):
            raise InvalidArgument("page_token", "is not one that a list gave") from None


@dataclass(frozen=True)
class PageOf(Generic[T]):
    items: Sequence[T]
    next_token: str  # "" = the last page

    @classmethod
    def cut(cls, items: Sequence[T], limit: int, marker: Callable[[T], tuple[float, str]]) -> PageOf[T]:
        """From up to limit + 1 items."""
        if len(items) <= limit:
            return cls(items, "")
        kept = items[:limit]
        return cls(kept, base64.urlsafe_b64encode(json.dumps(marker(kept[-1])).encode()).decode())
