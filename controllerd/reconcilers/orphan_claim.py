"""Frees claims that no server stands behind. There should be none: each one found is a bug of ours, and is logged."""

from __future__ import annotations

import asyncio
import logging

from controllerd.store import claim
from controllerd.store.database import Database

log = logging.getLogger(__name__)

PASS_INTERVAL_S = 60.0


class OrphanClaims:
    def __init__(self, database: Database) -> None:
        self._db = database

    async def run(self) -> None:
        while True:
            for server_id in await self._db.write(claim.release_orphans):
                log.error("a claim without a server was freed", extra={"server": server_id})
            await asyncio.sleep(PASS_INTERVAL_S)
