"""Gives up agents that stay away, so that nothing waits for them and their servers show UNKNOWN.

Wakes when an agent comes or goes, and when the grace of the one longest away ends. An agent that comes back is taken up
again by its session.
"""

from __future__ import annotations

import asyncio

from controllerd.store import event, node, server
from controllerd.store.database import Database, Tx
from controllerd.store.node import AGENTS
from daemonkit.runtime import Runtime

PASS_INTERVAL_S = 10.0


def give_up(tx: Tx, lost_after_s: float) -> list[tuple[str, str]]:
    """(node id, agent) of those that are lost from now on."""
    lost = node.lose_silent(tx, tx.now - lost_after_s)
    names = node.names(tx) if lost else {}
    for node_id, kind in lost:
        event.record(tx, "node.lost", "", node_id, f"{kind} on {names.get(node_id, node_id)} does not answer", agent=kind)
        tx.touch(*server.ids_of_node(tx, node_id))
    return lost


class LostNodes:
    def __init__(self, database: Database, runtime: Runtime, lost_after_s: float) -> None:
        self._db, self._runtime, self._lost_after_s = database, runtime, lost_after_s
        self._wake = asyncio.Event()

    def notice(self, touched: set[str]) -> None:
        """Subscriber of the store."""
        if AGENTS in touched:
            self._wake.set()

    async def run(self) -> None:
        while True:
            away_since = await self._db.read(node.away_since)
            rest_s = PASS_INTERVAL_S
            if away_since is not None:
                rest_s = away_since + self._lost_after_s - self._db.now_s()
            if rest_s <= 0:
                await self._db.write(lambda tx: give_up(tx, self._lost_after_s))
                continue
            try:
                async with asyncio.timeout(min(rest_s, PASS_INTERVAL_S) + 0.001):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
