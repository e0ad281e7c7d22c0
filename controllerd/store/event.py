"""The event log: written in the transaction that does the thing, never changed after."""

from __future__ import annotations

import json
from contextvars import ContextVar

from controllerd.domain.event import Event
from controllerd.store.database import Row, Tx
from daemonkit.log import request_id

acting_user: ContextVar[str] = ContextVar("acting_user", default="")
_COLUMNS = ", ".join(Event.__dataclass_fields__)
EVENTS = "events"  # touched with every event: watchers subscribe to it


def record(tx: Tx, kind: str, project_id: str, resource_id: str, message: str = "", **data: str) -> None:
    """`kind` is "noun.what"; the noun is the resource's kind. Request id and user come with the transaction's context."""
    record_at(tx, tx.now, kind, project_id, resource_id, message, **data)


def record_at(tx: Tx, time: float, kind: str, project_id: str, resource_id: str, message: str = "", **data: str) -> None:
    """As `record`, for what happened at another time than now."""
    tx.run(
        "INSERT INTO event (time, kind, project_id, resource_kind, resource_id, message, request_id, user_id, data)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        time, kind, project_id, kind.partition(".")[0], resource_id, message, request_id.get(), acting_user.get(),
        json.dumps(data),
    )  # fmt: skip
    tx.touch(EVENTS)


def of(row: Row) -> Event:
    return Event(**{**row, "data": json.loads(row["data"])})


def newest(tx: Tx, before_seq: int, limit: int, **equal: str) -> list[Event]:
    """Events below `before_seq`, newest first; `equal`: column = value."""
    conditions = "".join(f" AND {column} = ?" for column in equal)
    sql = f"SELECT {_COLUMNS} FROM event WHERE seq < ?{conditions} ORDER BY seq DESC LIMIT ?"
    return [of(row) for row in tx.each(sql, before_seq, *equal.values(), limit)]


def after(tx: Tx, seq: int, limit: int, **equal: str) -> list[Event]:
    conditions = "".join(f" AND {column} = ?" for column in equal)
    sql = f"SELECT {_COLUMNS} FROM event WHERE seq > ?{conditions} ORDER BY seq LIMIT ?"
    return [of(row) for row in tx.each(sql, seq, *equal.values(), limit)]


def last_seq(tx: Tx) -> int:
    return int(tx.value("SELECT coalesce(max(seq), 0) FROM event"))


def last_of(tx: Tx, resource_id: str, *kinds: str) -> str:
    """Which of these kinds the resource had last, "" = none of them."""
    marks = ", ".join("?" * len(kinds))
    sql = f"SELECT kind FROM event WHERE resource_id = ? AND kind IN ({marks}) ORDER BY seq DESC LIMIT 1"
    return str(tx.value(sql, resource_id, *kinds) or "")


def times_of(tx: Tx, resource_id: str, kind_prefix: str) -> list[tuple[str, float]]:
    """(kind, time) of a resource's events whose kind starts so, in order."""
    sql = "SELECT kind, time FROM event WHERE resource_id = ? AND kind GLOB ? ORDER BY seq"
    return [(row["kind"], row["time"]) for row in tx.each(sql, resource_id, kind_prefix + "*")]


def forget_oldest(tx: Tx, kept: int, batch_max: int) -> int:
    """Deletes up to `batch_max` of the oldest beyond the newest `kept`."""
    first_kept = last_seq(tx) - kept + 1
    oldest = int(tx.value("SELECT coalesce(min(seq), 0) FROM event"))
    return tx.run("DELETE FROM event WHERE seq < ?", min(first_kept, oldest + batch_max)) if oldest < first_kept else 0
