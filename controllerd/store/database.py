"""The one database: a single writer with group commit, a few readers, the copy of the state that this controller leads with.

`write(fn)` runs `fn(tx)` in the writer thread inside a SAVEPOINT; transactions that arrive together share one commit. When
`write` returns, the work is durable. `fn` is plain code: no awaits, no I/O, no clock (take `tx.now`). If it raises, only its
own savepoint is undone and the error reaches its caller. `read(fn)` runs on a read-only connection: committed state only.

What makes a commit durable is the log. A local one is this file itself. A replicated one takes each group as an entry, after
it was prepared and before it is committed here; what this file then loses is played back from the log. Whoever is told
anything, be it an error or what a read has found, is told it only while this controller provably leads.

After a commit the resources that the transactions touched are published to subscribers, on the event loop.

A full disk costs only the group that met it, and so does an entry that is too large for the log. Whatever leaves the outcome
of a commit in doubt (a fence, a log that does not answer, a disk that fails) ends writing for good: `run` raises, and the
process starts anew from what is durable.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import TypeVar

import apsw

from controllerd.leadership.commit_log import CommitLog
from controllerd.store.migration import Migration, migrations
from controllerd.store.position import Position
from controllerd.store.term_clock import TermClock
from controllerd.store.transaction import STORE_ERRORS, Row, Tx
from controllerd.store.writer import STATEMENTS_CACHED, Follower, Item, Prepared, Writer
from daemonkit.errors import ConfigError, Fenced, SkyrackError, TooLarge, Unavailable
from daemonkit.failpoint import failpoint
from daemonkit.metrics import CLOCK_STEP_S
from daemonkit.runtime import Runtime

__all__ = ["STORE_ERRORS", "Database", "Row", "Tx"]

log = logging.getLogger(__name__)
T = TypeVar("T")

GROUP_MAX = 256  # transactions a commit
READERS = 2
CLOCK_LOOK_INTERVAL_S = 10.0  # while there is nothing to write
CLOCK_STEP_WARNED_S = 60.0


class Database:
    """For one term: what was closed, or refuses, is not opened again."""

    def __init__(self, path: Path, commit_log: CommitLog, runtime: Runtime, known: Sequence[Migration] | None = None) -> None:
        """`known`: migrations that the software brings; those in its files by default."""
        self._path, self._log, self._runtime = path, commit_log, runtime
        self._known = migrations() if known is None else known
        self._writing = runtime.threads("store-writer", 1)
        self._reading = runtime.threads("store-reader", READERS)
        self._writer = Writer(path, commit_log.replicated, runtime)
        self._idle_readers: deque[apsw.Connection] = deque()
        self._pending: list[Item] = []
        self._wake = asyncio.Event()
        self._subscribers: list[Callable[[set[str]], None]] = []
        self._clock: TermClock
        self._step_warned = False
        self.refused: SkyrackError | None = None  # why nothing is written any more

    # ---- what it is

    @property
    def position(self) -> Position:
        """After the last commit."""
        return self._writer.position

    @property
    def epoch(self) -> int:
        return self.position.epoch

    @property
    def seq(self) -> int:
        return self.position.seq

    @property
    def schema(self) -> int:
        return self.position.schema

    @property
    def cluster_id(self) -> str:
        return self.position.cluster_id

    def now_s(self) -> float:
        """The time that transactions go by, for whatever is compared with stored times: it follows no step of the clock."""
        return self._clock.now_s()

    @property
    def clock_step_s(self) -> float:
        """How far the machine's clock is ahead of `now_s`."""
        return self._clock.step_s

    # ---- opening

    async def open(self) -> None:
        """Opens, raises the epoch durably, then migrates.

        Errors: ConfigError (damaged file, newer schema); Fenced, Unavailable of a replicated log.
        """
        try:
            await self._writing.run(self._writer.open, self._known)
            await self._begin_term()
        except BaseException as error:
            await self.close()
            if isinstance(error, apsw.Error):
                raise ConfigError(f"{self._path}: {error}") from None
            raise

    async def _begin_term(self) -> None:
        self._clock = TermClock(self._runtime.clock, self.position.now, self._log.ahead_s)
        epoch = self._log.next_epoch(self.epoch)
        await self._carry_out(await self._writing.run(self._writer.prepare_term, epoch, self._clock))
        for migration in self._known:
            if migration.number > self.schema:
                log.info("migrating", extra={"schema": migration.number, "migration": migration.name})
                await self._carry_out(await self._writing.run(self._writer.prepare_migration, migration))
        await self._writing.run(self._writer.end_migrations)

    async def close(self) -> None:
        """After `run` has ended. What still waits is refused."""
        self._refuse_all(Unavailable("the store is closed"))
        await self._writing.run(self._reading.close)  # a read under way may take long, and this loop has more to do
        while self._idle_readers:
            self._idle_readers.pop().close()
        await self._writing.run(self._writer.close)
        self._writing.close()

    # ---- writing

    async def write(self, fn: Callable[[Tx], T]) -> T:
        """Errors: what `fn` raises; TooLarge; Unavailable when this controller may not write (any more)."""
        return await self.submit(fn)

    def submit(self, fn: Callable[[Tx], T]) -> asyncio.Future[T]:
        """As `write`, and takes its place in the order of writes at once. Nobody need await it."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        item = Item(fn, copy_context(), future)
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
                await self._wait_for_work()
                self._look_at_clock()
                while self._pending:
                    await self._commit_next()
                    self._look_at_clock()
        finally:
            self._refuse_all(self.refused or Unavailable("the store is closing"))

    async def _wait_for_work(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOCK_LOOK_INTERVAL_S):
                await self._wake.wait()
        self._wake.clear()

    async def _commit_next(self) -> None:
        """Errors: as `run`. A cancellation waits for the commit under way, whose callers are told its outcome."""
        group, self._pending = self._pending[:GROUP_MAX], self._pending[GROUP_MAX:]
        commit = asyncio.ensure_future(self._commit(group))
        try:
            await asyncio.shield(commit)
        except asyncio.CancelledError:
            await asyncio.wait([commit])
            raise
        if self.refused:
            raise self.refused

    async def _commit(self, group: list[Item]) -> None:
        """The outcome of each item is in it, and told."""
        prepared: Prepared | None = None
        try:
            if not self._log.replicated:
                prepared = await self._writing.run(self._writer.write, group)
            else:
                prepared = await self._writing.run(self._writer.prepare, group)
                group, self._pending = group[: prepared.items], group[prepared.items :] + self._pending
                await self._carry_out(prepared)
        except BaseException as error:
            self._give_up(group, error, in_doubt=prepared is not None and prepared.entry is not None)
            if not isinstance(error, Exception):
                raise
        else:
            self._publish(group, prepared.touched)

    async def _carry_out(self, prepared: Prepared) -> None:
        """Makes what is prepared durable. Errors: Fenced, Unavailable, TooLarge (nothing was done), apsw.Error."""
        try:
            if prepared.entry is not None:
                failpoint("store.prepared")
                await self._log.append(prepared.entry)
                failpoint("store.appended")
            elif self._log.replicated:  # the state as it was read, and no append that would have been refused
                self._log.assert_leading()
        except BaseException:
            await self._writing.run(self._writer.rollback)
            raise
        await self._writing.run(self._writer.commit, prepared)
        failpoint("store.committed")

    def _give_up(self, group: list[Item], error: BaseException, in_doubt: bool) -> None:
        """The whole group failed. An entry that is too large costs this group only, and so does a full disk, unless the log may
        have it. Other doubts end all."""
        told = error if isinstance(error, Fenced | Unavailable | TooLarge) else Unavailable(f"the store cannot write: {error}")
        passing = isinstance(error, apsw.FullError | apsw.BusyError | Unavailable) and not in_doubt
        if not passing and not isinstance(error, TooLarge):
            self.refused = told
        log.error("commit failed", extra={"why": str(error), "transactions": len(group)})
        for item in group:
            item.error = told
            _settle(item)

    def _publish(self, group: list[Item], touched: set[str]) -> None:
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

    def _look_at_clock(self) -> None:
        step_s = self.clock_step_s
        CLOCK_STEP_S.set(step_s)
        far = abs(step_s) > CLOCK_STEP_WARNED_S
        if far and not self._step_warned:
            log.warning("the machine's clock was set; the store goes on by its own time", extra={"step_s": round(step_s)})
        self._step_warned = far

    # ---- reading

    async def read(self, fn: Callable[[Tx], T]) -> T:
        """Errors: what `fn` raises; Unavailable when the store is closed, or this controller can't prove that it leads."""
        if self.refused:
            raise self.refused
        try:
            found = await self._reading.run(copy_context().run, self._read, fn)
        except Exception:
            self._log.assert_leading()  # an error tells of the state, too
            raise
        self._log.assert_leading()
        return found

    def _read(self, fn: Callable[[Tx], T]) -> T:
        try:
            connection = self._idle_readers.pop()
        except IndexError:  # asking first would race with the other thread
            connection = self._reader()
        try:
            connection.execute("BEGIN")
            try:
                return fn(Tx(connection, self._clock.now_s(), self.epoch, self._runtime))
            finally:
                connection.execute("ROLLBACK")
        finally:
            self._take_back(connection)

    def _take_back(self, connection: apsw.Connection) -> None:
        """Whoever keeps a cursor keeps the connection at the state it has read, and all later reads with it."""
        if connection.txn_state("main") == apsw.SQLITE_TXN_NONE:
            self._idle_readers.append(connection)
        else:
            log.error("a read has left a cursor open; its connection is given up")
            connection.close(force=True)

    def _reader(self) -> apsw.Connection:
        flags = apsw.SQLITE_OPEN_READONLY
        connection = apsw.Connection(str(self._path), flags=flags, statementcachesize=STATEMENTS_CACHED)
        connection.execute("PRAGMA busy_timeout=5000")
        return connection

    # ---- publishing

    def follow(self, follower: Follower) -> None:
        """`follower(touched)` is asked after each transaction, in the writer's thread, what shall follow it: transactions, and
        who is told their outcome. They run at the end of the same commit, in savepoints of their own, or first in the next one
        when its entry in the log was large enough without them; nothing follows them in turn. Whoever is told hears of it
        before subscribers do.
        """
        self._writer.follower = follower

    def subscribe(self, subscriber: Callable[[set[str]], None]) -> None:
        """`subscriber(resource ids)` is called on the loop after each commit, before writers are told; it must not block."""
        self._subscribers.append(subscriber)


def _settle(item: Item) -> None:
    if item.future.done():  # the caller stopped waiting; the work is done all the same
        return
    if item.error is not None:
        item.future.set_exception(item.error)
    else:
        item.future.set_result(item.outcome)
