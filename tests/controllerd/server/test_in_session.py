"""The whole way of a launch: RPC-less verbs, task engine, agent sessions over memory streams, agents that obey.

Real clock and threads. What the other tests do by hand (advancing, reporting) happens here because commits wake the rooms.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from controllerd.agents.console import ConsoleLogs
from controllerd.agents.session import Sessions, SessionSettings
from controllerd.app.server import Servers
from controllerd.domain.policy import Caller
from controllerd.reconcilers.lost_node import LostNodes
from controllerd.tasks.engine import TaskEngine
from daemonkit.desired import Mirror
from daemonkit.errors import NotFound, SkyrackError
from daemonkit.memory import MemoryNetwork
from daemonkit.runtime import system_runtime
from daemonkit.tls import Identity
from daemonkit.transport import AgentStream
from skyrack.v1 import agent_pb2 as pb
from tests.controllerd.server.conftest import make_caller
from tests.controllerd.server.rig import COMPILERS, Rig, ScriptedNode

HANG_S = 30.0
KINDS = {"computed": pb.AGENT_KIND_COMPUTED, "networkd": pb.AGENT_KIND_NETWORKD, "storaged": pb.AGENT_KIND_STORAGED}
ROLES = frozenset({"compute", "edge", "storage"})


class ObedientAgent:
    """One agent process of a scripted node: does at once what it is told, and reports it."""

    def __init__(self, rig: Rig, network: MemoryNetwork, scripted: ScriptedNode, kind: str) -> None:
        self._rig, self._network, self._scripted, self._kind = rig, network, scripted, kind
        self._seq = 0
        self.mirror = Mirror()
        self.epoch = 0

    async def run(self) -> None:
        """One session. Errors: SkyrackError at its end."""
        name = self._scripted.node.name
        stream = await self._network.dialer(Identity(name, ROLES, 1)).dial("controller:7701")
        try:
            hello = pb.Hello(
                kind=KINDS[self._kind], node=name, version="1", boot_id="b", highest_epoch=self.epoch,
                inventory=self._inventory(), desired_hash=self.mirror.hash(),
            )  # fmt: skip
            await stream.send(pb.AgentMessage(hello=hello))
            while True:
                await self._take(stream, await stream.receive())
        finally:
            await stream.close()

    def _inventory(self) -> pb.Inventory:
        made = pb.Inventory(address="10.0.0.9:7730")
        if self._kind == "computed":
            made.compute.CopyFrom(pb.ComputeInventory(vcpus=4, memory_mib=4096, disk_gib=100))
        return made

    async def _take(self, stream: AgentStream, message: pb.ControllerMessage) -> None:
        self.epoch = message.epoch
        body = message.WhichOneof("body")
        if body == "desired":
            self.mirror.apply(message.epoch, message.desired)
            seen = [o for o in (self._rig._done(self._scripted, d) for d in self.mirror.objects.values()) if o is not None]
            self._seq += 1
            await stream.send(pb.AgentMessage(report=pb.Report(seq=self._seq, objects=seen)))
        elif body == "task":
            await stream.send(pb.AgentMessage(task_result=pb.TaskResult(task_id=message.task.task_id, ok=True)))
        elif body == "query":
            await stream.send(pb.AgentMessage(answer=pb.Answer(query_id=message.query.query_id, ok=True, body=b"login:")))


class Live:
    """A rig whose rooms run by themselves."""

    def __init__(self, rig: Rig, network: MemoryNetwork) -> None:
        self.rig, self._network = rig, network
        settings = SessionSettings(lambda: ("controller:7701",), 2.0, 6.0)
        self.sessions = Sessions(rig.database, COMPILERS, rig.intake, settings, rig.runtime)
        self.servers = Servers(rig.cloud, rig.operations, ConsoleLogs(self.sessions))
        self._lost = LostNodes(rig.database, rig.runtime, 0.5)
        self._jobs: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        self._network.listen("controller:7701", self.sessions.serve)
        for notice in (self.sessions.notice, self._lost.notice):
            self.rig.database.subscribe(notice)
        self._go("tasks", TaskEngine(self.rig.database, self.rig.operations, self.rig.runtime).run())
        self._go("lost", self._lost.run())
        for scripted in self.rig.nodes.values():
            self.join(scripted)
        await self.until(self._all_in_session)

    def _go(self, name: str, work: Awaitable[None]) -> None:
        async def guarded() -> None:
            with suppress(SkyrackError):
                await work

        self._jobs[name] = asyncio.create_task(guarded())

    def join(self, scripted: ScriptedNode) -> None:
        for kind in KINDS:
            self._go(f"{scripted.node.name}/{kind}", ObedientAgent(self.rig, self._network, scripted, kind).run())

    async def leave(self, scripted: ScriptedNode) -> None:
        for kind in KINDS:
            await self._end(f"{scripted.node.name}/{kind}")

    async def _end(self, name: str) -> None:
        job = self._jobs.pop(name)
        job.cancel()
        with suppress(asyncio.CancelledError):
            await job

    async def stop(self) -> None:
        for name in list(self._jobs):
            await self._end(name)

    async def _all_in_session(self) -> bool:
        return all(self.sessions.connected(n, kind) for n in self.rig.nodes for kind in KINDS)

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(HANG_S):
            while not await condition():  # noqa: ASYNC110 - polled as a client would
                await asyncio.sleep(0.005)

    async def until_state(self, caller: Caller, server_id: str, state: str) -> None:
        async def reached() -> bool:
            try:
                return (await self.servers.get(caller, server_id)).state == state
            except NotFound:
                return state == "gone"

        await self.until(reached)


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    runtime = system_runtime()

    class WallClock:
        @property
        def now_s(self) -> float:
            return runtime.clock.wall_s()

    rig = Rig(tmp_path / "live.db", runtime, WallClock())
    await rig.open()
    async with MemoryNetwork() as network:
        yield (made := Live(rig, network))
        await made.stop()
    await rig.close()


async def test_a_life_in_session(live: Live) -> None:
    tenant = await make_caller(live.rig, "alpha", "member")
    flavor, image = await live.rig.equip(tenant)
    await live.start()
    view = await live.rig.create(tenant, flavor, image)
    server_id = view.server.id
    await live.until_state(tenant, server_id, "ACTIVE")
    timeline = (await live.servers.get(tenant, server_id)).timeline
    assert [m.time for m in timeline] == sorted(m.time for m in timeline) and len(timeline) == 7
    assert await live.servers.console_log(tenant, server_id, 0) == b"login:"
    for verb, state in (("stop", "STOPPED"), ("start", "ACTIVE")):
        await getattr(live.servers, verb)(tenant, server_id)
        await live.until_state(tenant, server_id, state)
    await live.servers.reboot(tenant, server_id, hard=False)
    await live.until_state(tenant, server_id, "ACTIVE")
    await live.servers.delete(tenant, server_id)
    await live.until_state(tenant, server_id, "gone")
    assert await live.rig.leftovers() == {}


async def test_twenty_at_once(live: Live) -> None:
    tenant = await make_caller(live.rig, "alpha", "member")
    flavor, image = await live.rig.equip(tenant, nodes=3)
    await live.start()
    answers = await asyncio.gather(
        *(live.rig.create(tenant, flavor, image, f"s{n}") for n in range(20)), return_exceptions=True
    )
    ids = [a.server.id for a in answers if not isinstance(a, BaseException)]
    assert len(ids) == 10
    for server_id in ids:
        await live.until_state(tenant, server_id, "ACTIVE")
    await asyncio.gather(*(live.servers.delete(tenant, server_id) for server_id in ids))
    for server_id in ids:
        await live.until_state(tenant, server_id, "gone")
    assert await live.rig.leftovers() == {}


async def test_a_node_that_leaves_and_comes_back(live: Live) -> None:
    tenant = await make_caller(live.rig, "alpha", "member")
    flavor, image = await live.rig.equip(tenant, nodes=1)
    [scripted] = live.rig.nodes.values()
    await live.start()
    kept, deleted = [(await live.rig.create(tenant, flavor, image, n)).server.id for n in ("kept", "deleted")]
    for server_id in (kept, deleted):
        await live.until_state(tenant, server_id, "ACTIVE")
    await live.leave(scripted)
    await live.until_state(tenant, kept, "UNKNOWN")
    await live.servers.delete(tenant, deleted)
    await live.until_state(tenant, deleted, "gone")
    assert len(await live.rig.rows("SELECT * FROM tombstone")) == 1 and deleted in scripted.guests
    live.join(scripted)
    await live.until_state(tenant, kept, "ACTIVE")

    async def removed() -> bool:
        return deleted not in scripted.guests and not await live.rig.rows("SELECT * FROM tombstone")

    await live.until(removed)
    assert {row["kind"] for row in await live.rig.rows("SELECT kind FROM event WHERE kind LIKE 'node.%'")} >= {
        "node.lost",
        "node.back",
    }


async def test_a_launch_is_few_commits(live: Live) -> None:
    """The request and each report of its node: what the task does then is in the same commits."""
    tenant = await make_caller(live.rig, "alpha", "member")
    flavor, image = await live.rig.equip(tenant, nodes=3)
    await live.start()

    async def launch() -> int:
        before = live.rig.database.seq
        created = await live.rig.create(tenant, flavor, image)
        await live.until_state(tenant, created.server.id, "ACTIVE")
        return live.rig.database.seq - before

    await launch()
    await asyncio.sleep(0.3)  # until other nodes have heard of it too
    assert await launch() <= 5
