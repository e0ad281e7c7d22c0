"""A replicated log in memory, with its troubles; and what tests of the store do with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from controllerd.leadership.commit_log import CommitLog, LocalLog
from controllerd.leadership.entry import Entry, decode, encode
from controllerd.store.database import Database, Tx
from controllerd.store.migration import Migration
from daemonkit.errors import Fenced, Unavailable
from daemonkit.runtime import Runtime, system_runtime

LIMIT_S = 60


class MemoryLog:
    """`refusal`: raised by the next appends, after the entry was taken if `taken_all_the_same`. `leading`: provably.
    `gate`: appends wait for it."""

    replicated = True
    ahead_s: float | None = None

    def __init__(self, entries: list[Entry] | None = None) -> None:
        self.entries: list[Entry] = [] if entries is None else entries
        self.refusal: Exception | None = None
        self.taken_all_the_same = False
        self.leading = True
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()

    def next_epoch(self, last: int) -> int:
        return max(last + 1, 41)

    async def append(self, entry: Entry) -> None:
        self.waiting.set()
        await self.gate.wait()
        if self.refusal is None or self.taken_all_the_same:
            assert not self.entries or entry.seq == self.entries[-1].seq + 1
            self.entries.append(decode(entry.seq, encode(entry)))
        if self.refusal:
            raise self.refusal

    def assert_leading(self) -> None:
        if not self.leading:
            raise Unavailable("not provably the leader")


@asynccontextmanager
async def opened(
    path: Path, log: CommitLog | None = None, runtime: Runtime | None = None, known: list[Migration] | None = None
) -> AsyncIterator[Database]:
    """With real threads, unless another runtime is given."""
    database = Database(path, log or LocalLog(), runtime or system_runtime(), known)
    await database.open()
    commits = asyncio.create_task(database.run())
    try:
        yield database
    finally:
        commits.cancel()
        with suppress(asyncio.CancelledError, Unavailable, Fenced):
            await commits
        await database.close()


def put(name: str) -> Callable[[Tx], int]:
    sql = "INSERT INTO project (id, name, description, enabled, created_at) VALUES (?, ?, '', 1, ?)"
    return lambda tx: tx.run(sql, tx.new_id(), name, tx.now)


async def names(database: Database) -> set[str]:
    return {row["name"] for row in await database.read(lambda tx: tx.all("SELECT name FROM project"))}
