"""Where a controller sits: its files and its address. It can be stopped, killed and started again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from controllerd.agents.blob import BlobStore
from controllerd.bootstrap import bootstrap
from controllerd.config import ControllerConfig
from controllerd.controller import Controller
from controllerd.leadership.commit_log import LocalLog
from daemonkit.errors import Unavailable
from daemonkit.memory import MemoryNetwork
from daemonkit.runtime import Runtime
from skyrack.testing.daemon import Daemon


class Seat:
    """`controller` is the one that lives now: what a gRPC front would call."""

    def __init__(
        self, directory: Path, address: str, network: MemoryNetwork, blobs: BlobStore, runtime: Callable[[str], Runtime]
    ) -> None:
        """`address`: where agents reach it in `network`."""
        home = directory / "controller"
        self.config = ControllerConfig(data_dir=home, tls_dir=home / "tls", advertise_agents=address)
        self.admin_env = directory / "admin.env"
        self._address, self._network, self._blobs, self._runtime = address, network, blobs, runtime
        self._starts = 0
        self.controller: Controller

    async def bootstrap(self) -> None:
        await bootstrap(self.config, (), self.admin_env, self._runtime("bootstrap"))

    async def start(self) -> None:
        self._starts += 1
        runtime, state = self._runtime(f"controller-{self._starts}"), self.config.data_dir / "state.db"
        self.controller = Controller(self.config, state, LocalLog(), self._blobs, runtime)
        await self.controller.open()
        self._running = Daemon(self.controller.run())
        await asyncio.sleep(0)
        self._network.listen(self._address, self.controller.sessions.serve)

    async def stop(self) -> None:
        """What it has begun to write is written."""
        self._network.close(self._address)
        await self._running.kill()
        await self.controller.close()

    async def kill(self) -> None:
        """As by SIGKILL: nothing more reaches its file, nobody is told."""
        self.controller.database.refused = Unavailable("killed")
        self._network.close(self._address)
        await self._running.kill()
