"""A whole cloud in one process: every daemon as its composition root builds it, in virtual time, under one seed.

Real are the daemons, the store on its file, the ledgers and the image store; fake are what they drive (the drivers that ship)
and what lies between them (`daemonkit.memory`). Each daemon has randomness of its own, drawn from the seed and its name, so
that what one of them draws does not change what the others get.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from computed.config import Config as ComputedConfig
from computed.daemon import Computed, xml_settings
from computed.drivers.fake import FakeHypervisor, FakeMachine, FakeStore
from controllerd.agents.blob import Stored
from controllerd.bootstrap import bootstrap
from controllerd.config import ControllerConfig
from controllerd.controller import Controller
from controllerd.domain.policy import SYSTEM
from controllerd.leadership.commit_log import LocalLog
from daemonkit import tls
from daemonkit.errors import Unavailable
from daemonkit.ledger import Ledger
from daemonkit.memory import Link, MemoryNetwork
from daemonkit.runtime import InlineThreads, Runtime
from networkd.daemon import Config as NetworkdConfig
from networkd.daemon import GatewayConfig, Networkd
from networkd.drivers.fake import FakeDriver
from networkd.spec.desired import Node
from storaged.config import Config as StoragedConfig
from storaged.daemon import Storaged
from storaged.drivers.fake import FakeVolumes
from storaged.images.store import ImageStore
from storaged.spec import Image
from tests.daemonkit.virtual import VirtualClock, VirtualLoop

CONTROLLER = "controller:7701"
STORAGE = "s1"
NODES = {"k1": ("compute", "edge"), "k2": ("compute", "edge"), "g1": ("edge", "gateway"), STORAGE: ("storage",)}
DELAY_S_MAX = 0.005
ROOM_BYTES = 1 << 40


class _Numbered:
    """Sets of tasks and futures (asyncio has some) are walked in an order that the memory's addresses have no part in."""

    _number = 0

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _Task(_Numbered, asyncio.Task):  # type: ignore[type-arg]
    pass


class _Future(_Numbered, asyncio.Future):  # type: ignore[type-arg]
    pass


class RepeatableLoop(VirtualLoop):
    """Virtual time, and the same order of everything each time."""

    def __init__(self) -> None:
        super().__init__()
        self._made = 0
        self.set_task_factory(self._task)

    def _next(self) -> int:
        self._made += 1
        return self._made

    def _task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> Any:
        task = _Task.__new__(_Task)
        task._number = self._next()
        task.__init__(work, loop=loop, **options)  # type: ignore[misc]
        return task

    def create_future(self) -> asyncio.Future[Any]:
        future = _Future(loop=self)
        future._number = self._next()
        return future


