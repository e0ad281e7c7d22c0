"""Flavors: admins make public ones, members make their project's own."""

from __future__ import annotations

from dataclasses import replace

from controllerd.app.cloud import Cloud, Once, owned
from controllerd.domain.flavor import Flavor
from controllerd.domain.page import Page, PageOf
from controllerd.domain.policy import Caller, authorise
from controllerd.store import event, quota
from controllerd.store.database import Tx
from controllerd.store.flavor import FLAVORS, name_taken, visible
from daemonkit.errors import AlreadyExists, Forbidden


class Flavors:
    def __init__(self, cloud: Cloud) -> None:
        self._db = cloud.database

    async def create(
        self, caller: Caller, name: str, vcpus: int, memory_mib: int, disk_gib: int, description: str, public: bool, once: Once
    ) -> Flavor:
        authorise(caller, "flavor.create")
        if public:
            authorise(caller, "public_resource")
        project_id = "" if public else caller.project_id

        def make(tx: Tx) -> Flavor:
            flavor = Flavor(tx.new_id(), name, project_id, vcpus, memory_mib, disk_gib, description, tx.now)
            if name_taken(tx, project_id, name):
                raise AlreadyExists("flavor", name)
            if not public:
                quota.take(tx, project_id, flavors=1)
            FLAVORS.insert(tx, flavor)
            event.record(tx, "flavor.create", caller.project_id, flavor.id, name)
            return flavor

        return await self._db.write(
            lambda tx: once.run(tx, caller, lambda: make(tx), lambda i: FLAVORS.get(tx, i), lambda f: f.id)
        )

    async def get(self, caller: Caller, flavor_id: str) -> Flavor:
        authorise(caller, "flavor.get")
        return await self._db.read(lambda tx: usable(tx, caller, flavor_id))

    async def list(self, caller: Caller, name: str, page: Page) -> PageOf[Flavor]:
        authorise(caller, "flavor.list")
        return await self._db.read(lambda tx: visible(tx, caller.project_id, name, page))

    async def update(self, caller: Caller, flavor_id: str, **changes: str | int) -> Flavor:
        """`changes`: name, vcpus, memory_mib, disk_gib, description. Running servers keep their size."""
        authorise(caller, "flavor.update")

        def change(tx: Tx) -> Flavor:
            flavor = _changeable(tx, caller, flavor_id)
            changed = replace(flavor, **changes)  # type: ignore[arg-type]
            if changed.name != flavor.name and name_taken(tx, flavor.project_id, changed.name):
                raise AlreadyExists("flavor", changed.name)
            if changes:
                FLAVORS.update(tx, flavor_id, **changes)
                event.record(tx, "flavor.update", caller.project_id, flavor_id)
            return changed

        return await self._db.write(change)

    async def delete(self, caller: Caller, flavor_id: str) -> None:
        authorise(caller, "flavor.delete")

        def remove(tx: Tx) -> None:
            flavor = _changeable(tx, caller, flavor_id)
            FLAVORS.delete(tx, flavor.id)
            event.record(tx, "flavor.delete", caller.project_id, flavor.id, flavor.name)

        await self._db.write(remove)


def usable(tx: Tx, caller: Caller, flavor_id: str) -> Flavor:
    """A public flavor or one of the caller's project. Errors: NotFound."""
    flavor = FLAVORS.get(tx, flavor_id)
    if flavor.project_id:
        owned(caller, "flavor", flavor_id, flavor.project_id)
    return flavor


def _changeable(tx: Tx, caller: Caller, flavor_id: str) -> Flavor:
    flavor = usable(tx, caller, flavor_id)
    if not flavor.project_id and not caller.admin:
        raise Forbidden("a public flavor can be changed by an admin only")
    return flavor
