"""A value that others wait for."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class News(Generic[T]):
    def __init__(self, value: T) -> None:
        self.value = value
        self._next = asyncio.Event()

    def set(self, value: T) -> None:
        """Wakes those who wait, if it is another value."""
        if value != self.value:
            self.value = value
            self._next.set()
            self._next = asyncio.Event()

    async def other_than(self, known: T) -> T:
        """The value, as soon as it is not `known`."""
        while self.value == known:
            await self._next.wait()
        return self.value
