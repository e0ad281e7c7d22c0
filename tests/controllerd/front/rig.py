"""Controllers that take turns in leading one cloud: real fronts on 127.0.0.1, real terms over one database file.

Who leads is what the test says: `elect`, `resign`, `kill`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc

from controllerd.api.rpc.agent import AgentService
from controllerd.config import AgentsConfig, ControllerConfig
from controllerd.controller import Controller
from controllerd.daemon import public_services
from controllerd.domain import node as domain
from controllerd.leadership.commit_log import LocalLog
from controllerd.leadership.member import Member
from controllerd.peers.forward import ForwardSettings
from controllerd.peers.front import Front, FrontSettings
from controllerd.peers.service import PeerService
from controllerd.store.node import NODES
from controllerd.terms import Alone
from daemonkit import rpc
from daemonkit.ledger import Ledger
from daemonkit.metrics import REFUSED_PEERS
from daemonkit.runtime import Runtime
from daemonkit.session import Session, SessionSettings
from daemonkit.tls import TlsFiles
from daemonkit.transport import GrpcDialer
from skyrack.client import Cloud, Patience
from skyrack.v1 import agent_pb2_grpc, peer_pb2_grpc
from tests.controllerd.api.rig import BlobsInMemory
from tests.controllerd.identity.conftest import PASSWORD, people
from tests.controllerd.node.rig import Storage
from tests.pki import Pki

LIMIT_S = 60
PUBLIC = [
    f"skyrack.v1.{noun}Service"
    for noun in (
        "Identity", "Node", "Quota", "Task", "Event", "Flavor", "Keypair", "Image", "Server", "Network", "Router",
        "SecurityGroup", "Volume",
    )
]  # fmt: skip


class Election:
    """What every controller sees of who leads."""

    def __init__(self) -> None:
        self._leader: Member | None = None
        self._changed = asyncio.Event()

    @property
    def leader(self) -> Member | None:
        return self._leader

    async def changed(self) -> None:
        await self._changed.wait()

    def tell(self, leader: Member | None) -> None:
        self._leader = leader
        self._changed.set()
        self._changed = asyncio.Event()


@dataclass
class Node:
    """One controller."""

    name: str
    front: Front
    running: asyncio.Task[None]
    term: AsyncExitStack = field(default_factory=AsyncExitStack)
    controller: Controller | None = None

    @property
    def api(self) -> str:
        return f"127.0.0.1:{self.front.api_port}"

    @property
    def member(self) -> Member:
        return Member(self.name, self.api, f"127.0.0.1:{self.front.agents_port}", "0", 1)


class Rack:
    def __init__(self, path: Path, runtime: Runtime, forward: ForwardSettings) -> None:
        self.path, self.runtime, self.forward = path, runtime, forward
        self.pki = Pki(path / "pki")
        self.election = Election()
        self.nodes: dict[str, Node] = {}
        self.tokens: dict[str, str] = {}
        self.blobs = BlobsInMemory()
        self.config = ControllerConfig(data_dir=path, agents=AgentsConfig(2.0, 20.0, 20.0))
        self.stack = AsyncExitStack()

    @property
    def ca(self) -> Path:
        return next(iter((self.path / "pki").glob("*/ca.pem")))

    def tls(self, name: str, role: str = "controller") -> TlsFiles:
        return TlsFiles(self.pki.node(name, role))

    async def add(self, name: str) -> Node:
        settings = FrontSettings("127.0.0.1:0", "127.0.0.1:0", self.forward)
        front = Front(self.election, settings, PUBLIC, self.tls(name), self.runtime)
        await front.start()
        node = self.nodes[name] = Node(name, front, asyncio.create_task(front.run()))
        self.stack.push_async_callback(self._remove, node)
        return node

    async def _remove(self, node: Node) -> None:
        await node.term.aclose()
        await node.front.stop(0)
        await ended(node.running)

    async def elect(self, name: str, address: str = "") -> Node:
        """A term of this controller: its rooms, its services, and then the news; `address`: said to be its own for agents."""
        node, state = self.nodes[name], self.path / "state.db"
        config = replace(self.config, advertise_agents=node.member.agents)
        controller = Controller(config, state, LocalLog(), self.blobs, self.runtime, Alone(config, self.runtime))
        if not (self.path / "ca").exists():
            controller.authority.create()
        await controller.open()
        node.term, node.controller = AsyncExitStack(), controller
        node.term.push_async_callback(controller.close)
        running = asyncio.create_task(controller.run())
        node.term.push_async_callback(ended, running)
        if not self.tokens:
            hashed = await controller.passwords.hash(PASSWORD)
            self.tokens = await controller.database.write(lambda tx: people(tx, hashed))
        peers = PeerService(self._snapshot, self.runtime)
        inner = {
            "skyrack.v1.AgentService": (
                agent_pb2_grpc.add_AgentServiceServicer_to_server, AgentService(controller.sessions),
            ),
            "skyrack.v1.PeerService": (peer_pb2_grpc.add_PeerServiceServicer_to_server, peers),
        }  # fmt: skip
        node.term.callback(peers.close)
        await node.term.enter_async_context(node.front.lead(public_services(controller), inner))
        self.election.tell(replace(node.member, agents=address or node.member.agents))
        return node

    async def join(self, name: str, *roles: str) -> Path:
        """A node that the leader knows; gives its certificate files."""
        controller = next(node.controller for node in self.nodes.values() if node.controller)
        directory = self.pki.node(name, *roles)
        row = domain.Node(f"id-{name}", name, roles, True, str(TlsFiles(directory).identity().serial), 1.0)
        await controller.database.write(lambda tx: NODES.insert(tx, row))
        return directory

    async def agent(self, name: str) -> Session:
        """A storage node that dials all controllers, until the test ends."""
        directory = await self.join(name, "storage")
        ledger = Ledger(self.path / f"{name}.ledger", self.runtime)
        await ledger.open()
        self.stack.push_async_callback(ledger.close)
        agent, dialer = Storage(), GrpcDialer(TlsFiles(directory))
        agent.free_bytes = 1 << 40
        controllers = tuple(node.member.agents for node in self.nodes.values())
        session = Session(agent, SessionSettings(name, controllers, "boot"), dialer, ledger, self.runtime)
        await session.restore()
        self.stack.push_async_callback(ended, asyncio.create_task(session.run()))
        return session

    async def _snapshot(self) -> tuple[int, Path]:
        path = self.path / "snapshot.tmp"
        path.write_bytes((self.path / "snapshot").read_bytes())
        return 42, path

    async def resign(self, name: str) -> None:
        """The term ends in good order; nobody leads."""
        self.election.tell(None)
        node = self.nodes[name]
        await node.term.aclose()
        node.controller = None

    async def kill(self, name: str) -> None:
        """Its connections break, then nobody leads."""
        node = self.nodes.pop(name)
        await node.front.stop(0)
        self.election.tell(None)
        await node.term.aclose()

    def client(self, *nodes: Node, patience: Patience | None = None) -> Cloud:
        return Cloud.connect(
            [node.api for node in nodes], ca=self.ca, user="alpha-member", password=PASSWORD, project="alpha",
            patience=patience, environ={},
        )  # fmt: skip

    @asynccontextmanager
    async def channel(self, address: str, tls: TlsFiles | None = None) -> AsyncIterator[grpc.aio.Channel]:
        """To a public address, or with certificates to one for agents."""
        credentials = tls.client() if tls else grpc.ssl_channel_credentials(self.ca.read_bytes())
        async with rpc.channel(address, credentials) as channel:
            yield channel

    @contextmanager
    def refused(self, why: str) -> Iterator[None]:
        """Inside, exactly one peer is refused for `why`."""

        def count() -> float:
            return float(REFUSED_PEERS.labels(why)._value.get())

        before = count()
        yield
        assert count() == before + 1


async def ended(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@asynccontextmanager
async def rack(path: Path, runtime: Runtime, *names: str, forward: ForwardSettings | None = None) -> AsyncIterator[Rack]:
    made = Rack(path, runtime, forward or ForwardSettings(hold_max_s=10.0))
    try:
        for name in names:
            await made.add(name)
        async with asyncio.timeout(LIMIT_S):
            yield made
    finally:
        await made.stack.aclose()
