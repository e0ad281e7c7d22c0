"""Idempotency keys: a retried create gives what the first one made."""

from __future__ import annotations

from controllerd.store.database import Tx

KEPT_S = 24 * 3600.0


def find(tx: Tx, project_id: str, user_id: str, key: str) -> tuple[str, str, str] | None:
    """(method, fingerprint, resource id) of the first request with this key."""
    sql = "SELECT method, fingerprint, resource_id FROM idempotency WHERE project_id = ? AND user_id = ? AND key = ?"
    row = tx.one(sql, project_id, user_id, key)
    return None if row is None else (row["method"], row["fingerprint"], row["resource_id"])


def remember(tx: Tx, project_id: str, user_id: str, key: str, method: str, fingerprint: str, resource_id: str) -> None:
    columns = "project_id, user_id, key, method, fingerprint, resource_id, created_at"
    tx.run(f"INSERT INTO idempotency ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)",
           project_id, user_id, key, method, fingerprint, resource_id, tx.now)  # fmt: skip


def forget_old(tx: Tx, batch_max: int) -> int:
    among = "SELECT project_id, user_id, key FROM idempotency WHERE created_at < ? LIMIT ?"
    return tx.run(f"DELETE FROM idempotency WHERE (project_id, user_id, key) IN ({among})", tx.now - KEPT_S, batch_max)
