"""What an agent must not forget: highest epoch, desired state, tasks it ran, usage samples not yet acknowledged.

One SQLite file, one connection, one thread. Durable (synchronous=FULL) where the method says so.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path

from daemonkit.errors import ConfigError
from daemonkit.runtime import Runtime
from skyrack.v1 import agent_pb2

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
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            self._db.execute("INSERT OR IGNORE INTO meta VALUES ('incarnation', ?)", (self._runtime.new_id(),))
        except sqlite3.Error as error:
            raise ConfigError(f"{self._path}: {error}") from None

    async def close(self) -> None:
        await self._threads.run(self._db.close)
        self._threads.close()

    def _get(self, key: str, default: int | str) -> int | str:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else row[0]

    # ---- epoch

    async def highest_epoch(self) -> int:
        return int(await self._threads.run(self._get, "epoch", 0))

    async def raise_epoch(self, epoch: int) -> None:
        """Durable. Never lowers it."""
        sql = (
            "INSERT INTO meta VALUES ('epoch', ?)"
            " ON CONFLICT (key) DO UPDATE SET value = max(CAST(value AS INTEGER), excluded.value)"
        )
        await self._threads.run(self._db.execute, sql, (epoch,))

    # ---- desired state

    async def load_desired(self) -> tuple[int, int, dict[str, bytes]]:
        """(epoch, generation, key -> encoded object)."""

        def load() -> tuple[int, int, dict[str, bytes]]:
            bodies = dict(self._db.execute("SELECT key, body FROM desired"))
            return int(self._get("desired_epoch", 0)), int(self._get("desired_generation", 0)), bodies

        return await self._threads.run(load)

    async def save_desired(self, epoch: int, generation: int, changed: Mapping[str, bytes | None]) -> None:
        """Durable. `changed`: key -> new body, or None when it went."""

        def save() -> None:
            self._db.execute("BEGIN IMMEDIATE")
            for key, body in changed.items():
                if body is None:
                    self._db.execute("DELETE FROM desired WHERE key = ?", (key,))
                else:
                    self._db.execute("INSERT OR REPLACE INTO desired VALUES (?, ?)", (key, body))
            marks = [("desired_epoch", epoch), ("desired_generation", generation)]
            self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", marks)
            self._db.execute("COMMIT")

        await self._threads.run(save)

    # ---- tasks: at most once an id

    async def begin_task(self, task_id: str) -> tuple[bool, agent_pb2.TaskResult | None]:
        """Durable. (True, None): run it now. (False, result): it ran. (False, None): it began and never ended."""

        def begin() -> tuple[bool, bytes | None]:
            fresh = self._db.execute("INSERT OR IGNORE INTO task VALUES (?, NULL)", (task_id,)).rowcount == 1
            row = self._db.execute("SELECT result FROM task WHERE id = ?", (task_id,)).fetchone()
            return fresh, row[0]

        fresh, body = await self._threads.run(begin)
        return fresh, agent_pb2.TaskResult.FromString(body) if body is not None else None

    async def end_task(self, result: agent_pb2.TaskResult) -> None:
        body = result.SerializeToString()
        await self._threads.run(self._db.execute, "UPDATE task SET result = ? WHERE id = ?", (body, result.task_id))

    async def results(self) -> list[agent_pb2.TaskResult]:
        def load() -> list[bytes]:
            return [row[0] for row in self._db.execute("SELECT result FROM task WHERE result IS NOT NULL")]

        return [agent_pb2.TaskResult.FromString(body) for body in await self._threads.run(load)]

    async def forget_tasks(self, task_ids: Iterable[str]) -> None:
        rows = [(i,) for i in task_ids]
        await self._threads.run(self._db.executemany, "DELETE FROM task WHERE id = ?", rows)

    # ---- spool of usage samples

    async def incarnation(self) -> str:
        return str(await self._threads.run(self._get, "incarnation", ""))

    async def spool(self, samples: Iterable[agent_pb2.Sample]) -> None:
        bodies = [(s.SerializeToString(),) for s in samples]

        def append() -> None:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT INTO spool (body) VALUES (?)", bodies)
            cut = "DELETE FROM spool WHERE seq <= (SELECT max(seq) FROM spool) - ?"
            self._db.execute(cut, (SPOOL_ROWS_MAX,))
            self._db.execute("COMMIT")

        await self._threads.run(append)

    async def spooled(self, after: int, limit: int) -> list[agent_pb2.Sample]:
        def load() -> list[tuple[int, bytes]]:
            sql = "SELECT seq, body FROM spool WHERE seq > ? ORDER BY seq LIMIT ?"
            return self._db.execute(sql, (after, limit)).fetchall()

        samples = []
        for seq, body in await self._threads.run(load):
            sample = agent_pb2.Sample.FromString(body)
            sample.seq = seq
            samples.append(sample)
        return samples

    async def drop_spooled(self, up_to: int) -> None:
        await self._threads.run(self._db.execute, "DELETE FROM spool WHERE seq <= ?", (up_to,))
