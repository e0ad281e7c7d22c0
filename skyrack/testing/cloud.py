"""`Cloud`: a controller with its API on 127.0.0.1 and a rack of agents over fake drivers, in the caller's event loop."""

from __future__ import annotations

import asyncio
import random
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from controllerd.api.rpc.services import public_services
from controllerd.controller import Controller
from daemonkit import rpc
from daemonkit.runtime import InlineThreads, Runtime, SystemClock, ThreadPool, Threads
from daemonkit.tls import TlsFiles
from skyrack.client import Cloud as Client
from skyrack.testing.daemon import Daemon
from skyrack.testing.rack import Rack
from skyrack.testing.seat import Seat

CONTROLLER = "controller:7701"
READY_TIMEOUT_S = 30.0


class Cloud:
    """`async with Cloud() as cloud:`; all of its nodes are in session then.

    `client`: the SDK, logged in as the admin. `environ`: SKYRACK_ENDPOINT, _CA, _USER, _PASSWORD and _PROJECT, for whatever
    else shall reach the API, such as the command line. `rack`: the nodes, to kill daemons, cut links and look at what the fake
    drivers hold. `controller`: the real one, for what the API does not show.
    """

    client: Client
    environ: dict[str, str]
    rack: Rack

    def __init__(self, *, compute_nodes: int = 2, storage_nodes: int = 1, gateways: int = 1, seed: int | None = None) -> None:
        """`seed`: of all ids, secrets and jitter; times stay real."""
        computes = {f"k{number + 1}": ("compute", "edge") for number in range(compute_nodes)}
        gates = {f"g{number + 1}": ("edge", "gateway") for number in range(gateways)}
        self._nodes = computes | gates | {f"s{number + 1}": ("storage",) for number in range(storage_nodes)}
        self._seed = seed
        self._stack = AsyncExitStack()

    def _runtime(self, name: str) -> Runtime:
        rng = random.SystemRandom() if self._seed is None else random.Random(f"{self._seed}/{name}")
        return Runtime(SystemClock(), rng, _threads)

    async def __aenter__(self) -> Self:
        """Errors: OSError (no room for files), TimeoutError (the machine is too slow)."""
        async with AsyncExitStack() as stack:
            self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="skyrack-")))
            self.rack = Rack(self._directory, self._nodes, [CONTROLLER], self._runtime)
            await stack.enter_async_context(self.rack)
            await self._start_controller(stack)
            await self._listen(stack)
            self.client = await stack.enter_async_context(self.connect())
            async with asyncio.timeout(READY_TIMEOUT_S):
                await asyncio.gather(self.client.tokens.current(), self._start_nodes())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Errors: what one of the daemons has died of by itself."""
        await self._stack.aclose()

    @property
    def controller(self) -> Controller:
        controller = self._seat.controller
        assert controller is not None, "the controller is gone"
        return controller

    @property
    def endpoint(self) -> str:
        """ "host:port" of the public API."""
        return self.environ["SKYRACK_ENDPOINT"]

    def connect(self, **login: Any) -> Client:
        """Another login; takes what `skyrack.client.Cloud.connect` takes, and is the admin's without any."""
        return Client.connect(environ=self.environ, **login)

    async def _start_controller(self, stack: AsyncExitStack) -> None:
        runtime = self._runtime("controller")
        home = self._directory / "controller"
        self._seat = Seat(home, CONTROLLER, self.rack.network, self.rack.blobs, runtime)
        await self._seat.bootstrap(self._directory / "admin.env")
        controller = Daemon(self._seat.run())
        stack.push_async_callback(controller.kill)
        async with asyncio.timeout(READY_TIMEOUT_S):
            await self._seat.leading.wait()

    async def _listen(self, stack: AsyncExitStack) -> None:
        server, services = rpc.Server(self._runtime("api").new_id), public_services(self.controller)
        for add, servicer in services.values():
            add(servicer, server.grpc)
        port = server.bind("127.0.0.1:0", TlsFiles(self._seat.config.tls_dir).server(clients_must_show_certificate=False))
        await server.start(list(services))
        stack.push_async_callback(server.stop, 0.0)
        written = (self._directory / "admin.env").read_text().replace("export ", "").split()
        self.environ = dict(line.split("=", 1) for line in written) | {"SKYRACK_ENDPOINT": f"127.0.0.1:{port}"}

    async def _start_nodes(self) -> None:
        await asyncio.gather(*(self.rack.join(self.controller, node) for node in self._nodes))
        daemons = [daemon for node in self._nodes for daemon in self.rack.daemons_of(node)]
        await asyncio.gather(*(self.rack.start(daemon) for daemon in daemons))
        await asyncio.gather(*(self.rack.sessions[daemon].connected.wait() for daemon in daemons))


def _threads(name: str, workers: int) -> Threads:
    """Only what works long has threads: small files are written sooner than a thread is asked."""
    return ThreadPool(name, workers) if name == "argon2" else InlineThreads()
