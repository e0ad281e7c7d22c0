"""Volumes in a scripted world: every operation cut off at every transaction, overtaken, and left by its node."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import pytest

from controllerd.app.cloud import Once
from controllerd.domain.page import Page
from controllerd.domain.policy import Caller
from controllerd.store import quota
from daemonkit.errors import Conflict, Forbidden, InvalidArgument, NotFound, QuotaExceeded, SkyrackError
from tests.controllerd.server.rig import CrashNow
from tests.controllerd.storage.conftest import StorageRig

ANEW = Once("", "", "")
Act = Callable[[], Awaitable[object]]


async def at_every_moment(rig: StorageRig, begin: Act, after: Act, check: Act) -> int:
    """`begin` starts an operation; its world is cut off after 0, 1, 2... transactions, the controller starts anew, `after`
    happens, the world goes on to its rest. Gives how many moments there were."""
    for transactions in count():
        await begin()
        rig.transactions, rig.transactions_max = 0, transactions
        try:
            await rig.run()
            cut = False
        except CrashNow:
            cut = True
        rig.transactions_max = None
        await rig.crash()
        await after()
        await rig.run()
        await check()
        if not cut:
            return transactions
    raise AssertionError


async def nothing() -> None: ...


async def volume_rows(rig: StorageRig) -> list[dict[str, Any]]:
    return await rig.rows("SELECT * FROM volume")


async def clean(rig: StorageRig) -> None:
    assert await volume_rows(rig) == [] and await rig.rows("SELECT * FROM attachment") == []
    assert await rig.rows("SELECT * FROM tombstone") == []
    assert await rig.rows("SELECT * FROM task WHERE state IN ('RUNNING', 'UNWINDING')") == []


async def test_a_create_cut_off_anywhere_ends_available(rig: StorageRig, tenant: Caller) -> None:
    await rig.add_node("k1")

    async def begin() -> None:
        await rig.volumes.create(tenant, "data", 1, "", ANEW)

    async def check() -> None:
        (volume,) = await volume_rows(rig)
        assert (volume["state"], volume["observed_state"]) == ("AVAILABLE", "READY") and volume["node_id"]
        await rig.volumes.delete(tenant, volume["id"])
        await rig.run()
        await clean(rig)

    assert await at_every_moment(rig, begin, nothing, check) >= 3


async def test_deleted_at_every_moment_of_a_create(rig: StorageRig, tenant: Caller) -> None:
    await rig.add_node("k1")

    async def begin() -> None:
        await rig.volumes.create(tenant, "data", 1, "", ANEW)

    async def delete() -> None:
        for row in await volume_rows(rig):
            await rig.volumes.delete(tenant, row["id"])
            await rig.volumes.delete(tenant, row["id"])  # twice is once

    assert await at_every_moment(rig, begin, delete, lambda: clean(rig)) >= 3


async def test_a_node_that_fails_leaves_an_error_that_can_be_deleted(rig: StorageRig, tenant: Caller) -> None:
    await rig.add_node("k1")
    rig.fault = "no space"
    for _ in range(2):
        volume = (await rig.volumes.create(tenant, "data", 1, "", ANEW)).volume
        await rig.run()
        shown = (await rig.volumes.get(tenant, volume.id)).volume
        assert (shown.state, shown.fault_reason, shown.fault_message) == ("ERROR", "STORAGE", "no space") and not shown.node_id
        await rig.volumes.delete(tenant, volume.id)
        await rig.run()
        await clean(rig)


async def test_a_node_lost_during_a_create(rig: StorageRig, tenant: Caller) -> None:
    node = await rig.add_node("k1")
    node.deaf = True
    volume = (await rig.volumes.create(tenant, "data", 1, "", ANEW)).volume
    await rig.run()
    await rig.lose(node)
    await rig.run()
    shown = (await rig.volumes.get(tenant, volume.id)).volume
    assert (shown.state, shown.fault_reason) == ("ERROR", "NODE_LOST")
    assert [t["kind"] for t in await rig.rows("SELECT * FROM tombstone")] == ["volume"]
    await rig.volumes.delete(tenant, volume.id)
    await rig.run()
    assert await volume_rows(rig) == []
    node.deaf = False
    await rig.find_again(node)
    await rig.run()
    await clean(rig)


async def test_a_node_lost_during_a_delete(rig: StorageRig, tenant: Caller) -> None:
    node = await rig.add_node("k1")
    volume_id = await rig.add_volume(tenant)
    node.deaf = True
    await rig.volumes.delete(tenant, volume_id)
    await rig.run()
    assert (await rig.volumes.get(tenant, volume_id)).volume.state == "DELETING"
    await rig.lose(node)
    await rig.run()
    with pytest.raises(NotFound):
        await rig.volumes.get(tenant, volume_id)
    node.deaf = False
    await rig.find_again(node)
    await rig.run()
    await clean(rig)


async def equipped(rig: StorageRig, tenant: Caller) -> tuple[str, str]:
    """A running server and a free volume."""
    flavor, image = await rig.equip(tenant)
    server = await rig.create(tenant, flavor, image)
    await rig.run()
    volume_id = await rig.add_volume(tenant)
    return server.server.id, volume_id


async def attachments(rig: StorageRig) -> list[tuple[str, bool, bool]]:
    rows = await rig.rows("SELECT * FROM attachment")
    return [(r["state"], bool(r["exported"]), bool(r["connected"])) for r in rows]


async def test_attach_and_detach_cut_off_anywhere(rig: StorageRig, tenant: Caller) -> None:
    server_id, volume_id = await equipped(rig, tenant)

    async def attached() -> None:
        assert await attachments(rig) == [("ATTACHED", True, True)]
        await rig.volumes.detach(tenant, server_id, volume_id)
        await rig.volumes.detach(tenant, server_id, volume_id)
        await rig.run()
        assert await attachments(rig) == []

    assert await at_every_moment(rig, lambda: rig.volumes.attach(tenant, server_id, volume_id, ANEW), nothing, attached) >= 4

    async def detach() -> None:
        await rig.volumes.attach(tenant, server_id, volume_id, ANEW)
        await rig.run()
        await rig.volumes.detach(tenant, server_id, volume_id)

    async def detached() -> None:
        assert await attachments(rig) == [] and (await rig.volumes.get(tenant, volume_id)).volume.state == "AVAILABLE"

    assert await at_every_moment(rig, detach, nothing, detached) >= 3


async def test_the_server_deleted_at_every_moment_of_an_attach(rig: StorageRig, tenant: Caller) -> None:
    flavor, image = await rig.equip(tenant)
    volume_id = await rig.add_volume(tenant)
    servers: list[str] = []

    async def begin() -> None:
        server = await rig.create(tenant, flavor, image)
        await rig.run()
        servers.append(server.server.id)
        await rig.volumes.attach(tenant, server.server.id, volume_id, ANEW)

    async def delete() -> None:
        await rig.servers.delete(tenant, servers[-1])

    async def check() -> None:
        assert await rig.server(servers[-1]) is None and await attachments(rig) == []
        view = await rig.volumes.get(tenant, volume_id)
        assert view.volume.state == "AVAILABLE" and view.task_id == ""

    assert await at_every_moment(rig, begin, delete, check) >= 4


async def test_an_attach_that_nobody_answers_unwinds(rig: StorageRig, tenant: Caller) -> None:
    server_id, volume_id = await equipped(rig, tenant)
    for node in rig.nodes.values():
        node.deaf = True
    await rig.volumes.attach(tenant, server_id, volume_id, ANEW)
    await rig.run()
    assert await attachments(rig) == [("ATTACHING", True, False)]
    rig.clock.forward(61)
    await rig.run()
    assert await attachments(rig) == []
    await rig.volumes.attach(tenant, server_id, volume_id, ANEW)
    for node in rig.nodes.values():
        node.deaf = False
    await rig.run()
    assert await attachments(rig) == [("ATTACHED", True, True)]


async def test_a_guest_that_keeps_its_disk_has_it_whole(rig: StorageRig, tenant: Caller) -> None:
    server_id, volume_id = await equipped(rig, tenant)
    await rig.volumes.attach(tenant, server_id, volume_id, ANEW)
    await rig.run()
    for node in rig.nodes.values():
        node.deaf = True
    await rig.volumes.detach(tenant, server_id, volume_id)
    await rig.run()
    assert await attachments(rig) == [("DETACHING", True, False)]
    rig.clock.forward(61)
    await rig.run()
    assert await attachments(rig) == [("ATTACHED", True, True)]


async def test_fifty_attach_one_volume(rig: StorageRig, tenant: Caller) -> None:
    flavor, image = await rig.equip(tenant)
    servers = [(await rig.create(tenant, flavor, image, name=f"s{n}")).server.id for n in range(2)]
    await rig.run()
    volume_id = await rig.add_volume(tenant)
    tried = [rig.volumes.attach(tenant, servers[n % 2], volume_id, ANEW) for n in range(50)]
    results = await asyncio.gather(*tried, return_exceptions=True)
    assert sum(not isinstance(r, SkyrackError) for r in results) == 1
    assert all(isinstance(r, Conflict) for r in results if isinstance(r, BaseException))
    await rig.run()
    assert await attachments(rig) == [("ATTACHED", True, True)]
    with pytest.raises(Conflict, match="detach it first"):
        await rig.volumes.delete(tenant, volume_id)


async def test_fifty_create_where_ten_are_allowed(rig: StorageRig, tenant: Caller) -> None:
    await rig.add_node("k1")
    results = await asyncio.gather(
        *(rig.volumes.create(tenant, f"v{n}", 1, "", ANEW) for n in range(50)), return_exceptions=True
    )
    assert sum(isinstance(r, QuotaExceeded) for r in results) == 40
    assert len((await rig.volumes.list(tenant, "", False, Page())).items) == 10
    assert (await rig.database.read(lambda tx: quota.used(tx, tenant.project_id, "volumes", "volume_gib"))) == {
        "volumes": 10, "volume_gib": 10,
    }  # fmt: skip
    once = [rig.volumes.create(tenant, "v0", 1, "", Once("k", "m", "f")) for _ in range(20)]
    assert all(isinstance(r, QuotaExceeded) for r in await asyncio.gather(*once, return_exceptions=True))
    await rig.run()
    for view in (await rig.volumes.list(tenant, "", False, Page())).items:
        await rig.volumes.delete(tenant, view.volume.id)
    await rig.run()
    once = [rig.volumes.create(tenant, "v0", 1, "", Once("k", "m", "f")) for _ in range(20)]
    assert len({view.volume.id for view in await asyncio.gather(*once)}) == 1


async def test_others_volumes_do_not_exist(rig: StorageRig, tenant: Caller, stranger: Caller, operator: Caller) -> None:
    server_id, volume_id = await equipped(rig, tenant)
    for act in (
        rig.volumes.get(stranger, volume_id), rig.volumes.rename(stranger, volume_id, "x"),
        rig.volumes.delete(stranger, volume_id), rig.volumes.attach(stranger, server_id, volume_id, ANEW),
        rig.volumes.detach(stranger, server_id, volume_id), rig.volumes.detach(tenant, server_id, volume_id),
    ):  # fmt: skip
        with pytest.raises(NotFound):
            await act
    with pytest.raises(Forbidden):
        await rig.volumes.list(stranger, "", True, Page())
    theirs = (await rig.volumes.create(stranger, "theirs", 1, "", ANEW)).volume.id
    await rig.run()
    with pytest.raises(NotFound):  # an admin sees both, and still may not join them
        await rig.volumes.attach(operator, server_id, theirs, ANEW)
    assert {v.volume.id for v in (await rig.volumes.list(operator, "", True, Page())).items} == {volume_id, theirs}
    assert (await rig.volumes.get(operator, volume_id)).node_name and not (await rig.volumes.get(tenant, volume_id)).node_name


async def test_what_a_volume_refuses(rig: StorageRig, tenant: Caller) -> None:
    await rig.add_node("k1")
    image = await rig.add_image(tenant, virtual_bytes=3 << 30, min_disk_gib=5)
    for name, size, image_id, field in (("", 1, "", "name"), ("a\n", 1, "", "name"), ("a", 0, "", "size_gib"),
                                        ("a", 99999, "", "size_gib"), ("a", 4, image.id, "size_gib")):  # fmt: skip
        with pytest.raises(InvalidArgument) as refused:
            await rig.volumes.create(tenant, name, size, image_id, ANEW)
        assert refused.value.field == field
    with pytest.raises(NotFound):
        await rig.volumes.create(tenant, "a", 1, "no such image", ANEW)
    big = (await rig.volumes.create(tenant, "a", 101, "", ANEW)).volume
    await rig.run()
    shown = (await rig.volumes.get(tenant, big.id)).volume
    assert shown.fault_reason == "NO_VALID_HOST" and "lacks 1 GiB" in shown.fault_message
