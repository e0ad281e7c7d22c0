"""Keypairs in the store."""

from __future__ import annotations

from controllerd.domain.keypair import Keypair
from controllerd.store.database import Tx
from controllerd.store.table import Table

KEYPAIRS = Table(Keypair, "keypair", "keypair")


def find(tx: Tx, user_id: str, name: str) -> Keypair | None:
    found = KEYPAIRS.where(tx, "user_id = ? AND name = ?", user_id, name)
    return found[0] if found else None


def count(tx: Tx, user_id: str) -> int:
    return int(tx.value("SELECT count(*) FROM keypair WHERE user_id = ?", user_id))
