"""Routers without a working node get one: those made while there was no gateway node, and those whose node was lost for
longer than a restart takes. A router on a lost node stays there while no other can take it."""

from __future__ import annotations

import asyncio
import logging

from controllerd.domain.router import plan_placement
from controllerd.store import event, router
from controllerd.store.database import Database, Tx
from controllerd.store.node import AGENTS
from controllerd.store.router import ROUTERS

log = logging.getLogger(__name__)

PASS_INTERVAL_S = 10.0
BETWEEN_PASSES_S = 0.2
LOST_FOR_S = 30.0  # since the node was last heard of


class RouterPlacement:
    def __init__(self, database: Database, lost_for_s: float = LOST_FOR_S) -> None:
        self._db, self._lost_for_s = database, lost_for_s
        self._wake = asyncio.Event()

    def notice(self, touched: set[str]) -> None:
        """Subscriber of the store: an agent that comes may be the gateway node that routers wait for."""
        if AGENTS in touched:
            self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.once()
            await asyncio.sleep(BETWEEN_PASSES_S)
            try:
                async with asyncio.timeout(PASS_INTERVAL_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def once(self) -> None:
        """One pass; it writes only when there is a router to move and a node to take it."""
        movable = await self._db.read(lambda tx: bool(router.homeless(tx, tx.now - self._lost_for_s)))
        if movable and await self._db.read(lambda tx: bool(router.gateway_nodes(tx))):
            try:
                await self._db.write(lambda tx: place_homeless(tx, self._lost_for_s))
            except Exception:
                log.exception("routers could not be placed; tried again")


def place_homeless(tx: Tx, lost_for_s: float) -> None:
    nodes = {node.id: node.name for node in router.gateway_nodes(tx)}
    for router_id, node_id in plan_placement(router.homeless(tx, tx.now - lost_for_s), router.gateway_nodes(tx)).items():
        router.move(tx, router_id, node_id)
        project_id = ROUTERS.get(tx, router_id).project_id
        event.record(tx, "router.placed", project_id, router_id, f"on {nodes[node_id]}")
