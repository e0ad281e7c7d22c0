"""A cloud that is already full: rows of nodes, networks and running servers put into a fresh state, and a certificate a node.

Made offline, before the controller is started for the first time: what is measured is a controller that holds a cloud, not
how long it takes to fill one. Server n is on node n modulo their number, and every PORTS_A_NETWORK servers share a network,
so each network is spread over as many nodes. At most 256 networks.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from controllerd.agents.authority import Authority
from controllerd.app.cloud import Cloud, Once
from controllerd.app.network import Networks
from controllerd.app.security_group import ensure_default
from controllerd.app.subnet import Subnets
from controllerd.bootstrap import bootstrap
from controllerd.config import ControllerConfig
from controllerd.domain import quota as quotas
from controllerd.domain.image import Image
from controllerd.domain.node import AgentRecord, Node
from controllerd.domain.policy import Caller
from controllerd.domain.port import Port
from controllerd.domain.server import Server
from controllerd.leadership.commit_log import LocalLog
from controllerd.store import node, port, quota, subnet, usage
from controllerd.store.database import Database, Tx
from controllerd.store.flavor import FLAVORS
from controllerd.store.identity import PROJECTS, USERS
from controllerd.store.image import IMAGES
from controllerd.store.server import SERVERS
from daemonkit import tls
from daemonkit.runtime import Runtime, system_runtime

SHA256 = "5" * 64
PORTS_A_NETWORK = 100
ROLES = ("compute", "edge")
BATCH = 250  # servers a transaction
ANEW = Once("", "", "")


@dataclass(frozen=True)
class Seeded:
    """`tls`: a directory with ca.pem, node.key (one for all nodes) and NAME.pem of each."""

    environment: dict[str, str]  # for `Cloud.connect`
    tls: Path
    nodes: tuple[str, ...]
    flavor_id: str
    image_id: str
    network_ids: tuple[str, ...]


async def seed(config: ControllerConfig, home: Path, nodes: int, servers: int) -> Seeded:
    """Bootstraps the controller of `config` under `home` and fills it. There is one network even without servers."""
    runtime = system_runtime()
    await bootstrap(config, (), home / "admin.env", runtime)
    names = tuple(f"n{number:04}" for number in range(nodes))
    serials = _certificates(Authority(config.data_dir / "ca", runtime), home / "nodes", names)
    database = Database(config.data_dir / "state.db", LocalLog(), runtime)
    await database.open()
    commits = asyncio.create_task(database.run())
    try:
        filler = _Filler(database, runtime)
        await filler.prepare()
        node_ids = await filler.add_nodes(serials)
        await filler.add_servers(node_ids, servers)
    finally:
        commits.cancel()
        with suppress(asyncio.CancelledError):
            await commits
        await database.close()
    environment = dict(line.removeprefix("export ").split("=", 1) for line in (home / "admin.env").read_text().splitlines())
    return Seeded(
        environment, home / "nodes", names, filler.flavor.id, filler.image.id, tuple(filler.network_ids)
    )  # fmt: skip


def _certificates(authority: Authority, directory: Path, names: tuple[str, ...]) -> dict[str, int]:
    """Node -> serial of its certificate."""
    key, serials = tls.new_key(), {}
    directory.mkdir(parents=True)
    (directory / "node.key").write_bytes(tls.key_pem(key))
    (directory / "ca.pem").write_bytes(authority.certificate_pem())
    for name in names:
        pem, serials[name] = authority.issue(key.public_key(), name, ROLES, tls.alternative_names(name, ["127.0.0.1"]))
        (directory / f"{name}.pem").write_bytes(pem)
    return serials


class _Filler:
    def __init__(self, database: Database, runtime: Runtime) -> None:
        self._db, self._runtime = database, runtime
        self.network_ids: list[str] = []

    async def prepare(self) -> None:
        def look(tx: Tx) -> Caller:
            user, project = USERS.where(tx, "name = 'admin'")[0], PROJECTS.where(tx, "name = 'admin'")[0]
            for resource in quotas.DEFAULTS:
                quota.set_limit(tx, project.id, resource, quotas.UNLIMITED)
            self.image = IMAGES.insert(tx, _image(tx, project.id))
            self.group_id = ensure_default(tx, project.id)
            self.flavor = FLAVORS.where(tx, "name = 'm1.nano'")[0]
            return Caller(user.id, user.name, project.id, project.name, frozenset({"admin"}))

        self.caller = await self._db.write(look)

    async def add_nodes(self, serials: dict[str, int]) -> list[str]:
        def insert(tx: Tx) -> list[str]:
            ids = []
            for number, (name, serial) in enumerate(serials.items()):
                ids.append(tx.new_id())
                node.NODES.insert(tx, Node(ids[-1], name, ROLES, True, str(serial), tx.now))
                for kind in ("computed", "networkd"):
                    inventory = json.loads(json.dumps(inventory_of(number, kind)))
                    record = AgentRecord(ids[-1], kind, False, tx.now, False, "0", "seeded", inventory)
                    node.put_agent(tx, record)
            return ids

        return await self._db.write(insert)

    async def add_servers(self, node_ids: list[str], servers: int) -> None:
        cloud = Cloud(self._db, self._runtime)
        for number in range(max(1, -(-servers // PORTS_A_NETWORK))):
            made = await Networks(cloud, mtu=1450).create(self.caller, f"net{number}", False, False, ANEW)
            network_id = made.network.id
            self.network_ids.append(network_id)
            await Subnets(cloud).create(self.caller, network_id, "", f"10.{number}.0.0/16", ANEW)
        for first in range(0, servers, BATCH):
            await self._db.write(self._insert(node_ids, range(first, min(first + BATCH, servers))))

    def _insert(self, node_ids: list[str], numbers: range) -> Callable[[Tx], None]:
        def insert(tx: Tx) -> None:
            for number in numbers:
                server = SERVERS.insert(tx, self._server(tx, number, node_ids[number % len(node_ids)]))
                tx.run("INSERT INTO claim VALUES (?, ?, ?, ?, ?, ?)", server.id, server.node_id, server.vcpus,
                       server.memory_mib, server.disk_gib, tx.now)  # fmt: skip
                usage.open_interval(tx, server)
                self._plug(tx, server, number)

        return insert

    def _server(self, tx: Tx, number: int, node_id: str) -> Server:
        flavor, image, caller = self.flavor, self.image, self.caller
        return Server(
            id=tx.new_id(), name=f"server-{number}", project_id=caller.project_id, user_id=caller.user_id, state="ACTIVE",
            flavor_id=flavor.id, flavor_name=flavor.name, vcpus=flavor.vcpus, memory_mib=flavor.memory_mib,
            disk_gib=flavor.disk_gib, image_id=image.id, image_sha256=image.sha256, image_format=image.format,
            image_size_bytes=image.size_bytes, image_virtual_bytes=image.virtual_bytes, keypair_name="", public_key="",
            metadata={}, config_drive=False, placement={}, node_id=node_id, power="RUNNING", fault_reason="",
            fault_message="", fault_details=(), created_at=tx.now, updated_at=tx.now, launched_at=tx.now,
            observed_state="RUNNING", observed_fault="", observed_attached=(), observed_at=tx.now, observed_milestones={},
        )  # fmt: skip

    def _plug(self, tx: Tx, server: Server, number: int) -> None:
        network, place = number // PORTS_A_NETWORK, number % PORTS_A_NETWORK
        network_id = self.network_ids[network]
        plugged = Port(
            id=tx.new_id(), name="", project_id=server.project_id, network_id=network_id,
            mac=f"fa:16:3e:{number >> 16:02x}:{number >> 8 & 255:02x}:{number & 255:02x}", port_security=True,
            purpose="server", server_id=server.id, router_id="", made_for_server=True, position=0, node_id=server.node_id,
            created_at=tx.now, observed_state="READY", observed_fault="",
        )  # fmt: skip
        port.PORTS.insert(tx, plugged)
        tx.run("INSERT INTO port_security_group VALUES (?, ?)", plugged.id, self.group_id)
        subnet_id = subnet.of_network(tx, network_id)[0].id
        subnet.take_address(tx, subnet_id, f"10.{network}.1.{place}", plugged.id)


def inventory_of(number: int, kind: str) -> dict[str, object]:
    """Of node `number`: 64 threads, 256 GiB, the image cached."""
    if kind == "networkd":
        return {"network": {"vtep": f"10.200.{number >> 8}.{number & 255}", "underlay_mtu": 1500}}
    return {
        "compute": {
            "vcpus": 64, "memory_mib": "262144", "disk_gib": "4000", "virt_type": "fake", "hypervisor": "simulated",
            "images_cached": [SHA256],
        }
    }  # fmt: skip


def _image(tx: Tx, project_id: str) -> Image:
    return Image(
        id=tx.new_id(), name="mini", project_id=project_id, public=True, state="ACTIVE", format="qcow2", size_bytes=1 << 20,
        virtual_bytes=64 << 20, sha256=SHA256, min_disk_gib=0, min_memory_mib=0, fault_reason="", fault_message="",
        properties={}, created_at=tx.now, md5="", sha512="",
    )  # fmt: skip
