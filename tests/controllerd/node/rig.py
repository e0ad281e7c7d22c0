"""Sessions over the network in memory under a virtual clock: the real controller's end and the real agent's end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

from controllerd.agents import telemetry
from controllerd.agents.desired.storage import compile_storage
from controllerd.agents.intake import Intake
from controllerd.agents.observed import storage
from controllerd.agents.session import Sessions, SessionSettings
from controllerd.domain.node import Node
from controllerd.leadership.commit_log import LocalLog
from controllerd.store.database import Database, Tx
from controllerd.store.node import NODES, agents
from daemonkit.desired import Mirror
from daemonkit.ledger import Ledger
from daemonkit.memory import MemoryNetwork
from daemonkit.runtime import Clock
from daemonkit.session import Session
from daemonkit.session import SessionSettings as AgentSettings
from daemonkit.tls import Identity
from skyrack.v1 import agent_pb2 as pb
from tests.daemonkit import virtual

ADDRESS = "c1:7701"
VOLUME = "INSERT INTO volume VALUES (?, 'v', 'p', 5, 'AVAILABLE', '', '', '', 0, 0, ?, 0, '', '', ?, '', '', 0)"


class Storage:
    """An agent that shows what it is told and tells what a test wants."""

    kind = pb.AGENT_KIND_STORAGED
    version = "test"

    def __init__(self) -> None:
        self.changes: list[set[str]] = []
        self.mirror = Mirror()
        self.observed: list[pb.ObservedObject] = []
        self.ran: list[str] = []
        self.free_bytes = 1
        self.answers = asyncio.Event()
        self.answers.set()

    async def inventory(self) -> pb.Inventory:
        inventory = pb.Inventory(address="10.0.0.9:7730")
        inventory.storage.images_free_bytes, inventory.storage.volumes_total_gib = self.free_bytes, 100
        return inventory

    def desired_changed(self, mirror: Mirror, changed: set[str]) -> None:
        self.mirror = mirror
        if changed:
            self.changes.append(changed)

    def observe(self) -> list[pb.ObservedObject]:
        return self.observed

    async def run_task(self, task: pb.Task) -> pb.TaskResult:
        self.ran.append(task.task_id)
        return pb.TaskResult(ok=True)

    async def answer(self, query: pb.Query) -> bytes:
        await self.answers.wait()
        return b"log of " + query.read_console_log.server_id.encode()


class House:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.runtime = virtual.runtime()
        self.network = MemoryNetwork()
        self.database = Database(path / "state.db", LocalLog(), self.runtime)
        settings = SessionSettings(lambda: (ADDRESS,), 2.0, 6.0)
        compilers = dict.fromkeys(("storaged", "computed", "networkd"), compile_storage)
        self.intake = Intake(storage.TAKERS, telemetry.take)
        self.sessions = Sessions(self.database, compilers, self.intake, settings, self.runtime)
        self.stack = AsyncExitStack()

    async def join(self, name: str, serial: int = 1, roles: tuple[str, ...] = ("storage",)) -> Node:
        node = Node(f"id-{name}", name, roles, True, str(serial), 1.0)
        await self.database.write(lambda tx: NODES.insert(tx, node))
        return node

    async def start(
        self, agent: Storage, name: str, identity: Identity | None = None, ledger: str = "", boot: str = "boot",
        clock: Clock | None = None,
    ) -> Session:  # fmt: skip
        """Dials until the house ends (or `stop`). `clock`: of its machine, that of the house by default."""
        book = Ledger(self.path / f"{ledger or name}.ledger", self.runtime)
        await book.open()
        self.stack.push_async_callback(book.close)
        identity = identity or Identity(name, frozenset({"storage"}), 1)
        runtime = replace(self.runtime, clock=clock or self.runtime.clock)
        session = Session(agent, AgentSettings(name, (ADDRESS,), boot), self.network.dialer(identity), book, runtime)
        await session.restore()
        running = asyncio.get_running_loop().create_task(session.run())
        session.stop = lambda: _stop(running)  # type: ignore[attr-defined]
        self.stack.push_async_callback(_stop, running)
        return session

    async def volume(self, volume_id: str, node: Node) -> None:
        def insert(tx: Tx) -> None:
            tx.run(VOLUME, volume_id, node.id, tx.now)
            tx.touch(node.id)

        await self.database.write(insert)

    async def row(self, sql: str, *values: object) -> object:
        return await self.database.read(lambda tx: tx.value(sql, *values))

    async def connected(self, node: Node) -> bool:
        found = await self.database.read(lambda tx: agents(tx, [node.id]).get(node.id, []))
        assert [a.connected for a in found] == [self.sessions.connected(node.id, "storaged")]
        return found[0].connected

    async def rejoin(self, node: Node, serial: int) -> Node:
        def change(tx: Tx) -> None:
            NODES.update(tx, node.id, certificate_serial=str(serial))
            tx.touch(node.id)

        await self.database.write(change)
        return replace(node, certificate_serial=str(serial))


async def _stop(running: asyncio.Task[None]) -> None:
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


@asynccontextmanager
async def house(path: Path) -> AsyncIterator[House]:
    h = House(path)
    await h.database.open()
    commits = asyncio.get_running_loop().create_task(h.database.run())
    h.database.subscribe(h.sessions.notice)
    try:
        async with h.network:
            h.network.listen(ADDRESS, h.sessions.serve)
            async with h.stack:
                yield h
    finally:
        commits.cancel()
        await asyncio.wait([commits])
        await h.database.close()
