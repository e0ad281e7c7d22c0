"""Where a controller sits: its files, its address among the agents, and whoever leads there now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from controllerd.agents.blob import BlobStore
from controllerd.bootstrap import bootstrap
from controllerd.config import ControllerConfig
from controllerd.controller import Controller
from controllerd.leadership.commit_log import CommitLog, LocalLog
from controllerd.leadership.elector import Elector, Term
from controllerd.leadership.follower import FetchSnapshot, Follower
from controllerd.leadership.kv import Kv
from controllerd.leadership.lease import LeaseSettings
from controllerd.leadership.member import Member
from controllerd.leadership.replicated_log import ReplicatedLog
from controllerd.store.replica import Replica
from daemonkit.errors import NotLeader
from daemonkit.memory import MemoryNetwork
from daemonkit.runtime import Runtime
from daemonkit.tls import Identity
from daemonkit.transport import ControllerStream


class Seat:
    """`alone` or `contend` is the life of a process here. `controller` is what a front would call, None while none leads.

    A process that is killed has no time to leave: whoever kills it makes a new seat for the next one.
    """

    def __init__(
        self, home: Path, name: str, network: MemoryNetwork, blobs: BlobStore, runtime: Runtime, address: str = ""
    ) -> None:
        """`address`: where agents reach it in `network`."""
        self.address = address or f"{name}:7701"
        self.config = ControllerConfig(node=name, data_dir=home, tls_dir=home / "tls", advertise_agents=self.address)
        self.state = home / "state.db"
        self._network, self._blobs, self._runtime = network, blobs, runtime
        self.controller: Controller | None = None
        self.leading = asyncio.Event()
        self.term: Term | None = None
        self.elector: Elector | None = None
        self.replica: Replica | None = None

    async def bootstrap(self, admin_env: Path) -> None:
        await bootstrap(self.config, (), admin_env, self._runtime)

    async def alone(self) -> None:
        """Leads until cancelled. Errors: what ends writing."""
        await self._lead(LocalLog(), asyncio.Event())

    async def contend(self, kv: Kv, fetch_snapshot: FetchSnapshot) -> None:
        """Follows, campaigns and leads until cancelled. Errors: as `Elector.run`."""
        settings = LeaseSettings(self.config.cluster.lease_ttl_s, self.config.cluster.lease_margin_s)
        self.replica = Replica(self.state, self._runtime)
        follower = Follower(kv, self.replica, fetch_snapshot, self._runtime, self.state.with_name("incoming.db"))
        self.elector = Elector(kv, self._me, follower, settings, self._runtime)

        async def lead(term: Term) -> None:
            self.term = term
            try:
                log = ReplicatedLog(kv, term.leader_revision, term.lease, settings, self._runtime)
                await self._lead(log, term.ending)
            finally:
                self.term = None

        self._network.listen(self.address, self._redirect)
        await self.elector.run(lead)

    async def _lead(self, commit_log: CommitLog, ending: asyncio.Event) -> None:
        controller = Controller(self.config, self.state, commit_log, self._blobs, self._runtime)
        await controller.open()
        work, told = asyncio.ensure_future(controller.run()), asyncio.ensure_future(ending.wait())
        try:
            await asyncio.sleep(0)  # what it writes first is the first to be written
            async with self._answering(controller):
                await asyncio.wait([work, told], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            work.cancel()
            told.cancel()
            await asyncio.wait([work])
            await controller.close()

    @asynccontextmanager
    async def _answering(self, controller: Controller) -> AsyncIterator[None]:
        self._network.listen(self.address, controller.sessions.serve)
        self.controller = controller
        self.leading.set()
        try:
            yield
        finally:
            self.controller = None
            self.leading.clear()
            self._network.close(self.address)
            if self.elector is not None:
                self._network.listen(self.address, self._redirect)

    async def _redirect(self, _stream: ControllerStream, _peer: Identity) -> None:
        leader = self.elector.leader if self.elector else None
        raise NotLeader(leader.agents if leader else "", 0)

    def _me(self) -> Member:
        seq = self.controller.database.seq if self.controller else self.replica.position.seq if self.replica else 0
        return Member(self.config.node, "", self.address, "test", 0, seq, self._runtime.clock.wall_s())
