"""Keypairs: a user's own, whatever the project."""

from __future__ import annotations

from controllerd.app.cloud import Cloud, Once
from controllerd.domain.keypair import Keypair, parse_public_key
from controllerd.domain.page import Page, PageOf
from controllerd.domain.policy import Caller, authorise
from controllerd.store import event
from controllerd.store.database import Tx
from controllerd.store.keypair import KEYPAIRS, count, find
from controllerd.store.table import like_name
from daemonkit.errors import AlreadyExists, NotFound, QuotaExceeded

PER_USER_MAX = 100


class Keypairs:
    def __init__(self, cloud: Cloud) -> None:
        self._db = cloud.database

    async def create(self, caller: Caller, name: str, public_key: str, once: Once) -> Keypair:
        authorise(caller, "keypair.create")
        line, fingerprint = parse_public_key("public_key", public_key)

        def make(tx: Tx) -> Keypair:
            keypair = Keypair(tx.new_id(), caller.user_id, name, line, fingerprint, tx.now)
            if find(tx, caller.user_id, name):
                raise AlreadyExists("keypair", name)
            if count(tx, caller.user_id) >= PER_USER_MAX:
                raise QuotaExceeded("keypairs", PER_USER_MAX, PER_USER_MAX, 1)
            KEYPAIRS.insert(tx, keypair)
            event.record(tx, "keypair.create", caller.project_id, keypair.id, name)
            return keypair

        return await self._db.write(
            lambda tx: once.run(tx, caller, lambda: make(tx), lambda i: KEYPAIRS.get(tx, i), lambda k: k.id)
        )

    async def get(self, caller: Caller, keypair_id: str) -> Keypair:
        authorise(caller, "keypair.get")
        return await self._db.read(lambda tx: _own(tx, caller, keypair_id))

    async def list(self, caller: Caller, name: str, page: Page) -> PageOf[Keypair]:
        authorise(caller, "keypair.list")
        condition, values = like_name(name)
        return await self._db.read(lambda tx: KEYPAIRS.page(tx, page, f"user_id = ? AND {condition}", caller.user_id, *values))

    async def delete(self, caller: Caller, keypair_id: str) -> None:
        authorise(caller, "keypair.delete")

        def remove(tx: Tx) -> None:
            keypair = _own(tx, caller, keypair_id)
            KEYPAIRS.delete(tx, keypair.id)
            event.record(tx, "keypair.delete", caller.project_id, keypair.id, keypair.name)

        await self._db.write(remove)


def _own(tx: Tx, caller: Caller, keypair_id: str) -> Keypair:
    keypair = KEYPAIRS.get(tx, keypair_id)
    if keypair.user_id != caller.user_id:
        raise NotFound("keypair", keypair_id)
    return keypair
