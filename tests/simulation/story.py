"""What happens in the rack: a tenant's day, with everything that goes wrong in it. The same story under every seed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controllerd.app.cloud import Once
from controllerd.app.server import NewServer, Wish
from controllerd.domain.page import Page
from controllerd.domain.policy import SYSTEM, Caller
from skyrack.testing.virtual import EPOCH_S, RepeatableLoop
from storaged.drivers.fake import FakeVolumes
from tests.simulation.world import World

ANEW = Once("", "", "")
PATIENCE_S = 300.0  # of virtual time
LAUNCH_S = 0.25  # about the time of a launch on a node that has the image
CROWD = 8  # with the two others all that the quota gives
CONTENT = b"not a disk that boots" * 100
IN_USE = {
    "servers": 2, "vcpus": 2, "memory_mib": 1024, "volumes": 1, "volume_gib": 3, "images": 0, "image_gib": 0, "networks": 1,
    "subnets": 1, "routers": 1, "floating_ips": 1,
}  # fmt: skip
LEFT = {
    "server": "SELECT id, state FROM server", "claim": "SELECT * FROM claim", "tombstone": "SELECT * FROM tombstone",
    "volume": "SELECT id, state FROM volume", "attachment": "SELECT * FROM attachment",
    "agent_task": "SELECT * FROM agent_task",
    "port": "SELECT id, purpose FROM port WHERE server_id != '' OR purpose = 'server'",
    "task": "SELECT id, kind, state FROM task WHERE state IN ('RUNNING', 'UNWINDING')",
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """An event of the history as it is compared: seconds since the beginning, what, of which, in which words."""

    at_s: float
    kind: str
    resource_id: str
    message: str


@dataclass(frozen=True)
class Outcome:
    history: list[Line]
    calls: dict[str, list[tuple[str, str]]]  # node -> what was asked of its hypervisor
    killed_in: str  # state of the server that was being made when the controller was killed

    def digest(self) -> str:
        told = [[line.at_s, line.kind, line.resource_id, line.message] for line in self.history]
        return hashlib.sha256(json.dumps([told, self.calls], sort_keys=True).encode()).hexdigest()

    def shape(self) -> list[tuple[str, int]]:
        """Kinds and, instead of ids (which differ from seed to seed), the order in which resources first appear."""
        first: dict[str, int] = {}
        return [(line.kind, first.setdefault(line.resource_id, len(first))) for line in self.history]


def run(directory: Path, seed: int) -> Outcome:
    async def live() -> Outcome:
        async with World(directory, seed).up() as world:
            return await Story(world).tell()

    with asyncio.Runner(loop_factory=RepeatableLoop) as runner:
        return runner.run(live())


async def until(probe: Callable[[], Awaitable[Any]], what: str) -> Any:
    """The first true answer."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not (answer := await probe()):  # noqa: ASYNC110 - virtual time costs nothing
                await asyncio.sleep(0.05)
            return answer
    except TimeoutError:
        raise AssertionError(f"never came: {what}") from None


