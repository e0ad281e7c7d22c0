"""The way in for agents when many come at once, as all of them do after a leader's end.

Each costs milliseconds twice: to be let in, and then to be told what it shall have and to be heard. Were all served at once,
each would wait for all others, and every call of a user with them. So some are let in at a time, enough to share commits, and
whoever is in is served when nobody stands at the door any more: first everybody is in session, so that no node is taken for
lost and all of them can be given servers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

LET_IN_AT_ONCE = 32
QUIET_MAX_S = 5.0  # for others, who may never cease to come


class Door:
    def __init__(self) -> None:
        self._entering = asyncio.Semaphore(LET_IN_AT_ONCE)
        self._coming = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    @asynccontextmanager
    async def passed(self) -> AsyncIterator[None]:
        """Around what lets one agent in; nothing in it may wait for the agent."""
        self._coming += 1
        self._quiet.clear()
        try:
            async with self._entering:
                yield
        finally:
            self._coming -= 1
            if not self._coming:
                self._quiet.set()

    async def quiet(self) -> None:
        """Returns when nobody comes, or QUIET_MAX_S have passed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(QUIET_MAX_S):
                await self._quiet.wait()
