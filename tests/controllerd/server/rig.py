"""A cloud of one store and scripted nodes: nodes do at once what they are told, unless they are away, and report it.

Everything happens in transactions that the test can count, so that it can stop the world between any two of them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from controllerd.agents.desired.compute import compile_compute
from controllerd.agents.desired.network import compile_network
from controllerd.agents.desired.storage import compile_storage
from controllerd.agents.intake import Intake
from controllerd.agents.observed import port as observed_port
from controllerd.agents.observed import server as observed_server
from controllerd.agents.observed import storage as observed_storage
from controllerd.agents.telemetry import take as take_telemetry
from controllerd.app.cloud import Cloud, Once
from controllerd.app.network import Networks
from controllerd.app.port import release_ports
from controllerd.app.server import NewServer, Servers, ServerView
from controllerd.app.subnet import Subnets
from controllerd.app.volume import Volumes, detach_all
from controllerd.domain.flavor import Flavor
from controllerd.domain.image import Image
from controllerd.domain.node import AgentRecord, Node
from controllerd.domain.placement import Ratios
from controllerd.domain.policy import Caller
from controllerd.leadership.commit_log import CommitLog, LocalLog
from controllerd.reconcilers.lost_node import give_up
from controllerd.store import agent_task
from controllerd.store import task as task_store
from controllerd.store.database import Database, Tx
from controllerd.store.flavor import FLAVORS
from controllerd.store.image import IMAGES
from controllerd.store.node import NODES, disconnected, put_agent
from controllerd.store.server import SERVERS
from controllerd.tasks.engine import advance
from controllerd.tasks.operation import Operation
from controllerd.tasks.server_create import server_create
from controllerd.tasks.server_delete import TakeBack, server_delete
from controllerd.tasks.server_power import REBOOT, START, STOP
from controllerd.tasks.volume_attach import VOLUME_ATTACH, VOLUME_DETACH
from controllerd.tasks.volume_create import VOLUME_CREATE, VOLUME_DELETE
from daemonkit.runtime import Runtime
from skyrack.v1 import agent_pb2 as pb

T = TypeVar("T")

ANEW = Once("", "", "")
SHA = "a" * 64
AGENTS = ("computed", "networkd", "storaged")
COMPILERS = {"computed": compile_compute, "networkd": compile_network, "storaged": compile_storage}
STATE_OF_POWER = {
    pb.POWER_PREPARED: pb.OBSERVED_STATE_READY,
    pb.POWER_RUNNING: pb.OBSERVED_STATE_RUNNING,
    pb.POWER_STOPPED: pb.OBSERVED_STATE_STOPPED,
}


def operations(ratios: Ratios) -> dict[str, Operation]:
    take_back = TakeBack(release_ports, detach_all)
    known = (
        server_create(ratios, take_back), server_delete(take_back), START, STOP, REBOOT,
        VOLUME_ATTACH, VOLUME_DETACH, VOLUME_CREATE, VOLUME_DELETE,
    )  # fmt: skip
    return {operation.kind: operation for operation in known}


class CrashNow(Exception):
    """The transaction budget of a test is used up."""


@dataclass
class ScriptedNode:
    """`refuses`: why it fails at each server, "" = obeys. `deaf`: in session, but reports nothing."""

    node: Node
    away: bool = False
    deaf: bool = False
    refuses: str = ""
    clock_skew_s: float = 0.0
    guests: dict[str, int] = field(default_factory=dict)  # server id -> ObservedState
    milestones: dict[str, float] = field(default_factory=dict)


class Silent:
    async def read(self, node_id: str, server_id: str, bytes_max: int) -> bytes:
        return f"{server_id} {bytes_max}".encode()


class Rig:
    def __init__(self, path: Path, runtime: Runtime, clock: Any, commit_log: Callable[[], CommitLog] = LocalLog) -> None:
        self.path, self.runtime, self.clock, self.commit_log = path, runtime, clock, commit_log
        self.operations = operations(Ratios())
        self.nodes: dict[str, ScriptedNode] = {}
        self.transactions = 0
        self.transactions_max: int | None = None
        self.touched: set[str] = set()
        takers = observed_server.TAKERS | observed_port.TAKERS | observed_storage.TAKERS
        self.intake = Intake(takers, take_telemetry)

    # ---- the store, opened and opened again

    async def open(self) -> None:
        self.database = Database(self.path, self.commit_log(), self.runtime)
        await self.database.open()
        self.database.subscribe(self.touched.update)
        self._commits = asyncio.create_task(self.database.run())
        self.cloud = Cloud(self.database, self.runtime)
        self.servers = Servers(self.cloud, self.operations, Silent())
        self.volumes = Volumes(self.cloud)

    async def close(self) -> None:
        self._commits.cancel()
        with suppress(asyncio.CancelledError):
            await self._commits
        await self.database.close()

    async def crash(self) -> None:
        """Whatever is not committed is gone."""
        await self.close()
        await self.open()

    async def write(self, fn: Callable[[Tx], T]) -> T:
        """A transaction of the world's (not of the test's own preparations): it counts."""
        if self.transactions_max is not None and self.transactions >= self.transactions_max:
            raise CrashNow
        self.transactions += 1
        return await self.database.write(fn)

    async def rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        return await self.database.read(lambda tx: tx.all(sql, *values))

    async def server(self, server_id: str) -> Any:
        return await self.database.read(lambda tx: SERVERS.find(tx, server_id))

    # ---- preparations

    async def add_node(
        self, name: str, vcpus: int = 4, memory_mib: int = 4096, disk_gib: int = 100, images: tuple[str, ...] = ()
    ) -> ScriptedNode:
        node = Node(self.runtime.new_id(), name, ("compute", "edge", "storage"), True, "1", self.clock.now_s)
        compute = {"vcpus": vcpus, "memory_mib": str(memory_mib), "disk_gib": str(disk_gib), "images_cached": list(images)}
        storage = {"volumes_total_gib": "100", "volumes_free_gib": "100", "nbd_host": "10.0.0.9", "nbd_port": 10809}
        inventories = {"computed": {"compute": compute}, "networkd": {"network": {"vtep": "10.9.0.1"}},
                       "storaged": {"address": "10.0.0.9:7730", "storage": storage}}  # fmt: skip

        def insert(tx: Tx) -> None:
            NODES.insert(tx, node)
            for kind in AGENTS:
                put_agent(tx, AgentRecord(node.id, kind, True, tx.now, False, "1", "b", inventories[kind]))

        await self.database.write(insert)
        self.nodes[node.id] = ScriptedNode(node)
        return self.nodes[node.id]

    async def add_flavor(self, caller: Caller, memory_mib: int = 512, vcpus: int = 1, disk_gib: int = 1) -> Flavor:
        flavor = Flavor(self.runtime.new_id(), f"m{memory_mib}", "", vcpus, memory_mib, disk_gib, "", self.clock.now_s)
        await self.database.write(lambda tx: FLAVORS.insert(tx, flavor))
        return flavor

    async def add_image(self, caller: Caller, **changes: Any) -> Image:
        image = Image(
            id=self.runtime.new_id(), name="mini", project_id=caller.project_id, public=True, state="ACTIVE", format="qcow2",
            size_bytes=1 << 20, virtual_bytes=64 << 20, sha256=SHA, min_disk_gib=0, min_memory_mib=0, fault_reason="",
            fault_message="", properties={}, created_at=self.clock.now_s, md5="", sha512="",
        )  # fmt: skip
        image = replace(image, **changes)
        await self.database.write(lambda tx: IMAGES.insert(tx, image))
        return image

    async def add_network(self, caller: Caller, cidr: str = "10.1.0.0/24", name: str = "private") -> str:
        network = await Networks(self.cloud).create(caller, name, False, False, ANEW)
        await Subnets(self.cloud).create(caller, network.network.id, "", cidr, ANEW)
        return network.network.id

    async def add_volume(self, caller: Caller) -> str:
        volume = await self.volumes.create(caller, "data", 1, "", ANEW)
        await self.run()
        return volume.volume.id

    async def equip(self, caller: Caller, nodes: int = 2, **flavor: int) -> tuple[Flavor, Image]:
        for number in range(nodes):
            await self.add_node(f"k{number + 1}")
        made = await self.add_flavor(caller, **flavor), await self.add_image(caller)
        await self.add_network(caller)
        return made

    async def create(self, caller: Caller, flavor: Flavor, image: Image, name: str = "web", **options: Any) -> ServerView:
        return await self.servers.create(caller, NewServer(name, flavor.id, image.id, **options), ANEW)

    # ---- the world goes on

    async def run(self, rounds_max: int = 40) -> None:
        """Until nothing changes any more: tasks are advanced, nodes obey and report."""
        for _ in range(rounds_max):
            before = await self._state()
            await self.advance()
            for scripted in self.nodes.values():
                if not scripted.away and not scripted.deaf:
                    await self.obey(scripted)
            if await self._state() == before:
                return
        raise AssertionError("the world does not come to rest")

    async def _state(self) -> str:
        tables = ("server", "port", "claim", "task", "attachment", "volume", "tombstone", "agent_task")
        return json.dumps([await self.rows(f"SELECT * FROM {table}") for table in tables], default=repr)

    async def advance(self) -> None:
        """Every unfinished task, a transaction each."""
        for task in await self.database.read(task_store.unfinished):

            def step(tx: Tx, task_id: str = task.id) -> None:
                stored = task_store.TASKS.find(tx, task_id)
                if stored is not None and stored.unfinished:
                    advance(tx, self.operations[stored.kind], stored)

            await self.write(step)

    async def obey(self, scripted: ScriptedNode) -> None:
        """Looks at its desired state, does it, reports each kind of object in a transaction of its own."""
        for agent in AGENTS:
            desired = await self.database.read(lambda tx, agent=agent: COMPILERS[agent](tx, scripted.node.id))
            objects = [o for o in (self._done(scripted, d) for d in desired) if o is not None]
            if objects:
                await self.report(scripted, agent, objects)
        if not scripted.refuses:
            await self._run_orders(scripted)

    def _done(self, scripted: ScriptedNode, desired: pb.DesiredObject) -> pb.ObservedObject | None:
        kind, ready = desired.WhichOneof("spec"), pb.OBSERVED_STATE_READY
        if kind == "server":
            return self.guest(scripted, desired)
        if kind == "port":
            return pb.ObservedObject(id=desired.id, port=pb.ObservedPort(state=ready))
        if kind == "volume":
            gone = pb.OBSERVED_STATE_GONE if desired.volume.absent else ready
            return pb.ObservedObject(id=desired.id, volume=pb.ObservedVolume(state=gone))
        if kind == "export":
            return pb.ObservedObject(id=desired.id, export=pb.ObservedExport(state=ready))
        return None

    def guest(self, scripted: ScriptedNode, desired: pb.DesiredObject) -> pb.ObservedObject:
        spec = desired.server
        if spec.absent:
            scripted.guests.pop(desired.id, None)
            return pb.ObservedObject(id=desired.id, server=pb.ObservedServer(state=pb.OBSERVED_STATE_GONE))
        if scripted.refuses:
            seen = pb.ObservedServer(state=pb.OBSERVED_STATE_FAILED, fault=scripted.refuses)
            return pb.ObservedObject(id=desired.id, server=seen)
        state = STATE_OF_POWER[spec.power]
        scripted.guests[desired.id] = state
        seen = pb.ObservedServer(state=state, attached=[d.attachment_id for d in spec.disks])
        for number, name in enumerate(("image", "disk", "defined", "running")):
            milestone = seen.milestones.add(name=name)
            time = scripted.milestones.setdefault(f"{desired.id}/{name}", self.clock.now_s + scripted.clock_skew_s)
            milestone.time.FromMicroseconds(round((time + number * 0.001) * 1e6))
        return pb.ObservedObject(id=desired.id, server=seen)

    async def _run_orders(self, scripted: ScriptedNode) -> None:
        for row in await self.rows("SELECT id FROM agent_task WHERE node_id = ? AND ended = 0", scripted.node.id):
            await self.write(lambda tx, order=row["id"]: agent_task.end(tx, scripted.node.id, order, True, "", ""))

    async def report(self, scripted: ScriptedNode, agent: str, objects: list[pb.ObservedObject], whole: bool = False) -> None:
        report = pb.Report(objects=objects, whole=whole)
        await self.write(lambda tx: self.intake.report(tx, scripted.node, agent, report))

    async def see(self, scripted: ScriptedNode, server_id: str, state: int, fault: str = "", **fields: Any) -> None:
        seen = pb.ObservedServer(state=state, fault=fault, **fields)  # type: ignore[arg-type]
        await self.report(scripted, "computed", [pb.ObservedObject(id=server_id, server=seen)])

    async def lose(self, scripted: ScriptedNode) -> None:
        """Away, and given up."""
        scripted.away = True
        for kind in AGENTS:
            await self.database.write(lambda tx, kind=kind: disconnected(tx, scripted.node.id, kind))
        self.clock.forward(10.0)
        await self.database.write(lambda tx: give_up(tx, 8.0))

    async def find_again(self, scripted: ScriptedNode) -> None:
        scripted.away = False
        sql = "UPDATE agent SET connected = 1, lost = 0 WHERE node_id = ?"
        await self.database.write(lambda tx: tx.run(sql, scripted.node.id))

    # ---- checks

    async def leftovers(self) -> dict[str, list[dict[str, Any]]]:
        """What should not be there once no server is."""
        queries = {
            "server": "SELECT id, state FROM server", "claim": "SELECT * FROM claim", "tombstone": "SELECT * FROM tombstone",
            "port": "SELECT id, server_id, node_id FROM port WHERE server_id != '' OR purpose = 'server'",
            "attachment": "SELECT * FROM attachment", "agent_task": "SELECT id FROM agent_task",
            "task": "SELECT id, kind, state FROM task WHERE state IN ('RUNNING', 'UNWINDING')",
            "user_data": "SELECT server_id FROM user_data", "usage": "SELECT * FROM usage_interval WHERE ended_at = 0",
        }  # fmt: skip
        found = {name: await self.rows(sql) for name, sql in queries.items()}
        return {name: rows for name, rows in found.items() if rows}


Make = Callable[..., Awaitable[Caller]]