class Story:
    def __init__(self, world: World) -> None:
        self._world, self._rack = world, world.rack

    @property
    def _cloud(self) -> Any:
        """The controller that lives now."""
        return self._world.controller

    @property
    def _volumes(self) -> FakeVolumes:
        return self._rack.volumes["s1"]

    async def tell(self) -> Outcome:
        await until(self._all_in_session, "every agent in session")
        await self._admin_prepares()
        await self._tenant_prepares()
        await self._launch_two()
        await self._stop_and_start()
        await self._crowd()
        await self._controller_dies_while_it_creates()
        await self._node_is_cut_off()
        await self._agents_die()
        await self._look()
        await self._clear_away()
        return await self._outcome()

    async def _all_in_session(self) -> bool:
        found = await self._cloud.database.read(lambda tx: tx.value("SELECT count(*) FROM agent WHERE connected = 1"))
        return bool(found == 6)

    # ---- before the first server

    async def _admin_prepares(self) -> None:
        cloud = self._cloud
        network = await cloud.networks.create(SYSTEM, "internet", False, True, ANEW)
        self._internet = network.network.id
        await cloud.subnets.create(SYSTEM, self._internet, "", "203.0.113.0/24", ANEW)
        image = await cloud.images.create(SYSTEM, "mini", "raw", True, 0, 0, {}, ANEW)
        self._image = (await cloud.images.upload(SYSTEM, image.id, content())).id
        flavors = await cloud.flavors.list(SYSTEM, "m1.tiny", Page(10))
        self._flavor = flavors.items[0].id

    async def _tenant_prepares(self) -> None:
        cloud = self._cloud
        project = await cloud.identity.create_project(SYSTEM, "alpha", "", ANEW)
        user = await cloud.identity.create_user(SYSTEM, "ann", "correct horse battery", "", ANEW)
        await cloud.identity.grant(SYSTEM, user.id, project.id, "member")
        token = await cloud.login.issue("ann", "correct horse battery", "alpha", 3600)
        self._ann: Caller = token.caller
        network = await cloud.networks.create(self._ann, "inside", False, False, ANEW)
        self._network = network.network.id
        subnet = await cloud.subnets.create(self._ann, self._network, "", "10.1.0.0/24", ANEW)
        router = await cloud.routers.create(self._ann, "out", self._internet, True, ANEW)
        self._router = router.router.id
        await cloud.routers.add_interface(self._ann, self._router, subnet.id)
        self._volume = (await cloud.volumes.create(self._ann, "data", 3, "", ANEW)).volume.id
        await until(lambda: self._volume_is("AVAILABLE"), "the volume")
        await until(self._router_works, "the router")

    async def _router_works(self) -> bool:
        view = await self._cloud.routers.get(self._ann, self._router)
        return bool(view.state == "ACTIVE")

    async def _volume_is(self, state: str) -> bool:
        view = await self._cloud.volumes.get(self._ann, self._volume)
        return bool(view.volume.state == state)

    # ---- servers

    async def _launch(self, name: str, **options: Any) -> str:
        new = NewServer(name, self._flavor, self._image, networks=(Wish(self._network),), **options)
        return str((await self._cloud.servers.create(self._ann, new, ANEW)).server.id)

    async def _reach(self, server_id: str, state: str) -> Any:
        async def there() -> Any:
            view = await self._cloud.servers.get(self._ann, server_id)
            assert view.state != "ERROR", view.server.fault_message
            return view if view.state == state else None

        return await until(there, f"server {state}")

    async def _launch_two(self) -> None:
        self._web = await self._launch("web", volume_ids=(self._volume,))
        self._db = await self._launch("db", different_node_than=self._web)
        web, db = await self._reach(self._web, "ACTIVE"), await self._reach(self._db, "ACTIVE")
        assert web.server.node_id != db.server.node_id
        floating = await self._cloud.floating_ips.create(self._ann, self._internet, ANEW, server_id=self._web)
        self._floating = floating.floating_ip.id
        machine = await self._machine_of(self._web)
        assert self._exports() == {a.export_name for a in web.attachments} == set(machine.domains[self._web].disks)
        assert (await self._cloud.servers.console_log(self._ann, self._web, 0)) == b"fake: web started\n"
        await self._hold(IN_USE)

    async def _machine_of(self, server_id: str) -> Any:
        view = await self._cloud.servers.get(SYSTEM, server_id)
        return self._rack.machines[view.node_name]

    def _exports(self) -> set[str]:
        return {e.name for exports in self._volumes.exports.values() for e in exports.values()}

    async def _hold(self, expected: dict[str, int]) -> None:
        """The quotas' count is exact."""
        _project, items = await self._cloud.quotas.get(self._ann, "")
        in_use = {item.resource: item.in_use for item in items}
        assert {name: in_use[name] for name in expected} == expected

    async def _stop_and_start(self) -> None:
        await self._cloud.servers.stop(self._ann, self._db)
        await self._reach(self._db, "STOPPED")
        await self._cloud.servers.start(self._ann, self._db)
        await self._reach(self._db, "ACTIVE")

    async def _crowd(self) -> None:
        """Many at once, some of them deleted before they run."""
        sizes = IN_USE | {"servers": 2 + CROWD, "vcpus": 2 + CROWD, "memory_mib": 512 * (2 + CROWD)}
        crowd = await asyncio.gather(*(self._launch(f"crowd-{number}") for number in range(CROWD)))
        await self._hold(sizes)
        half, rest = crowd[: CROWD // 2], crowd[CROWD // 2 :]
        await asyncio.sleep(self._world.dice.uniform(0.0, LAUNCH_S))
        await asyncio.gather(*(self._delete(server_id) for server_id in half))
        await asyncio.gather(*(self._reach(server_id, "ACTIVE") for server_id in rest))
        await asyncio.gather(*(self._delete(server_id) for server_id in rest))
        await self._hold(IN_USE)

    async def _controller_dies_while_it_creates(self) -> None:
        world = self._world
        late = await self._launch("late")
        await asyncio.sleep(world.dice.uniform(0.0, LAUNCH_S))
        self._killed_in = (await self._cloud.servers.get(self._ann, late)).state
        world.controllers["c1"].kill()
        await asyncio.sleep(world.dice.uniform(0.1, 10.0))
        world.controllers["c1"].start()
        await world.led()
        await self._reach(late, "ACTIVE")
        await self._hold(IN_USE | {"servers": 3, "vcpus": 3, "memory_mib": 1536})
        await self._delete(late)
        await self._hold(IN_USE)

    async def _node_is_cut_off(self) -> None:
        view = await self._cloud.servers.get(SYSTEM, self._web)
        link = self._rack.link(view.node_name)
        if self._world.dice.random() < 0.5:
            link.cut()
        else:
            link.hold()
        await self._reach(self._web, "UNKNOWN")
        assert (await self._cloud.servers.get(self._ann, self._db)).state == "ACTIVE"
        link.mend()
        await self._reach(self._web, "ACTIVE")

    async def _agents_die(self) -> None:
        """computed on a node, and the storage daemon: what they serve is there again, and was never started twice."""
        view = await self._cloud.servers.get(SYSTEM, self._db)
        starts = self._rack.machines[view.node_name].calls.count(("start", self._db))
        await self._rack.kill(f"computed-{view.node_name}")
        await asyncio.sleep(self._world.dice.uniform(0.0, 10.0))
        await self._rack.start(f"computed-{view.node_name}")
        self._volumes.crash()
        await self._reach(self._db, "ACTIVE")
        await until(self._served, "the volume's export")
        assert self._rack.machines[view.node_name].calls.count(("start", self._db)) == starts

    async def _served(self) -> bool:
        return len(self._exports()) == 1

    # ---- the end

    async def _look(self) -> None:
        """Everybody agrees with everybody: rows, domains, disks."""
        rows = await self._cloud.database.read(lambda tx: tx.all("SELECT server_id, node_id FROM claim"))
        assert {row["server_id"] for row in rows} == {self._web, self._db}
        domains = [server_id for machine in self._rack.machines.values() for server_id in machine.domains]
        assert sorted(domains) == sorted([self._web, self._db])

    async def _delete(self, server_id: str) -> None:
        await self._cloud.servers.delete(self._ann, server_id)

        async def gone() -> bool:
            return not await self._cloud.database.read(lambda tx: tx.value("SELECT 1 FROM server WHERE id = ?", server_id))

        await until(gone, "the server's end")

    async def _clear_away(self) -> None:
        await self._delete(self._web)
        await self._delete(self._db)
        await self._hold(IN_USE | {"servers": 0, "vcpus": 0, "memory_mib": 0})
        await self._cloud.volumes.delete(self._ann, self._volume)
        await until(self._nothing_left, "an empty cloud")
        await self._cloud.floating_ips.delete(self._ann, self._floating)
        await self._hold(IN_USE | dict.fromkeys(("servers", "vcpus", "memory_mib", "volumes", "volume_gib", "floating_ips"), 0))
        for machine in self._rack.machines.values():
            assert not machine.domains and not machine.root_disks and not machine.config_drives
        assert not self._volumes.sizes and not self._exports()

    async def _nothing_left(self) -> bool:
        left = await self._cloud.database.read(lambda tx: {name: tx.all(sql) for name, sql in LEFT.items()})
        ports = [port for networkd in self._rack.networkds.values() for port in networkd.reconciler.desired.ports]
        return not any(left.values()) and not ports

    async def _outcome(self) -> Outcome:
        sql = "SELECT time, kind, resource_id, message FROM event ORDER BY seq"
        rows = await self._cloud.database.read(lambda tx: tx.all(sql))
        history = [Line(round(r["time"] - EPOCH_S, 6), r["kind"], r["resource_id"], r["message"]) for r in rows]
        return Outcome(history, {name: machine.calls for name, machine in self._rack.machines.items()}, self._killed_in)


async def content() -> AsyncIterator[bytes | str]:
    yield CONTENT
    yield hashlib.sha256(CONTENT).hexdigest()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="simu-") as scratch:
        print(run(Path(scratch), int(sys.argv[1])).digest())