class Daemon:
    """One that runs, and can be killed and started again."""

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.get_running_loop().create_task(work)

    async def kill(self) -> None:
        """Errors: what it has died of by itself."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()


class Rack:
    """`async with Rack(directory, seed).up() as rack`; then `rack.controller` is what a gRPC front would call.

    `dice` are the story's: when things happen that are nobody's decision.
    """

    def __init__(self, directory: Path, seed: int) -> None:
        self._directory, self._seed = directory, seed
        self._daemons: dict[str, Daemon] = {}
        self.dice = random.Random(f"{seed}/story")
        self.network = MemoryNetwork()
        self.machines: dict[str, FakeMachine] = {}
        self.kernels: dict[str, FakeDriver] = {}
        self.networkds: dict[str, Networkd] = {}
        self.peers: dict[str, tls.Identity] = {}
        self._controllers = 0

    def runtime(self, name: str) -> Runtime:
        return Runtime(VirtualClock(), random.Random(f"{self._seed}/{name}"), lambda _name, _workers: InlineThreads())

    @asynccontextmanager
    async def up(self) -> AsyncIterator[Rack]:
        async with self.network, AsyncExitStack() as stack:
            self._stack = stack
            await self._bootstrap()
            await self.start_controller()
            stack.push_async_callback(self.kill_controller)
            for name, roles in NODES.items():
                await self._join(name, roles)
                if "edge" in roles:
                    await self._start_networkd(name, gateway="gateway" in roles)
                if "compute" in roles:
                    await self.start_computed(name)
                if "storage" in roles:
                    await self._start_storaged(name)
            yield self

    def _run(self, daemon: str, work: Coroutine[Any, Any, None]) -> None:
        self._daemons[daemon] = Daemon(work)
        self._stack.push_async_callback(self._daemons[daemon].kill)

    # ---- controllerd

    async def _bootstrap(self) -> None:
        home = self._directory / "controller"
        self._config = ControllerConfig(data_dir=home, tls_dir=home / "tls", advertise_agents=CONTROLLER)
        await bootstrap(self._config, (), self._directory / "admin.env", self.runtime("bootstrap"))

    async def start_controller(self) -> None:
        self._controllers += 1
        runtime = self.runtime(f"controller-{self._controllers}")
        state = self._config.data_dir / "state.db"
        self.controller = Controller(self._config, state, LocalLog(), MemoryBlobs(self), runtime)
        await self.controller.open()
        self._controlling = Daemon(self.controller.run())
        await asyncio.sleep(0)
        self.network.listen(CONTROLLER, self.controller.sessions.serve)

    async def kill_controller(self) -> None:
        """As by SIGKILL: nothing more reaches its file, nobody is told."""
        self.controller.database.refused = Unavailable("killed")
        self.network.close(CONTROLLER)
        await self._controlling.kill()

    # ---- the nodes

    def link(self, node: str) -> Link:
        return self.network.link(node, CONTROLLER)

    async def _join(self, name: str, roles: tuple[str, ...]) -> None:
        """As `skyrack-join` does it, but for the wire."""
        token, _expiry = await self.controller.nodes.create_join_token(SYSTEM, name, roles, 0)
        key = tls.new_key()
        joined = await self.controller.nodes.join(_secret_of(token), name, tls.request(key, name, ["127.0.0.1"]))
        self.peers[name] = tls.identity_of(joined.certificate_pem)
        self.link(name).delay_s = self.dice.uniform(0.0, DELAY_S_MAX)

    async def _ledger(self, name: str, runtime: Runtime) -> Ledger:
        ledger = Ledger(self._directory / name / "ledger.db", runtime)
        await ledger.open()
        self._stack.push_async_callback(ledger.close)
        return ledger

    async def _start_networkd(self, name: str, *, gateway: bool) -> None:
        runtime, home = self.runtime(f"networkd-{name}"), self._directory / f"networkd-{name}"
        offered = GatewayConfig(enabled=gateway, external_device="wan" if gateway else "")
        vtep = f"10.9.0.{1 + list(NODES).index(name)}"
        settings = NetworkdConfig(node=name, controllers=[CONTROLLER], data_dir=home, vtep=vtep, driver="fake", gateway=offered)
        driver = self.kernels[name] = FakeDriver(runtime, offered.external_device)
        ledger = await self._ledger(f"networkd-{name}", runtime)
        node, dialer = Node(name, vtep, settings.underlay_mtu, offered.external_device), self.network.dialer(self.peers[name])
        networkd = self.networkds[name] = Networkd(settings, node, driver, ledger, dialer, runtime, "boot-1")
        self._run(f"networkd-{name}", networkd.run())

    async def start_computed(self, name: str) -> None:
        """Again on the same machine after `kill`: guests and files are as they were."""
        runtime, home = self.runtime(f"computed-{name}"), self._directory / f"computed-{name}"
        settings = ComputedConfig(node=name, controllers=[CONTROLLER], data_dir=home, driver="fake", virt_type="qemu")
        machine = self.machines.setdefault(name, FakeMachine(runtime))
        hypervisor, store = FakeHypervisor(machine, xml_settings(settings)), FakeStore(machine)
        ledger, dialer = await self._ledger(f"computed-{name}", runtime), self.network.dialer(self.peers[name])
        computed = Computed(settings, hypervisor, store, ledger, dialer, runtime, "boot-1")
        self._run(f"computed-{name}", computed.run())

    async def _start_storaged(self, name: str) -> None:
        runtime, home = self.runtime(f"storaged-{name}"), self._directory / f"storaged-{name}"
        settings = StoragedConfig(node=name, controllers=[CONTROLLER], data_dir=home, driver="fake")
        self.volumes = FakeVolumes(runtime, delay_s_max=0.05)
        self.images = ImageStore(home / "images", 0, runtime, lambda _directory: ROOM_BYTES)
        await self.images.open()
        ledger, dialer = await self._ledger(f"storaged-{name}", runtime), self.network.dialer(self.peers[name])
        storaged = Storaged(settings, self.volumes, self.images, _no_other_node, ledger, dialer, runtime, "boot-1")
        self._run(f"storaged-{name}", storaged.run())

    async def kill(self, daemon: str) -> None:
        """`daemon`: "computed-k1"."""
        await self._daemons[daemon].kill()


def _secret_of(token: str) -> str:
    return str(json.loads(base64.urlsafe_b64decode(token))["secret"])


async def _no_other_node(image: Image) -> None:
    raise Unavailable(f"there is one storage node only, and it has no {image.sha256}")


class MemoryBlobs:
    """Image content to the one storage node, without the wire between."""

    def __init__(self, rack: Rack) -> None:
        self._rack = rack

    async def put(self, address: str, format_: str, size_bytes_max: int, content: AsyncIterator[bytes | str]) -> Stored:
        """As `controllerd.agents.blob.BlobStore.put`."""
        async with self._rack.images.receive(format_, size_bytes_max) as upload:
            async for part in content:
                if isinstance(part, str):
                    held = await self._rack.images.keep(upload, part)
                    return Stored(held.sha256, held.size_bytes, held.virtual_bytes, held.md5, held.sha512)
                await upload.write(part)
        raise Unavailable("the upload ended without commit")

    async def get(self, address: str, sha256: str, offset: int) -> AsyncIterator[bytes]:
        """As `controllerd.agents.blob.BlobStore.get`."""
        async with self._rack.images.borrow(sha256) as file:
            yield file.path.read_bytes()[offset:]
