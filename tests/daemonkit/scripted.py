"""An agent and a controller that do what a test scripts, joined by the network in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from daemonkit.desired import Mirror, encode, key_of, state_hash
from daemonkit.errors import NotFound
from daemonkit.ledger import Ledger
from daemonkit.memory import MemoryNetwork
from daemonkit.session import Session, SessionSettings
from daemonkit.tls import Identity
from daemonkit.transport import ControllerStream
from skyrack.v1 import agent_pb2
from tests.daemonkit import virtual

PEER = Identity("node-1", frozenset({"compute"}), 1)
Body = agent_pb2.AgentMessage


class ScriptedAgent:
    kind = agent_pb2.AGENT_KIND_COMPUTED
    version = "test"

    def __init__(self) -> None:
        self.seen: list[tuple[int, set[str]]] = []
        self.ran: list[str] = []
        self.finish = asyncio.Event()
        self.broken_inventories = 0

    async def inventory(self) -> agent_pb2.Inventory:
        if self.broken_inventories:
            self.broken_inventories -= 1
            raise KeyError("a bug")
        return agent_pb2.Inventory(address="127.0.0.1:7720")

    def desired_changed(self, mirror: Mirror, changed: set[str]) -> None:
        self.seen.append((mirror.generation, changed))

    def observe(self) -> list[agent_pb2.ObservedObject]:
        return [agent_pb2.ObservedObject(id="a")]

    async def run_task(self, task: agent_pb2.Task) -> agent_pb2.TaskResult:
        self.ran.append(task.task_id)
        match task.reboot_server.server_id:
            case "slow":
                await self.finish.wait()
            case "bug":
                raise ZeroDivisionError
            case "none":
                raise NotFound("server", "none")
        return agent_pb2.TaskResult(ok=True)

    async def answer(self, query: agent_pb2.Query) -> bytes:
        if query.read_console_log.server_id == "bug":
            raise ZeroDivisionError
        return b"log"


class Controller:
    """Takes what comes, by kind; acknowledges reports unless told not to; tests push what they like."""

    def __init__(self, epoch: int = 1, nodes: int = 1, controllers: Sequence[str] = ()) -> None:
        self.epoch, self.nodes, self.controllers = epoch, nodes, controllers
        self.messages: list[Body] = []
        self.sessions: list[ControllerStream] = []
        self.hellos: list[agent_pb2.Hello] = []
        self.acknowledge = True
        self.on_telemetry: Callable[[agent_pb2.Telemetry], Awaitable[None]] | None = None

    async def serve(self, stream: ControllerStream, peer: Identity) -> None:
        assert peer == PEER
        self.hellos.append((await stream.receive()).hello)
        welcome = agent_pb2.Welcome(heartbeat_interval_ms=1000, nodes=self.nodes, controllers=self.controllers)
        await stream.send(agent_pb2.ControllerMessage(epoch=self.epoch, welcome=welcome))
        self.sessions.append(stream)
        while True:
            message = await stream.receive()
            self.messages.append(message)
            kind = message.WhichOneof("body")
            if self.acknowledge and kind == "report":
                await self.push(report_ack=agent_pb2.ReportAck(seq=message.report.seq))
            if self.acknowledge and kind == "task_result":
                await self.push(report_ack=agent_pb2.ReportAck(task_ids=[message.task_result.task_id]))
            if kind == "telemetry" and self.on_telemetry:
                await self.on_telemetry(message.telemetry)

    async def push(self, epoch: int = 0, **body: object) -> None:
        await self.sessions[-1].send(agent_pb2.ControllerMessage(epoch=epoch or self.epoch, **body))  # type: ignore[arg-type]

    def of(self, kind: str) -> list[Body]:
        return [m for m in self.messages if m.WhichOneof("body") == kind]


class House:
    def __init__(self, path: Path, *addresses: str) -> None:
        self.network = MemoryNetwork()
        self.agent = ScriptedAgent()
        self.runtime = virtual.runtime()
        self.ledger = Ledger(path / "ledger.db", self.runtime)
        settings = SessionSettings("node-1", addresses or ("c1:1",), "boot")
        self.session = Session(self.agent, settings, self.network.dialer(PEER), self.ledger, self.runtime)


@asynccontextmanager
async def house(path: Path, *addresses: str) -> AsyncIterator[House]:
    h = House(path, *addresses)
    await h.ledger.open()
    await h.session.restore()
    async with h.network:
        running = asyncio.get_running_loop().create_task(h.session.run())
        try:
            yield h
        finally:
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            await h.ledger.close()


def server(name: str, cpus: int = 1) -> agent_pb2.DesiredObject:
    return agent_pb2.DesiredObject(id=name, server=agent_pb2.ServerSpec(name=name, vcpus=cpus))


def delta(base: int, generation: int, held: list[agent_pb2.DesiredObject], **parts: object) -> agent_pb2.DesiredState:
    digest = state_hash({key_of(spec): encode(spec) for spec in held})
    return agent_pb2.DesiredState(base=base, generation=generation, hash=digest, **parts)  # type: ignore[arg-type]


def task(name: str, server_id: str = "fine") -> agent_pb2.Task:
    return agent_pb2.Task(task_id=name, reboot_server=agent_pb2.RebootServer(server_id=server_id))


def samples(count: int) -> list[agent_pb2.Sample]:
    return [agent_pb2.Sample(server_id="s", cpu_ns=n) for n in range(count)]
