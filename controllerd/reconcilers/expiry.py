"""Forgets what has had its time: tokens, idempotency keys, ended tasks, old events, image content that nothing names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from controllerd.store import event, idempotency, identity, image, node, task
from controllerd.store.database import Database, Tx

PASS_INTERVAL_S = 300.0
TASKS_KEPT_S = 7 * 24 * 3600.0
EVENTS_KEPT = 200_000
BATCH_MAX = 2000  # events a transaction: others must get their turn


def expire_events(tx: Tx) -> int:
    """Gives how many went; BATCH_MAX means there may be more."""
    return event.forget_oldest(tx, EVENTS_KEPT, BATCH_MAX)


def expire_tasks(tx: Tx) -> int:
    return task.forget_ended(tx, tx.now - TASKS_KEPT_S)


def collect_images(tx: Tx) -> int:
    return image.collect(tx, tx.now - image.UNREFERENCED_KEPT_S)


PASSES: tuple[Callable[[Tx], int], ...] = (
    identity.expire_tokens, node.expire_join_tokens, idempotency.forget_old, expire_tasks, expire_events,
    collect_images,
)  # fmt: skip


class Expiry:
    def __init__(self, database: Database) -> None:
        self._db = database

    async def run(self) -> None:
        while True:
            for expire in PASSES:
                while await self._db.write(expire) == BATCH_MAX:
                    continue  # each a transaction of its own
            await asyncio.sleep(PASS_INTERVAL_S)
