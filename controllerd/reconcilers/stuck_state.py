"""Servers in a state that somebody should lead out of, without a task that does: they become ERROR, and can be deleted.

A state and its task are written in one transaction, so there should be none: each one found is a bug of ours, and is logged.
"""

from __future__ import annotations

import asyncio
import logging

from controllerd.domain.server import ERROR, TRANSITIONAL
from controllerd.store import event
from controllerd.store import server as server_store
from controllerd.store.database import Database, Tx

log = logging.getLogger(__name__)

PASS_INTERVAL_S = 60.0
REASON = "STUCK"


def free(tx: Tx) -> list[str]:
    """Ids of the servers that became ERROR."""
    stuck = server_store.unattended(tx, TRANSITIONAL)
    for server in stuck:
        message = f"the work that would end {server.state} is not there any more"
        server_store.change(tx, server, state=ERROR, fault_reason=REASON, fault_message=message, fault_details=())
        event.record(tx, "server.stuck", server.project_id, server.id, message)
    return [server.id for server in stuck]


class StuckStates:
    def __init__(self, database: Database) -> None:
        self._db = database

    async def run(self) -> None:
        while True:
            for server_id in await self._db.write(free):
                log.error("a server without a task was in a transitional state", extra={"server": server_id})
            await asyncio.sleep(PASS_INTERVAL_S)
