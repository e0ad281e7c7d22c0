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
from controllerd.leadership.follower import FetchSnapshot
from controllerd.leadership.kv import Kv
from controllerd.terms import Alone, Contender
from daemonkit.errors import NotLeader
from daemonkit.memory import MemoryNetwork
from daemonkit.runtime import Runtime
from daemonkit.tls import Identity
from daemonkit.transport import ControllerStream


class Seat:
    """`run` is the life of a process here. `controller` is what a front would call, None while this one does not lead.

    A process that is killed has no time to leave: whoever kills it makes a new seat for the next one.
    """

    def __init__(self, home: Path, address: str, network: MemoryNetwork, blobs: BlobStore, runtime: Runtime) -> None:
        """`address`: "name:port", where agents reach it in `network`."""
        name, _, _port = address.partition(":")
        self.config = ControllerConfig(node=name, data_dir=home, tls_dir=home / "tls", advertise_agents=address)
        self._state = home / "state.db"
        self._address, self._network, self._blobs, self._runtime = address, network, blobs, runtime
        self.terms: Alone | Contender = Alone(self.config, runtime)
        self.commit_log: CommitLog = LocalLog()  # of the present term, or the last one
        self.controller: Controller | None = None
        self.leading = asyncio.Event()

    def contend(self, kv: Kv, fetch_snapshot: FetchSnapshot) -> Contender:
        """Before `run`: there are others."""
        contender = Contender(self.config, self._state, kv, fetch_snapshot, self._runtime)
        self.terms = contender
        return contender

    async def bootstrap(self, admin_env: Path) -> None:
        """What must be there before the first life."""
        await bootstrap(self.config, (), admin_env, self._runtime)

    async def run(self) -> None:
        """Until cancelled. Errors: as those of the terms."""
        self._network.listen(self._address, self._redirect)
        try:
            await self.terms.run(self._build, self._answering)
        finally:
            self._network.close(self._address)

    def _build(self, commit_log: CommitLog) -> Controller:
        self.commit_log = commit_log
        state = self._state
        return Controller(self.config, state, commit_log, self._blobs, self._runtime, self.terms)

    @asynccontextmanager
    async def _answering(self, controller: Controller) -> AsyncIterator[None]:
        self._network.listen(self._address, controller.sessions.serve)
        self.controller = controller
        self.leading.set()
        try:
            yield
        finally:
            self.controller = None
            self.leading.clear()
            self._network.close(self._address)
            self._network.listen(self._address, self._redirect)

    async def _redirect(self, _stream: ControllerStream, _peer: Identity) -> None:
        leader = self.terms.leader
        raise NotLeader(leader.agents if leader else "", 0)
