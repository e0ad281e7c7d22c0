"""The writer's side of the store: the one connection that writes. Everything here runs in the writer's thread.

A group of transactions is prepared (BEGIN, each transaction in a savepoint of its own, the changeset, the new position) and
then committed or rolled back, so that a replicated log can take the entry in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from contextvars import Context
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import apsw

from controllerd.leadership.entry import BATCH_BYTES, Entry, Kind, encode
from controllerd.store import migration as migrating
from controllerd.store import position as positions
from controllerd.store.changeset import Recorder, row_changes
from controllerd.store.migration import Migration
from controllerd.store.position import Position
from controllerd.store.term_clock import TermClock
from controllerd.store.transaction import STORE_ERRORS, Tx
from daemonkit.errors import ConfigError, TooLarge
from daemonkit.runtime import Runtime

STATEMENTS_CACHED = 512
GROUP_BYTES_MAX = 512 << 10  # of changes, not compressed: a group takes up no further transaction when it has so many
ENTRY_BYTES_MAX = 1_400_000  # compressed: what etcd takes in one request is 1.5 MiB


class Receiver(Protocol):
    """Who is told the outcome, on the event loop: a future, or what follows a transaction."""

    def done(self) -> bool:
        """Nobody wants to be told any more."""

    def set_result(self, result: Any, /) -> None: ...

    def set_exception(self, exception: BaseException, /) -> None: ...


@dataclass
class Item:
    """A transaction on its way, and its outcome. `follows` another one of its group."""

    fn: Callable[[Tx], Any]
    context: Context
    future: Receiver
    outcome: Any = None
    error: BaseException | None = None
    follows: bool = False


Follower = Callable[[set[str]], Iterable[tuple[Callable[[Tx], Any], Receiver]]]


@dataclass(frozen=True)
class Prepared:
    """`items`: how many of the group are in it. `touched`: by them. `position`: once it is committed. `entry`: for the log;
    None when nothing changed, or no log carries it."""

    position: Position
    items: int = 0
    touched: set[str] = field(default_factory=set)
    entry: Entry | None = None


class Writer:
    """`recorded`: changes go to a replicated log, which is then the durable act; else the local commit is."""

    def __init__(self, path: Path, recorded: bool, runtime: Runtime) -> None:
        self._path, self._recorded, self._runtime = path, recorded, runtime
        self._connection: apsw.Connection | None = None
        self._epoch = 0
        self._clock: TermClock
        self.position = Position()
        self.follower: Follower = lambda _touched: ()

    @property
    def _db(self) -> apsw.Connection:
        assert self._connection is not None, "the store is not open"
        return self._connection

    # ---- opening

    def open(self, known: Sequence[Migration]) -> None:
        """Errors: ConfigError (damaged file, newer schema)."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._connection = apsw.Connection(str(self._path), statementcachesize=STATEMENTS_CACHED)
            self._path.chmod(0o600)
            synchronous = "NORMAL" if self._recorded else "FULL"
            for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", "foreign_keys=ON", "busy_timeout=5000"):
                self._db.execute(f"PRAGMA {pragma}")
            positions.prepare(self._db)
            self.position = positions.read(self._db)
        except apsw.Error as error:
            raise ConfigError(f"{self._path}: {error}") from None
        migrating.check_readable(self.position.schema, self.position.readable_from, known)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def prepare_term(self, epoch: int, clock: TermClock) -> Prepared:
        """The first act of a term."""
        self._epoch, self._clock = epoch, clock
        cluster_id = self.position.cluster_id or self._runtime.new_id()
        with self._undone_on_error():
            self._db.execute("BEGIN IMMEDIATE")
            return self._advance(Kind.BARRIER, cluster_id.encode(), 0, epoch=epoch, cluster_id=cluster_id)

    def prepare_migration(self, migration: Migration) -> Prepared:
        """Errors: ConfigError when the rows that are there do not fit it."""
        self._db.execute("PRAGMA foreign_keys=OFF")  # does nothing within a transaction
        readable_from = max(self.position.readable_from, migration.readable_from)
        with self._undone_on_error():
            self._db.execute("BEGIN IMMEDIATE")
            rows = migrating.apply(self._db, migration)
            if next(iter(self._db.execute("PRAGMA foreign_key_check")), None):
                raise ConfigError(f"migration {migration.number} leaves rows that point nowhere")
            number = migration.number
            return self._advance(Kind.MIGRATION, migration.body(), rows, schema=number, readable_from=readable_from)

    def end_migrations(self) -> None:
        self._db.execute("PRAGMA foreign_keys=ON")

    # ---- a group of transactions

    def write(self, group: list[Item]) -> Prepared:
        """Prepares and commits, where no log comes between. Errors: apsw.Error; nothing is written then."""
        prepared = self.prepare(group)
        self.commit(prepared)
        return prepared

    def prepare(self, group: list[Item]) -> Prepared:
        """Leaves a transaction open, to be ended by `commit` or `rollback`. What follows the group's items is added to it.

        Errors: apsw.Error; nothing is open then.
        """
        with self._undone_on_error():
            self._db.execute("BEGIN IMMEDIATE")
            if self._recorded:
                return self._prepare_recorded(group)
            before, touched = self._db.total_changes(), set[str]()
            for item in group:
                self._run(item, group, touched)
            changed = self._db.total_changes() > before
            position = self._advance(Kind.CHANGES, b"", 0).position if changed else self.position
            return Prepared(position, len(group), touched)

    def _prepare_recorded(self, group: list[Item]) -> Prepared:
        touched: set[str] = set()
        with closing(Recorder(self._db)) as recorder:
            taken = self._run_recorded(group, touched, recorder)
            changeset = recorder.changeset()
        if not changeset:
            return Prepared(self.position, taken, touched)
        prepared = self._advance(Kind.CHANGES, changeset, row_changes(changeset))
        return replace(prepared, items=taken, touched=touched)

    def _run_recorded(self, group: list[Item], touched: set[str], recorder: Recorder) -> int:
        """Stops when the group is large enough; gives how many it has run."""
        for taken, item in enumerate(group, 1):
            self._run(item, group, touched, recorder)
            if recorder.bytes_max > GROUP_BYTES_MAX:
                return taken
        return len(group)

    def _run(self, item: Item, group: list[Item], touched: set[str], recorder: Recorder | None = None) -> None:
        """Errors: as `_run_in_savepoint`."""
        item_touched = self._run_in_savepoint(item, recorder)
        touched |= item_touched
        if item_touched and not item.follows:
            group.extend(Item(fn, Context(), receiver, follows=True) for fn, receiver in self.follower(item_touched))

    def _run_in_savepoint(self, item: Item, recorder: Recorder | None) -> set[str]:
        """Gives what it touched. Errors: of the store itself only; what `fn` raises is the item's."""
        tx = Tx(self._db, self._clock.now_s(), self._epoch, self._runtime)
        self._db.execute("SAVEPOINT item")
        try:
            item.outcome = item.context.run(item.fn, tx)
            tx.check()
            if recorder is not None:
                self._check_size(recorder)
            self._db.execute("RELEASE item")
            return tx.touched
        except STORE_ERRORS:
            raise
        except Exception as error:
            tx.check()
            self._db.execute("ROLLBACK TO item; RELEASE item")
            item.outcome, item.error = None, error
            return set()

    def _check_size(self, recorder: Recorder) -> None:
        """Errors: TooLarge when the entry would be. The transactions before have at most GROUP_BYTES_MAX together."""
        if recorder.bytes_max > ENTRY_BYTES_MAX // 2:
            entry = self._entry(Kind.CHANGES, recorder.changeset(), 0, self.position)
            size = len(encode(entry))
            if size > ENTRY_BYTES_MAX:
                raise TooLarge(f"one transaction changes too much: {size} bytes, {ENTRY_BYTES_MAX} are possible")

    # ---- the end of what was prepared

    def _advance(self, kind: Kind, body: bytes, rows: int, **changes: Any) -> Prepared:
        """Writes the next position into the open transaction."""
        batch = self._runtime.rng.randbytes(BATCH_BYTES) if self._recorded else b""
        now = self._clock.now_s()
        position = replace(self.position, **changes, seq=self.position.seq + 1, batch=batch, now=now)
        positions.write(self._db, position)
        return Prepared(position, entry=self._entry(kind, body, rows, position) if self._recorded else None)

    def _entry(self, kind: Kind, body: bytes, rows: int, at: Position) -> Entry:
        return Entry(at.seq, kind, at.batch, at.epoch, at.schema, rows, body, at.now)

    def commit(self, prepared: Prepared) -> None:
        """Errors: apsw.Error; nothing is written then, unless the file is damaged."""
        with self._undone_on_error():
            self._db.execute("COMMIT")
        self.position = prepared.position

    def rollback(self) -> None:
        """SQLite may have done it by itself."""
        if self._connection is not None and self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.rollback()
            raise
