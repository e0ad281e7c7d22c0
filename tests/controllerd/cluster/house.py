"""A small cloud in virtual time whose controller can be killed, and brought back from a backup: real rooms, fake drivers."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from controllerd.app.cloud import Once
from controllerd.app.server import NewServer, Wish
from controllerd.config import ControllerConfig
from controllerd.controller import Controller
from controllerd.domain.page import Page
from controllerd.domain.policy import SYSTEM
from controllerd.leadership.commit_log import LocalLog
from controllerd.restore import restore
from controllerd.terms import Alone
from daemonkit.errors import Unavailable
from daemonkit.runtime import InlineThreads, Runtime
from skyrack.testing.rack import NODES, Rack
from skyrack.testing.virtual import RepeatableLoop, VirtualClock

T = TypeVar("T")
ANEW = Once("", "", "")
CONTENT = b"not a disk that boots" * 100
PATIENCE_S = 300.0


class House:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        home = directory / "c1"
        self.config = ControllerConfig(node="c1", data_dir=home, tls_dir=home / "tls", advertise_agents="c1:7701")
        self.rack = Rack(directory, NODES, ["c1:7701"], self.runtime)
        self._lives = 0
        self.work: asyncio.Task[None] | None = None

    def runtime(self, name: str) -> Runtime:
        return Runtime(VirtualClock(), random.Random(name), lambda _name, _workers: InlineThreads())

    # ---- the controller

    async def start(self) -> None:
        self._lives += 1
        runtime = self.runtime(f"controller-{self._lives}")
        self.controller = Controller(
            self.config, self.config.data_dir / "state.db", LocalLog(), self.rack.blobs, runtime, Alone(self.config, runtime)
        )
        await self.controller.open()
        self.verify, self.cluster = self.controller.verify, self.controller.cluster
        self.work = asyncio.get_running_loop().create_task(self.controller.run())
        await asyncio.sleep(0)
        self.rack.network.listen("c1:7701", self.controller.sessions.serve)

    async def kill(self) -> None:
        """As by SIGKILL: nothing more reaches its file."""
        self.controller.database.refused = Unavailable("killed")
        self.rack.network.close("c1:7701")
        if self.work is not None:
            self.work.cancel()
            await asyncio.gather(self.work, return_exceptions=True)
        await self.controller.close()

    async def backup(self) -> Path:
        path = self.directory / f"backup-{self._lives}"
        with path.open("wb") as file:
            async for chunk in self.cluster.backup(SYSTEM):
                file.write(chunk.data)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == chunk.sha256
        return path

    async def restore(self, file: Path) -> str:
        return await restore(self.config, file, None, self.runtime("restore"), replace=True)

    # ---- asking

    async def rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        return await self.controller.database.read(lambda tx: tx.all(sql, *values))

    async def server(self, server_id: str) -> Any:
        return await self.controller.servers.get(SYSTEM, server_id)

    async def differences(self) -> dict[str, list[str]]:
        """Kind -> resources."""
        found: dict[str, list[str]] = {}
        for item in (await self.verify.compare()).differences:
            found.setdefault(item.kind, []).append(item.resource_id)
        return found

    # ---- doing

    async def prepare(self) -> None:
        cloud = self.controller
        image = await cloud.images.create(SYSTEM, "mini", "raw", True, 0, 0, {}, ANEW)
        self.image = (await cloud.images.upload(SYSTEM, image.id, content_of(CONTENT))).id
        self.flavor = (await cloud.flavors.list(SYSTEM, "m1.tiny", Page(10))).items[0].id
        project = await cloud.identity.create_project(SYSTEM, "alpha", "", ANEW)
        user = await cloud.identity.create_user(SYSTEM, "ann", "correct horse battery", "", ANEW)
        await cloud.identity.grant(SYSTEM, user.id, project.id, "member")
        self.ann = (await cloud.login.issue("ann", "correct horse battery", "alpha", 3600)).caller
        network = await cloud.networks.create(self.ann, "inside", False, False, ANEW)
        self.network = network.network.id
        await cloud.subnets.create(self.ann, self.network, "", "10.1.0.0/24", ANEW)

    async def launch(self, name: str, *volume_ids: str) -> str:
        server_id = await self.order(name, *volume_ids)
        await self.reach(server_id, "ACTIVE")
        return server_id

    async def order(self, name: str, *volume_ids: str) -> str:
        new = NewServer(name, self.flavor, self.image, networks=(Wish(self.network),), volume_ids=volume_ids)
        return str((await self.controller.servers.create(self.ann, new, ANEW)).server.id)

    async def volume(self, name: str) -> str:
        volume_id = str((await self.controller.volumes.create(self.ann, name, 1, "", ANEW)).volume.id)

        async def there() -> bool:
            return bool((await self.controller.volumes.get(self.ann, volume_id)).volume.state == "AVAILABLE")

        await until(there, "the volume")
        return volume_id

    async def delete(self, server_id: str) -> None:
        await self.controller.servers.delete(self.ann, server_id)

        async def gone() -> bool:
            return not await self.rows("SELECT 1 FROM server WHERE id = ?", server_id)

        await until(gone, "the server's end")

    async def reach(self, server_id: str, state: str) -> Any:
        async def there() -> Any:
            view = await self.server(server_id)
            return view if view.state == state else None

        return await until(there, f"server {state}")

    async def released(self) -> None:
        async def free() -> bool:
            return not await self.rows("SELECT 1 FROM hold")

        await until(free, "the release")

    # ---- what the nodes have

    def guests(self) -> dict[str, str]:
        """Server -> state of its domain, on all nodes."""
        return {i: d.state.value for machine in self.rack.machines.values() for i, d in machine.domains.items()}

    def calls(self) -> list[tuple[str, str]]:
        return [call for machine in self.rack.machines.values() for call in machine.calls]

    def taps(self) -> set[str]:
        return {
            link.name for kernel in self.rack.kernels.values() for link in kernel.picture.links.values() if link.kind == "tap"
        }

    def exports(self) -> set[str]:
        return {e.name for store in self.rack.volumes.values() for tags in store.exports.values() for e in tags.values()}


async def content_of(data: bytes) -> AsyncIterator[bytes | str]:
    """As an upload brings it."""
    yield data
    yield hashlib.sha256(data).hexdigest()


async def until(probe: Callable[[], Awaitable[Any]], what: str) -> Any:
    """The first true answer."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not (answer := await probe()):  # noqa: ASYNC110 - virtual time costs nothing
                await asyncio.sleep(0.1)
            return answer
    except TimeoutError:
        raise AssertionError(f"never came: {what}") from None


@asynccontextmanager
async def house(directory: Path) -> AsyncIterator[House]:
    from controllerd.bootstrap import bootstrap

    h = House(directory)
    async with h.rack:
        await bootstrap(h.config, (), directory / "admin.env", h.runtime("bootstrap"))
        await h.start()
        try:
            for node in NODES:
                await h.rack.join(h.controller, node)
                for daemon in h.rack.daemons_of(node):
                    await h.rack.start(daemon)

            async def all_in_session() -> bool:
                return len(await h.rows("SELECT 1 FROM agent WHERE connected = 1")) == 6

            await until(all_in_session, "every agent in session")
            await h.prepare()
            yield h
        finally:
            await h.kill()


def in_virtual_time(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=RepeatableLoop) as runner:
        return runner.run(work())
