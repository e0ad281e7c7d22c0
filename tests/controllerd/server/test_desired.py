"""What compute nodes are told."""

from __future__ import annotations

from google.protobuf import text_format

from controllerd.agents.desired.compute import compile_compute
from controllerd.agents.desired.metadata import Metadata
from controllerd.app.cloud import Once
from controllerd.domain.policy import Caller
from controllerd.domain.server import hostname
from controllerd.store import node as node_store
from skyrack.v1 import agent_pb2 as pb
from tests.controllerd.server.rig import Rig

GOLDEN = """\
name: "Web 1"
project_id: "PROJECT"
vcpus: 1
memory_mib: 512
root_disk_gib: 1
image {
  image_id: "IMAGE"
  sha256: "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
  size_bytes: 1048576
  format: "qcow2"
  virtual_bytes: 67108864
  sources: "10.0.0.9:7730"
}
interfaces {
  port_id: "PORT"
  device: "DEVICE"
  mac: "MAC"
  mtu: 1450
}
disks {
  attachment_id: "ATTACHMENT"
  volume_id: "VOLUME"
  target: "vdb"
  nbd_host: "10.0.0.9"
  nbd_port: 10809
  export_name: "EXPORT"
}
power: POWER_RUNNING
metadata {
  server_id: "SERVER"
  name: "Web 1"
  hostname: "web-1"
  project_id: "PROJECT"
  availability_zone: "nova"
  meta {
    key: "role"
    value: "db"
  }
  user_data: "#!/bin/sh"
  flavor: "m512"
  image_id: "IMAGE"
}
config_drive: true
"""


async def told(rig: Rig, node_id: str) -> dict[str, pb.ServerSpec]:
    return {o.id: o.server for o in await rig.database.read(lambda tx: compile_compute(tx, node_id))}


async def test_a_server_with_everything(rig: Rig, tenant: Caller) -> None:
    flavor, image = await rig.equip(tenant, nodes=1)
    [scripted] = rig.nodes.values()
    await rig.database.write(lambda tx: tx.run("INSERT INTO blob VALUES (?, ?, 1, 0)", image.sha256, scripted.node.id))
    volume_id = await rig.add_volume(tenant)
    view = await rig.create(
        tenant, flavor, image, "Web 1", volume_ids=(volume_id,), config_drive=True, user_data=b"#!/bin/sh",
        metadata={"role": "db"},
    )  # fmt: skip
    assert await told(rig, scripted.node.id) == {}
    await rig.advance()
    prepared = (await told(rig, scripted.node.id))[view.server.id]
    assert prepared.power == pb.POWER_PREPARED and not prepared.disks  # not exported yet
    await rig.run()
    spec = (await told(rig, scripted.node.id))[view.server.id]
    [attachment] = await rig.rows("SELECT * FROM attachment")
    address = view.addresses[0]
    names = {
        "PROJECT": tenant.project_id, "IMAGE": image.id, "SERVER": view.server.id, "PORT": address.port_id, "MAC": address.mac,
        "DEVICE": "tap" + address.port_id[:11], "ATTACHMENT": attachment["id"], "VOLUME": volume_id,
        "EXPORT": attachment["export_name"],
    }  # fmt: skip
    wanted = GOLDEN
    for name, value in names.items():
        wanted = wanted.replace(f'"{name}"', f'"{value}"')
    assert text_format.MessageToString(spec) == wanted


async def test_a_storage_node_that_restarts_pulls_no_disk_out(rig: Rig, tenant: Caller) -> None:
    flavor, image = await rig.equip(tenant, nodes=1)
    [scripted] = rig.nodes.values()
    volume_id = await rig.add_volume(tenant)
    view = await rig.create(tenant, flavor, image, volume_ids=(volume_id,))
    await rig.run()
    before = await told(rig, scripted.node.id)
    await rig.report(scripted, "storaged", [], whole=True)
    await rig.database.write(lambda tx: node_store.disconnected(tx, scripted.node.id, "storaged"))
    after = await told(rig, scripted.node.id)
    assert list(after[view.server.id].disks) == list(before[view.server.id].disks) != []


async def test_removal_is_told_by_absence_and_by_tombstones(rig: Rig, tenant: Caller) -> None:
    flavor, image = await rig.equip(tenant, nodes=1)
    [scripted] = rig.nodes.values()
    view = await rig.create(tenant, flavor, image)
    await rig.run()
    await rig.servers.delete(tenant, view.server.id)
    await rig.advance()
    assert await told(rig, scripted.node.id) == {view.server.id: pb.ServerSpec(absent=True)}
    await rig.lose(scripted)
    await rig.run()
    assert await rig.server(view.server.id) is None
    assert await told(rig, scripted.node.id) == {view.server.id: pb.ServerSpec(absent=True)}
    await rig.find_again(scripted)
    await rig.run()
    assert await told(rig, scripted.node.id) == {}


async def test_metadata_carries_keys_and_the_accounts_of_its_groups(rig: Rig, tenant: Caller) -> None:
    from controllerd.app.security_group import SecurityGroups
    from controllerd.domain.security_group import Account

    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHKO4Bqt4yGzlHXD3Bj4T3t5cXHmXWzGDqW4Ej4LXCrQ"
    flavor, image = await rig.equip(tenant)
    account = Account("ops", True, (), (key,))
    group = await SecurityGroups(rig.cloud).create(tenant, "web", "", (account,), Once("", "", ""))
    view = await rig.create(tenant, flavor, image, group_ids=(getattr(group, "group", group).id,))
    metadata = await rig.database.read(lambda tx: Metadata(tx, [view.server]).of(view.server))
    assert metadata.accounts == [pb.Account(name="ops", sudo=True, public_keys=[key])]
    assert (metadata.hostname, list(metadata.public_keys)) == ("web", [])


def test_host_names_are_one_label() -> None:
    for name, wanted in (
        ("web-1", "web-1"), ("Web Server", "web-server"), ("-a_b.c-", "a-b-c"), ("Zürich", "zurich"), ("x" * 80, "x" * 63),
        ("日本", "server-01234567"), ("a" * 62 + "--b", "a" * 62),
    ):  # fmt: skip
        assert hostname(name, "01234567-89") == wanted
