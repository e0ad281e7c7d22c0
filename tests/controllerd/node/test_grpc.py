"""AgentService over real mutual TLS: who gets in, and that an agent's end is seen however it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controllerd.agents import telemetry
from controllerd.agents.desired.storage import compile_storage
from controllerd.agents.intake import Intake
from controllerd.agents.observed import storage
from controllerd.agents.session import Sessions, SessionSettings
from controllerd.api.rpc.agent import AgentService
from controllerd.domain.node import Node
from controllerd.store.database import Database
from controllerd.store.node import NODES
from daemonkit import rpc
from daemonkit.errors import Forbidden, Unavailable
from daemonkit.runtime import system_runtime
from daemonkit.tls import TlsFiles
from daemonkit.transport import AgentStream, GrpcDialer
from skyrack.v1 import agent_pb2 as pb
from skyrack.v1 import agent_pb2_grpc
from tests.pki import Pki

LIMIT_S = 60


class Stage:
    def __init__(self, pki: Pki, database: Database, sessions: Sessions, port: int) -> None:
        self.pki, self.database, self.sessions, self.port = pki, database, sessions, port

    async def dial(self, directory: Path, name: str = "s1") -> AgentStream:
        stream = await GrpcDialer(TlsFiles(directory)).dial(f"127.0.0.1:{self.port}")
        await stream.send(pb.AgentMessage(hello=pb.Hello(kind=pb.AGENT_KIND_STORAGED, node=name)))
        return stream

    async def join(self, name: str, *roles: str) -> Path:
        directory = self.pki.node(name, *roles)
        node = Node(f"id-{name}", name, roles, True, str(TlsFiles(directory).identity().serial), 1.0)
        await self.database.write(lambda tx: NODES.insert(tx, node))
        return directory

    async def until_connected(self, wanted: int) -> None:
        changed = asyncio.Event()
        self.database.subscribe(lambda _touched: changed.set())
        sql = "SELECT coalesce(sum(connected), 0) FROM agent"
        async with asyncio.timeout(LIMIT_S):
            while await self.database.read(lambda tx: tx.value(sql)) != wanted:
                await changed.wait()
                changed.clear()


@pytest.fixture
async def stage(database: Database, tmp_path: Path) -> AsyncIterator[Stage]:
    runtime, pki = system_runtime(), Pki(tmp_path / "pki")
    intake = Intake(storage.TAKERS, telemetry.take)
    sessions = Sessions(database, {"storaged": compile_storage}, intake, SessionSettings(lambda: ("c:1",), 1.0, 60.0), runtime)
    database.subscribe(sessions.notice)
    server = rpc.Server(runtime.new_id)
    agent_pb2_grpc.add_AgentServiceServicer_to_server(AgentService(sessions), server.grpc)
    files = TlsFiles(pki.node("controller", "controller"))
    port = server.bind("127.0.0.1:0", files.server(clients_must_show_certificate=True))
    await server.start(["skyrack.v1.AgentService"])
    yield Stage(pki, database, sessions, port)
    await server.stop(0)


async def test_from_hello_to_the_end(stage: Stage) -> None:
    directory = await stage.join("s1", "storage")
    async with asyncio.timeout(LIMIT_S):
        for _ in range(3):
            stream = await stage.dial(directory)
            assert (await stream.receive()).WhichOneof("body") == "welcome"
            assert (await stream.receive()).WhichOneof("body") == "desired"
            await stage.until_connected(1)
            await stream.send(pb.AgentMessage(report=pb.Report(seq=7)))
            assert (await stream.receive()).report_ack.seq == 7
            await stream.close()
            await stage.until_connected(0)


async def test_a_newer_session_ends_the_older(stage: Stage) -> None:
    directory = await stage.join("s1", "storage")
    async with asyncio.timeout(LIMIT_S):
        older = await stage.dial(directory)
        await older.receive()
        newer = await stage.dial(directory)
        await newer.receive()
        with pytest.raises(Unavailable, match="newer"):
            while True:
                await older.receive()
        await stage.until_connected(1)
        await newer.close()
        await older.close()
        await stage.until_connected(0)


async def test_who_is_not_let_in(stage: Stage, tmp_path: Path) -> None:
    await stage.join("s1", "storage")
    replaced = stage.pki.node("s1", "storage")  # made after the one that the store knows
    compute = await stage.join("k1", "compute")
    unknown = stage.pki.node("u1", "storage")
    async with asyncio.timeout(LIMIT_S):
        for directory, name in ((replaced, "s1"), (compute, "k1"), (compute, "s1"), (unknown, "u1")):
            stream = await stage.dial(directory, name)
            with pytest.raises(Forbidden):
                await stream.receive()
            await stream.close()
        stranger = Pki(tmp_path / "other").node("s1", "storage")
        (stranger / "ca.pem").write_bytes((unknown / "ca.pem").read_bytes())
        with pytest.raises(Unavailable):
            stream = await stage.dial(stranger)
            await stream.receive()
    await stage.until_connected(0)
