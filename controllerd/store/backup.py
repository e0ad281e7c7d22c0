"""A backup file: the whole state as one SQLite file, what a blank machine needs besides, and a hash of it all inside.

Besides the tables of the state there is `_backup` (name, value): what the file is, the files of the certificate authorities,
and the seal: a random mark followed by the sha256 of the whole file, taken with zeros in the place of that hash. So every byte
of the file is covered, wherever SQLite put it. Whoever has the file has the cloud.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import apsw

from controllerd.store import migration, position
from daemonkit.errors import ConfigError

FORMAT = 1
APPLICATION_ID = 0x534B5242  # "SKRB", in the header of the file
MARK_BYTES, HASH_BYTES = 16, 32
CHUNK_BYTES = 1 << 20
_FILE = "file:"


@dataclass(frozen=True)
class About:
    """`taken_at`: wall time in seconds. `version`: of the software. `files`: name -> content, see `controllerd.certificate`."""

    cluster_id: str
    epoch: int
    seq: int
    schema: int
    taken_at: float
    version: str
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)


def seal(path: Path, taken_at: float, version: str, files: Mapping[str, bytes], mark: bytes) -> About:
    """Makes a backup of a snapshot, in place. `mark`: random. Errors: apsw.Error, OSError."""
    connection = apsw.Connection(str(path))
    try:
        connection.execute("PRAGMA journal_mode=DELETE")
        at = position.read(connection)
        about = About(at.cluster_id, at.epoch, at.seq, at.schema, taken_at, version, files)
        told = {"format": FORMAT, **{k: v for k, v in vars(about).items() if k != "files"}}
        rows = {"about": json.dumps(told).encode(), "seal": mark + bytes(HASH_BYTES)}
        rows |= {_FILE + name: content for name, content in files.items()}
        with connection:
            connection.execute("CREATE TABLE _backup (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
            connection.executemany("INSERT INTO _backup VALUES (?, ?)", rows.items())
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    finally:
        connection.close()
    _write_hash(path, mark)
    return about


def _write_hash(path: Path, mark: bytes) -> None:
    with path.open("r+b") as file:
        place = _place(file, mark)
        digest = _hash(file, place)
        file.seek(place)
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> About:
    """Looks the whole file through. Errors: ConfigError: damaged, no backup, or of newer software."""
    try:
        rows = _rows(path)
        told = json.loads(rows["about"])
        if told.pop("format") != FORMAT:
            raise ConfigError(f"{path}: a backup in a format that this software does not know: install the newer one")
        _check_hash(path, rows["seal"])
        files = {name.removeprefix(_FILE): value for name, value in rows.items() if name.startswith(_FILE)}
        about = About(**told, files=files)
    except (apsw.CantOpenError, OSError) as error:
        raise ConfigError(f"{path}: {error}") from None
    except (apsw.Error, KeyError, ValueError, TypeError):
        raise ConfigError(f"{path} is not a backup of a cloud, or it is damaged") from None
    if about.schema > (known := migration.newest(migration.migrations())):
        raise ConfigError(f"{path} has schema {about.schema}, this software knows {known}: install the newer one")
    return about


def _rows(path: Path) -> dict[str, bytes]:
    """Errors: apsw.Error, ConfigError."""
    connection = apsw.Connection(f"{path.resolve().as_uri()}?mode=ro&immutable=1", flags=_READ)
    try:
        if next(iter(connection.execute("PRAGMA application_id")))[0] != APPLICATION_ID:
            raise ConfigError(f"{path} is a database, but not a backup of a cloud")
        return dict(iter(connection.execute("SELECT name, value FROM _backup")))
    finally:
        connection.close()


_READ = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI


def _check_hash(path: Path, stored: bytes) -> None:
    """Errors: ConfigError."""
    mark, digest = stored[:MARK_BYTES], stored[MARK_BYTES:]
    with path.open("rb") as file:
        if len(digest) != HASH_BYTES or _hash(file, _place(file, mark)) != digest:
            raise ConfigError(f"{path} is damaged: its content does not have the hash that it had when it was made")


def _place(file: BinaryIO, mark: bytes) -> int:
    """Where the hash is: right after the only copy of the mark. Errors: ValueError."""
    found, before = [], b""
    for at, chunk in _chunks(file):
        window = before + chunk
        start = window.find(mark)
        if start >= 0:
            found.append(at - len(before) + start)
        before = window[-(len(mark) - 1) :]
    if len(found) != 1:
        raise ValueError("the seal is not where it should be")
    return found[0] + len(mark)


def _hash(file: BinaryIO, place: int) -> bytes:
    """sha256 of the file with zeros from `place` on for the length of a hash."""
    digest = hashlib.sha256()
    for at, chunk in _chunks(file):
        first, last = max(place, at), min(place + HASH_BYTES, at + len(chunk))
        if first < last:
            chunk = chunk[: first - at] + bytes(last - first) + chunk[last - at :]
        digest.update(chunk)
    return digest.digest()


def _chunks(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) from the beginning: small enough that other threads get their turn."""
    file.seek(0)
    at = 0
    while chunk := file.read(CHUNK_BYTES):
        yield at, chunk
        at += len(chunk)
