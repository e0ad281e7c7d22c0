"""The one database: a single writer with group commit, a few readers, numbered migrations.

`write(fn)` runs `fn(tx)` in the writer thread inside a SAVEPOINT; transactions that arrive together share one commit. When
`write` returns, the work is durable. `fn` is plain code: no awaits, no I/O, no clock (take `tx.now`). If it raises, only its
own savepoint is undone and the error reaches its caller. `read(fn)` runs on a read-only connection: committed state only.

After a commit the resources that the transactions touched are published to subscribers, on the event loop.

A full disk costs only the group that met it. Whatever leaves the outcome of a commit in doubt (a fence, a log that does not
answer, a disk that fails) ends writing for good: `run` raises, and the process starts anew from what is durable.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import apsw

from controllerd.leadership.commit_log import CommitLog
from daemonkit.errors import ConfigError, Fenced, SkyrackError, Unavailable
from daemonkit.runtime import Runtime

log = logging.getLogger(__name__)
T = TypeVar("T")
Row = dict[str, Any]

GROUP_MAX = 256  # transactions a commit
READERS = 2
STATEMENTS_CACHED = 512
_TABLES_OUTSIDE_THE_LOG = ("_log",)

# What the file below us did. Code that survives any error of one item must let these through: nothing more can be written.
STORE_ERRORS = (apsw.FullError, apsw.IOError, apsw.CorruptError, apsw.NotADBError, apsw.NoMemError, apsw.BusyError)


@dataclass
class Tx:
    """One transaction. `now`: wall time in seconds, the same for the whole transaction."""

    connection: apsw.Connection
    now: float
    epoch: int
    runtime: Runtime
    touched: set[str] = field(default_factory=set)

    def all(self, sql: str, *values: Any) -> list[Row]:
        return list(self.each(sql, *values))

    def each(self, sql: str, *values: Any) -> Iterator[Row]:
        cursor = self.connection.execute(sql, values)
        names: list[str] = []
        for row in cursor:
            names = names or [column[0] for column in cursor.description]
            yield dict(zip(names, row, strict=True))

    def one(self, sql: str, *values: Any) -> Row | None:
        return next(self.each(sql, *values), None)

    def value(self, sql: str, *values: Any) -> Any:
        """First column of the first row, None without one."""
        row = next(iter(self.connection.execute(sql, values)), None)
        return None if row is None else row[0]

    def run(self, sql: str, *values: Any) -> int:
        """Number of rows changed."""
        self.check()
        before = self.connection.total_changes()
        self.connection.execute(sql, values)
        return int(self.connection.total_changes() - before)

    def check(self) -> None:
        """When the disk is full SQLite may undo the transaction by itself; what is written after that would stand alone.

        Errors: one of STORE_ERRORS.
        """
        if not self.connection.in_transaction:
            raise apsw.FullError("the transaction was undone by SQLite")

    def touch(self, *resource_ids: str) -> None:
        """Tells subscribers, after the commit, that these resources (ids of nodes, servers, volumes...) changed."""
        self.touched.update(i for i in resource_ids if i)

    def new_id(self) -> str:
        return self.runtime.new_id()

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """What the block wrote and touched is undone if it raises."""
        self.check()
        touched = set(self.touched)
        self.connection.execute("SAVEPOINT inner")
        try:
            yield
        except BaseException:
            if self.connection.in_transaction:  # SQLite may have undone all of it already
                self.connection.execute("ROLLBACK TO inner; RELEASE inner")
            self.touched = touched
            raise
        self.connection.execute("RELEASE inner")


@dataclass
class _Pending:
    fn: Callable[[Tx], Any]
    context: Context
    future: asyncio.Future[Any]
    outcome: Any = None
    error: BaseException | None = None


class Database:
    def __init__(self, path: Path, commit_log: CommitLog, runtime: Runtime) -> None:
        self._path, self._log, self._runtime = path, commit_log, runtime
        self._writing = runtime.threads("store-writer", 1)
        self._reading = runtime.threads("store-reader", READERS)
        self._idle_readers: deque[apsw.Connection] = deque()
        self._writer: apsw.Connection
        self._pending: list[_Pending] = []
        self._wake = asyncio.Event()
        self._subscribers: list[Callable[[set[str]], None]] = []
        self._seq = 0
        self.epoch = 0
        self.refused: SkyrackError | None = None  # why nothing is written any more

    # ---- opening

    async def open(self) -> None:
        """Opens, migrates, and raises the epoch durably. Errors: ConfigError (damaged file, newer schema)."""
        await self._writing.run(self._open)

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._writer = apsw.Connection(str(self._path), statementcachesize=STATEMENTS_CACHED)
            self._path.chmod(0o600)
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
                self._writer.execute(f"PRAGMA {pragma}")
            migrate(self._writer)
            self._seq, self.epoch = self._begin_epoch()
        except apsw.Error as error:
            raise ConfigError(f"{self._path}: {error}") from None

    def _begin_epoch(self) -> tuple[int, int]:
        """(last seq, new epoch), durably."""
        self._writer.execute(
            "CREATE TABLE IF NOT EXISTS _log (one INTEGER PRIMARY KEY, seq INTEGER NOT NULL, epoch INTEGER NOT NULL);"
            "INSERT OR IGNORE INTO _log VALUES (1, 0, 0)"
        )
        seq, last = next(iter(self._writer.execute("SELECT seq, epoch FROM _log")))
        epoch = self._log.next_epoch(last)
        self._writer.execute("UPDATE _log SET epoch = ?", (epoch,))
        return seq, epoch

    async def close(self) -> None:
        """After `run` has ended. What still waits is refused."""
        self._refuse_all(Unavailable("the store is closed"))
        self._reading.close()
        while self._idle_readers:
            self._idle_readers.pop().close()
        await self._writing.run(self._writer.close)
        self._writing.close()

    # ---- writing

    async def write(self, fn: Callable[[Tx], T]) -> T:
        """Errors: what `fn` raises; Unavailable when this controller may not write (any more)."""
        return await self.submit(fn)

    def submit(self, fn: Callable[[Tx], T]) -> asyncio.Future[T]:
        """As `write`, and takes its place in the order of writes at once. Nobody need await it."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        item = _Pending(fn, copy_context(), future)
        if self.refused:
            item.error = self.refused
            _settle(item)
        else:
            self._pending.append(item)
            self._wake.set()
        return future

    async def run(self) -> None:
        """The commit loop; runs until cancelled. While one group commits, the next one gathers.

        Errors: Fenced, Unavailable when nothing may be written any more.
        """
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._pending:
                    await self._commit_next()
        finally:
            self._refuse_all(self.refused or Unavailable("the store is closing"))

    async def _commit_next(self) -> None:
        """Errors: as `run`. A cancellation waits for the commit under way, whose callers are told its outcome."""
        group, self._pending = self._pending[:GROUP_MAX], self._pending[GROUP_MAX:]
        commit = asyncio.ensure_future(self._writing.run(self._commit, group))
        try:
            touched = await asyncio.shield(commit)
        except asyncio.CancelledError:
            await asyncio.wait([commit])
            self._publish(group, commit.result())
            raise
        self._publish(group, touched)
        if self.refused:
            raise self.refused

    def _publish(self, group: list[_Pending], touched: set[str]) -> None:
        for item in group:
            _settle(item)
        for subscriber in self._subscribers if touched else ():
            try:
                subscriber(touched)
            except Exception:
                log.exception("a subscriber of the store failed")

    def _refuse_all(self, why: SkyrackError) -> None:
        self.refused = self.refused or why
        waiting, self._pending = self._pending, []
        for item in waiting:
            item.error = self.refused
            _settle(item)

    def _commit(self, group: list[_Pending]) -> set[str]:
        """In the writer's thread. Gives what was touched; the outcome of each item is in it."""
        touched: set[str] = set()
        appended = False
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            before = self._writer.total_changes()
            with self._recording() as recorded:
                for item in group:
                    self._run_in_savepoint(item, touched)
                entry = recorded()
            if self._writer.total_changes() > before:
                self._writer.execute("UPDATE _log SET seq = ?", (self._seq + 1,))
                del entry  # to be appended to a replicated log
                appended = True
            self._writer.execute("COMMIT")
            self._seq += appended
        except Exception as error:
            self._give_up(group, error, appended)
            return set()
        return touched

    @contextmanager
    def _recording(self) -> Iterator[Callable[[], bytes]]:
        """Gives what tells the changeset of the block so far; b"" for a log that wants none."""
        if not self._log.replicated:
            yield lambda: b""
            return
        session = apsw.Session(self._writer, "main")
        try:
            session.table_filter(lambda name: name not in _TABLES_OUTSIDE_THE_LOG)
            session.attach()
            yield session.changeset
        finally:
            session.close()

    def _run_in_savepoint(self, item: _Pending, touched: set[str]) -> None:
        """Errors: of the store itself only; what `fn` raises is the item's."""
        tx = Tx(self._writer, self._runtime.clock.wall_s(), self.epoch, self._runtime)
        self._writer.execute("SAVEPOINT item")
        try:
            item.outcome = item.context.run(item.fn, tx)
            tx.check()
            self._writer.execute("RELEASE item")
            touched |= tx.touched
        except STORE_ERRORS:
            raise
        except Exception as error:
            tx.check()
            self._writer.execute("ROLLBACK TO item; RELEASE item")
            item.error = error

    def _give_up(self, group: list[_Pending], error: Exception, appended: bool) -> None:
        """The whole group failed. A full disk costs this group only, unless the log has it already; other doubts end all."""
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")
        told = error if isinstance(error, Fenced | Unavailable) else Unavailable(f"the store cannot write: {error}")
        harmless = isinstance(error, apsw.FullError | apsw.BusyError) and not (appended and self._log.replicated)
        if not harmless:
            self.refused = told
        log.error("commit failed", extra={"why": str(error), "transactions": len(group)})
        for item in group:
            item.error = told

    # ---- reading

    async def read(self, fn: Callable[[Tx], T]) -> T:
        """Errors: what `fn` raises; Unavailable when the store is closed."""
        if self.refused:
            raise self.refused
        return await self._reading.run(copy_context().run, self._read, fn)

    def _read(self, fn: Callable[[Tx], T]) -> T:
        try:
            connection = self._idle_readers.pop()
        except IndexError:  # asking first would race with the other thread
            connection = self._reader()
        try:
            connection.execute("BEGIN")
            try:
                return fn(Tx(connection, self._runtime.clock.wall_s(), self.epoch, self._runtime))
            finally:
                connection.execute("ROLLBACK")
        finally:
            self._idle_readers.append(connection)

    def _reader(self) -> apsw.Connection:
        flags = apsw.SQLITE_OPEN_READONLY
        connection = apsw.Connection(str(self._path), flags=flags, statementcachesize=STATEMENTS_CACHED)
        connection.execute("PRAGMA busy_timeout=5000")
        return connection

    # ---- publishing

    def subscribe(self, subscriber: Callable[[set[str]], None]) -> None:
        """`subscriber(resource ids)` is called on the loop after each commit, before writers are told; it must not block."""
        self._subscribers.append(subscriber)


def _settle(item: _Pending) -> None:
    if item.future.done():  # the caller stopped waiting; the work is done all the same
        return
    if item.error is not None:
        item.future.set_exception(item.error)
    else:
        item.future.set_result(item.outcome)


def migrations() -> Sequence[tuple[int, str]]:
    """(number, SQL) in ascending order, from the files `NNNN_name.sql`."""
    files = [f for f in (resources.files("controllerd.store") / "migrations").iterdir() if f.name.endswith(".sql")]
    return sorted((int(f.name[:4]), f.read_text()) for f in files)


def migrate(connection: apsw.Connection) -> None:
    """Brings the schema to the newest number, one transaction a migration. Errors: ConfigError for a newer schema."""
    current = next(iter(connection.execute("PRAGMA user_version")))[0]
    known = migrations()
    if current > known[-1][0]:
        raise ConfigError(f"the database has schema {current}, this software knows {known[-1][0]}: install the newer one")
    for number, sql in known:
        if number > current:
            with connection:
                connection.execute(sql)
                connection.execute(f"PRAGMA user_version={number}")
