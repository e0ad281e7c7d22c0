"""An entry of the replicated log: what one commit group changed, and enough around it to notice when it does not fit.

On the wire: a fixed head (version, kind, batch id, epoch, schema, row changes, time), then the body, compressed. The slot in
the log (its seq) is the key under which it is stored.
"""

from __future__ import annotations

import enum
import struct
import zlib
from dataclasses import dataclass

from daemonkit.errors import SkyrackError

VERSION = 1
BATCH_BYTES = 16
_HEAD = struct.Struct(f">BB{BATCH_BYTES}sQIId")


class Diverged(SkyrackError):
    """This copy of the state and the log do not fit together. The process must not go on with it."""

    reason = "DIVERGED"


class Unusable(Diverged):
    """What came is not for this copy, or not for this software. Nothing says that the copy itself is wrong."""


class Kind(enum.IntEnum):
    CHANGES = 1  # body: a changeset of SQLite's session extension
    BARRIER = 2  # the first entry of an epoch; body: the id of the cloud whose log this is
    MIGRATION = 3  # body: see store/migration.py; `schema` is the number after it


@dataclass(frozen=True)
class Entry:
    """`batch`: random, tells one's own entry from another's in the same slot. `rows`: row changes that the body makes.
    `schema`: number of the schema that the body fits. `now`: the newest time that a transaction in it saw, in seconds since
    1970; the next leader's time does not go back before it."""

    seq: int
    kind: Kind
    batch: bytes
    epoch: int
    schema: int
    rows: int
    body: bytes
    now: float = 0.0


def encode(entry: Entry) -> bytes:
    """What is stored in the slot `entry.seq`."""
    head = _HEAD.pack(VERSION, entry.kind, entry.batch, entry.epoch, entry.schema, entry.rows, entry.now)
    return head + zlib.compress(entry.body, 1)


def decode(seq: int, stored: bytes) -> Entry:
    """Errors: Unusable for what this software cannot read."""
    try:
        version, kind, batch, epoch, schema, rows, now = _HEAD.unpack_from(stored)
        if version != VERSION:
            raise Unusable(f"log entry {seq} has version {version}, this software reads {VERSION}: install the newer one")
        return Entry(seq, Kind(kind), batch, epoch, schema, rows, zlib.decompress(stored[_HEAD.size :]), now)
    except (struct.error, ValueError, zlib.error) as error:
        raise Unusable(f"log entry {seq} is not readable: {error}") from None
