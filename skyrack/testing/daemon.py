"""A daemon that lives in this process: it can be killed, and another one started in its place."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any


class Daemon:
    def __init__(self, work: Coroutine[Any, Any, None], held: AsyncExitStack | None = None) -> None:
        """`held`: what it has open, closed when it is gone."""
        self._task = asyncio.get_running_loop().create_task(work)
        self._held = held or AsyncExitStack()

    async def kill(self) -> None:
        """Again does nothing. Errors: what it has died of by itself."""
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._held.aclose()
        if not self._task.cancelled():
            self._task.result()
