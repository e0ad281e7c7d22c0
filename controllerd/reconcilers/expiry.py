"""Forgets what has had its time: tokens, idempotency keys, ended tasks, old events, image content that nothing names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from controllerd.store import event, idempotency, identity, image, node, task
from controllerd.store.database import Database, Tx

PASS_INTERVAL_S = 300.0
TASKS_KEPT_S = 7 * 24 * 3600.0
EVENTS_KEPT = 200_000
BATCH_MAX = 2000  # rows a transaction: others must get their turn, and a log entry has a limit


# Each gives how many went; BATCH_MAX means there may be more.


def expire_tokens(tx: Tx) -> int:
    return identity.expire_tokens(tx, BATCH_MAX)


def expire_keys(tx: Tx) -> int:
    return idempotency.forget_old(tx, BATCH_MAX)


def expire_events(tx: Tx) -> int:
    return event.forget_oldest(tx, EVENTS_KEPT, BATCH_MAX)


def expire_tasks(tx: Tx) -> int:
    return task.forget_ended(tx, tx.now - TASKS_KEPT_S, BATCH_MAX)


def collect_images(tx: Tx) -> int:
    return image.collect(tx, tx.now - image.UNREFERENCED_KEPT_S)


PASSES: tuple[Callable[[Tx], int], ...] = (
    expire_tokens, node.expire_join_tokens, expire_keys, expire_tasks, expire_events, collect_images,
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
