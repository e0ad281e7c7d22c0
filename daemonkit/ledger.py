"""What an agent must not forget: highest epoch, desired state, tasks it ran, usage samples not yet acknowledged.

One SQLite file, one connection, one thread. Every method that writes is durable when it returns (synchronous=FULL) and does
all or nothing. Errors of all methods: OutOfSpace when the disk is full, Unavailable for whatever else SQLite says.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from daemonkit.errors import ConfigError, OutOfSpace, SkyrackError, Unavailable
from daemonkit.failpoint import failpoint
from daemonkit.runtime import Runtime
from skyrack.v1 import agent_pb2

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

SPOOL_ROWS_MAX = 500_000  # about 50 MB; the oldest samples go first

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS desired (key TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS task (id TEXT PRIMARY KEY, result BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spool (seq INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB NOT NULL);
"""


class Ledger:
    def __init__(self, path: Path, runtime: Runtime) -> None:
        self._path = path
        self._runtime = runtime
        self._threads = runtime.threads("ledger", 1)
        self._db: sqlite3.Connection

    async def open(self) -> None:
        """Errors: ConfigError when the file is damaged or unreadable."""
        await self._threads.run(self._open)

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            self._db.execute("INSERT OR IGNORE INTO meta VALUES ('incarnation', ?)", (self._runtime.new_id(),))
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"{self._path}: {error}") from None

    async def close(self) -> None:
        await self._threads.run(self._db.close)
        self._threads.close()

    async def _run(self, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        try:
            return await self._threads.run(fn, *args)
        except sqlite3.Error as error:
            raise _classified(error) from None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # some errors have rolled back already
                self._db.execute("ROLLBACK")
            raise

    def _get(self, key: str, default: int | str) -> int | str:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else row[0]

    # ---- epoch

    async def highest_epoch(self) -> int:
        return int(await self._run(self._get, "epoch", 0))

    async def raise_epoch(self, epoch: int) -> None:
        """Never lowers it."""
        sql = (
            "INSERT INTO meta VALUES ('epoch', ?)"
            " ON CONFLICT (key) DO UPDATE SET value = max(CAST(value AS INTEGER), excluded.value)"
        )

        def write() -> None:
            self._db.execute(sql, (epoch,))
            failpoint("ledger.epoch.raised")

        await self._run(write)

    # ---- desired state

    async def load_desired(self) -> tuple[int, int, dict[str, bytes]]:
        """(epoch, generation, key -> encoded object)."""

        def load() -> tuple[int, int, dict[str, bytes]]:
            bodies = dict(self._db.execute("SELECT key, body FROM desired"))
            return int(self._get("desired_epoch", 0)), int(self._get("desired_generation", 0)), bodies

        return await self._run(load)

    async def save_desired(self, epoch: int, generation: int, changed: Mapping[str, bytes | None]) -> None:
        """`changed`: key -> new body, or None when it went."""

        def save() -> None:
            with self._transaction() as db:
                db.executemany("DELETE FROM desired WHERE key = ?", [(k,) for k, body in changed.items() if body is None])
                put = [(key, body) for key, body in changed.items() if body is not None]
                db.executemany("INSERT OR REPLACE INTO desired VALUES (?, ?)", put)
                failpoint("ledger.desired.written")
                marks = [("desired_epoch", epoch), ("desired_generation", generation)]
                db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", marks)
            failpoint("ledger.desired.committed")

        await self._run(save)

    # ---- tasks: at most once an id

    async def begin_task(self, task_id: str) -> tuple[bool, agent_pb2.TaskResult | None]:
        """(True, None): run it now. (False, result): it ran. (False, None): it began and never ended."""

        def begin() -> tuple[bool, bytes | None]:
            fresh = self._db.execute("INSERT OR IGNORE INTO task VALUES (?, NULL)", (task_id,)).rowcount == 1
            failpoint("ledger.task.begun")
            row = self._db.execute("SELECT result FROM task WHERE id = ?", (task_id,)).fetchone()
            return fresh, row[0]

        fresh, body = await self._run(begin)
        return fresh, agent_pb2.TaskResult.FromString(body) if body is not None else None

    async def end_task(self, result: agent_pb2.TaskResult) -> None:
        def write() -> None:
            failpoint("ledger.task.ending")
            body = result.SerializeToString()
            self._db.execute("UPDATE task SET result = ? WHERE id = ?", (body, result.task_id))
            failpoint("ledger.task.ended")

        await self._run(write)

    async def results(self) -> list[agent_pb2.TaskResult]:
        def load() -> list[bytes]:
            return [row[0] for row in self._db.execute("SELECT result FROM task WHERE result IS NOT NULL ORDER BY id")]

        return [agent_pb2.TaskResult.FromString(body) for body in await self._run(load)]

    async def forget_tasks(self, task_ids: Iterable[str]) -> None:
        """Ids that the controller will not ask for again. One that still runs is kept: forgotten, it could run twice."""
        rows = [(task_id,) for task_id in task_ids]

        def forget() -> None:
            with self._transaction() as db:
                db.executemany("DELETE FROM task WHERE id = ? AND result IS NOT NULL", rows)
            failpoint("ledger.task.forgotten")

        if rows:
            await self._run(forget)

    # ---- spool of usage samples

    async def incarnation(self) -> str:
        return str(await self._run(self._get, "incarnation", ""))

    async def spool(self, samples: Iterable[agent_pb2.Sample]) -> None:
        bodies = [(sample.SerializeToString(),) for sample in samples]

        def append() -> None:
            with self._transaction() as db:
                db.executemany("INSERT INTO spool (body) VALUES (?)", bodies)
                db.execute("DELETE FROM spool WHERE seq <= (SELECT max(seq) FROM spool) - ?", (SPOOL_ROWS_MAX,))
                failpoint("ledger.spool.written")
            failpoint("ledger.spool.committed")

        if bodies:
            await self._run(append)

    async def spooled(self, after: int, limit: int) -> list[agent_pb2.Sample]:
        """In ascending order of seq, those above `after`."""

        def load() -> list[tuple[int, bytes]]:
            sql = "SELECT seq, body FROM spool WHERE seq > ? ORDER BY seq LIMIT ?"
            return self._db.execute(sql, (after, limit)).fetchall()

        samples = []
        for seq, body in await self._run(load):
            sample = agent_pb2.Sample.FromString(body)
            sample.seq = seq
            samples.append(sample)
        return samples

    async def drop_spooled(self, up_to: int) -> None:
        def drop() -> None:
            self._db.execute("DELETE FROM spool WHERE seq <= ?", (up_to,))
            failpoint("ledger.spool.dropped")

        await self._run(drop)


def _classified(error: sqlite3.Error) -> SkyrackError:
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
        return OutOfSpace("no room on the disk of the ledger")
    return Unavailable(f"ledger: {error}")
