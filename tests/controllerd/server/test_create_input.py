"""What a create refuses, and that a refusal leaves nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controllerd.app.cloud import Once
from controllerd.app.port import NewPort, Ports
from controllerd.app.server import NewServer, Wish
from controllerd.domain.page import Page
from controllerd.domain.policy import Caller
from controllerd.store import quota
from controllerd.store.database import Tx
from controllerd.store.keypair import KEYPAIRS
from daemonkit.errors import Conflict, Forbidden, InvalidArgument, NotFound, QuotaExceeded
from tests.controllerd.server.rig import ANEW, Rig


async def refused(rig: Rig, caller: Caller, new: NewServer, error: type[Exception]) -> Exception:
    tables = ("server", "port", "attachment", "task", "claim", "event")
    before = {t: await rig.rows(f"SELECT * FROM {t}") for t in tables}
    with pytest.raises(error) as caught:
        await rig.servers.create(caller, new, ANEW)
    assert {t: await rig.rows(f"SELECT * FROM {t}") for t in tables} == before
    return caught.value


async def test_bad_fields_are_named(rig: Rig, tenant: Caller) -> None:
    flavor, image = await rig.equip(tenant)
    good = NewServer("web", flavor.id, image.id)
    network = (await rig.rows("SELECT id FROM network WHERE name = 'private'"))[0]["id"]
    for change, field in (
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 256}, "name"),
        ({"name": " x"}, "name"),
        ({"name": "evil\u202egnp"}, "name"),
        ({"user_data": b"x" * 65537}, "user_data"),
        ({"metadata": {"k": "v" * 256}}, "metadata"),
        ({"metadata": {"": "v"}}, "metadata"),
        ({"metadata": {str(n): "v" for n in range(129)}}, "metadata"),
        ({"networks": (Wish(),)}, "networks"),
        ({"networks": (Wish(network, "also a port"),)}, "networks"),
        ({"networks": tuple(Wish(network) for _ in range(9))}, "networks"),
        ({"networks": (Wish(network, fixed_ip="10.2.0.1"),)}, "fixed_ips"),
        ({"networks": (Wish(network, fixed_ip="no address"),)}, "fixed_ips"),
        ({"volume_ids": ("a", "a")}, "volume_ids"),
        ({"volume_ids": tuple(str(n) for n in range(9))}, "volume_ids"),
    ):
        error = await refused(rig, tenant, replace(good, **change), InvalidArgument)
        assert error.field == field, change


async def test_unknown_and_foreign_things_are_not_found(rig: Rig, tenant: Caller, stranger: Caller) -> None:
    flavor, image = await rig.equip(tenant)
    await rig.add_network(stranger, name="theirs")
    [theirs] = await rig.rows("SELECT id FROM network WHERE name = 'theirs'")
    port = await Ports(rig.cloud).create(stranger, NewPort(theirs["id"]), ANEW)
    volume_id = await rig.add_volume(stranger)
    private = await rig.add_image(stranger, public=False)
    foreign = (await rig.servers.create(stranger, NewServer("web", flavor.id, image.id), ANEW)).server.id
    good = NewServer(
        "web", flavor.id, image.id, networks=(Wish((await rig.rows("SELECT id FROM network WHERE name = 'private'"))[0]["id"]),)
    )
    for change, kind in (
        ({"flavor_id": "nothing"}, "flavor"),
        ({"image_id": private.id}, "image"),
        ({"keypair_name": "nobody's"}, "keypair"),
        ({"networks": (Wish(theirs["id"]),)}, "network"),
        ({"networks": (Wish(port_id=port.port.id),)}, "port"),
        ({"volume_ids": (volume_id,)}, "volume"),
        ({"different_node_than": foreign}, "server"),
    ):
        error = await refused(rig, tenant, replace(good, **change), NotFound)
        assert error.metadata["kind"] == kind, change
    with pytest.raises(NotFound):
        await rig.servers.get(tenant, foreign)
    for verb in (rig.servers.delete, rig.servers.stop, rig.servers.start):
        with pytest.raises(NotFound):
            await verb(tenant, foreign)
    assert not (await rig.servers.list(tenant, "", "", False, Page())).items
    with pytest.raises(Forbidden):
        await rig.servers.list(tenant, "", "", True, Page())


async def test_an_image_that_does_not_fit(rig: Rig, tenant: Caller) -> None:
    flavor, _image = await rig.equip(tenant)
    for changes, words in (
        ({"virtual_bytes": (1 << 30) + 1}, "2 GiB"),
        ({"min_disk_gib": 3}, "3 GiB"),
        ({"min_memory_mib": 1024}, "1024 MiB"),
    ):
        big = await rig.add_image(tenant, **changes)
        error = await refused(rig, tenant, NewServer("web", flavor.id, big.id), InvalidArgument)
        assert error.field == "flavor_id" and words in error.message
    queued = await rig.add_image(tenant, state="QUEUED")
    await refused(rig, tenant, NewServer("web", flavor.id, queued.id), Conflict)


async def test_without_a_network_named(rig: Rig, tenant: Caller) -> None:
    flavor, image = await rig.equip(tenant)
    await rig.add_network(tenant, "10.9.0.0/24", name="second")
    error = await refused(rig, tenant, NewServer("web", flavor.id, image.id), InvalidArgument)
    assert error.field == "networks" and "private" in error.message and "second" in error.message
    await rig.database.write(lambda tx: tx.run("UPDATE network SET project_id = 'x'"))
    error = await refused(rig, tenant, NewServer("web", flavor.id, image.id), InvalidArgument)
    assert "no network yet" in error.message


async def test_quotas_of_everything_it_takes(rig: Rig, tenant: Caller) -> None:
    flavor, image = await rig.equip(tenant)
    for resource in ("servers", "vcpus", "memory_mib", "ports"):

        def limit(tx: Tx, resource: str = resource) -> None:
            tx.run("DELETE FROM quota_limit")
            quota.set_limit(tx, tenant.project_id, resource, 0)

        await rig.database.write(limit)
        error = await refused(rig, tenant, NewServer("web", flavor.id, image.id), QuotaExceeded)
        assert error.metadata["resource"] == resource


async def test_placement_hints(rig: Rig, tenant: Caller, operator: Caller) -> None:
    flavor, image = await rig.equip(tenant)
    with pytest.raises(Forbidden):
        await rig.create(tenant, flavor, image, node="k1")
    network = Wish((await rig.rows("SELECT id FROM network WHERE name = 'private'"))[0]["id"])
    await rig.database.write(lambda tx: tx.run("UPDATE network SET shared = 1"))
    on_k2 = await rig.create(operator, flavor, image, node="k2", networks=(network,))
    first = await rig.create(tenant, flavor, image)
    apart = await rig.create(tenant, flavor, image, different_node_than=first.server.id)
    lonely = await rig.create(tenant, flavor, image, different_node_than=apart.server.id)
    await rig.run()
    nodes = {row["id"]: row["node_id"] for row in await rig.rows("SELECT id, node_id FROM server")}
    assert nodes[first.server.id] != nodes[apart.server.id] != nodes[lonely.server.id]
    assert (await rig.servers.get(operator, on_k2.server.id)).node_name == "k2"
    assert (await rig.servers.get(tenant, first.server.id)).node_name == ""


async def test_no_valid_host_tells_tenants_counts_and_admins_names(rig: Rig, tenant: Caller, operator: Caller) -> None:
    flavor, image = await rig.equip(tenant, memory_mib=4352)
    volume_id = await rig.add_volume(tenant)
    view = await rig.create(tenant, flavor, image, volume_ids=(volume_id,))
    await rig.run()
    seen = await rig.servers.get(tenant, view.server.id)
    assert (seen.state, seen.server.fault_reason, seen.attachments) == ("ERROR", "NO_VALID_HOST", ())
    assert list(seen.fault_details) == ["memory: 2 of 2 nodes; closest miss lacks 256 MiB"]
    told = repr(await rig.rows("SELECT * FROM event WHERE project_id != ''")) + repr(await rig.rows("SELECT * FROM task"))
    assert "k1" not in told + seen.server.fault_message
    seen = await rig.servers.get(operator, view.server.id)
    assert list(seen.fault_details) == ["memory: 2 of 2 nodes; closest miss k1 lacks 256 MiB"]
    await rig.servers.delete(tenant, view.server.id)
    await rig.run()
    assert await rig.leftovers() == {}


async def test_nodes_that_are_away_for_a_moment_are_waited_for(rig: Rig, tenant: Caller) -> None:
    flavor, image = await rig.equip(tenant)
    await rig.database.write(lambda tx: tx.run("UPDATE agent SET connected = 0"))  # as after a controller's start
    for node in rig.nodes.values():
        node.away = True
    view = await rig.create(tenant, flavor, image)
    await rig.advance()
    assert (await rig.servers.get(tenant, view.server.id)).state == "BUILD"
    for node in rig.nodes.values():
        await rig.find_again(node)
    await rig.run()
    assert (await rig.servers.get(tenant, view.server.id)).state == "ACTIVE"


async def test_a_retry_makes_one_server(rig: Rig, tenant: Caller) -> None:
    flavor, image = await rig.equip(tenant)
    once = Once("key", "CreateServerRequest", "f")
    first = await rig.servers.create(tenant, NewServer("web", flavor.id, image.id), once)
    again = await rig.servers.create(tenant, NewServer("web", flavor.id, image.id), once)
    assert first.server == again.server and len(await rig.rows("SELECT * FROM server")) == 1


async def test_an_existing_port_and_a_keypair(rig: Rig, tenant: Caller) -> None:
    from controllerd.domain.keypair import Keypair

    flavor, image = await rig.equip(tenant)
    network = (await rig.rows("SELECT id FROM network WHERE name = 'private'"))[0]["id"]
    port = await Ports(rig.cloud).create(tenant, NewPort(network, fixed_ips=(("", "10.1.0.77"),)), ANEW)
    key = Keypair(rig.runtime.new_id(), tenant.user_id, "mine", "ssh-ed25519 AAAA me", "f", rig.clock.now_s)
    await rig.database.write(lambda tx: KEYPAIRS.insert(tx, key))
    view = await rig.create(tenant, flavor, image, networks=(Wish(port_id=port.port.id), Wish(network)), keypair_name="mine")
    await rig.run()
    assert [a.ip for a in (await rig.servers.get(tenant, view.server.id)).addresses] == ["10.1.0.77", "10.1.0.3"]
    assert (await rig.server(view.server.id)).public_key == key.public_key
    await rig.servers.delete(tenant, view.server.id)
    await rig.run()
    [left] = await rig.rows("SELECT id, server_id, node_id, purpose FROM port WHERE purpose IN ('', 'server')")
    assert left == {"id": port.port.id, "server_id": "", "node_id": "", "purpose": ""}


async def test_update(rig: Rig, tenant: Caller) -> None:
    flavor, image = await rig.equip(tenant)
    view = await rig.create(tenant, flavor, image, metadata={"a": "1"})
    await rig.run()
    rig.touched.clear()
    changed = await rig.servers.update(tenant, view.server.id, name="new", metadata={"b": "2"})
    assert (changed.server.name, changed.server.metadata) == ("new", {"b": "2"})
    assert (await rig.server(view.server.id)).node_id in rig.touched  # its host name and metadata are told there
    with pytest.raises(InvalidArgument):
        await rig.servers.update(tenant, view.server.id, name="\x00")
    assert (await rig.server(view.server.id)).name == "new"


async def test_console_log(rig: Rig, tenant: Caller, stranger: Caller) -> None:
    flavor, image = await rig.equip(tenant)
    view = await rig.create(tenant, flavor, image)
    with pytest.raises(Conflict):
        await rig.servers.console_log(tenant, view.server.id, 0)
    await rig.run()
    assert await rig.servers.console_log(tenant, view.server.id, 0) == f"{view.server.id} 65536".encode()
    with pytest.raises(InvalidArgument):
        await rig.servers.console_log(tenant, view.server.id, 2 << 20)
    with pytest.raises(NotFound):
        await rig.servers.console_log(stranger, view.server.id, 0)
