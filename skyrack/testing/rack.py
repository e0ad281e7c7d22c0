"""The nodes of a cloud in one process: each agent as its composition root builds it, over fake drivers and memory streams.

What a node is made of (its machine with guests and disks, its kernel, its volumes) outlives its daemons, as hardware does:
a daemon that is killed and started again finds it as it was.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from computed.config import Config as ComputedConfig
from computed.daemon import Computed, xml_settings
from computed.drivers.fake import FakeHypervisor, FakeMachine, FakeStore
from controllerd.controller import Controller
from controllerd.domain.policy import SYSTEM
from daemonkit import tls
from daemonkit.ledger import Ledger
from daemonkit.memory import Link, MemoryNetwork
from daemonkit.runtime import Runtime
from daemonkit.session import Session
from networkd.daemon import Config as NetworkdConfig
from networkd.daemon import GatewayConfig, Networkd
from networkd.drivers.fake import FakeDriver
from networkd.spec.desired import Node
from skyrack.testing.blob import MemoryBlobs
from skyrack.testing.daemon import Daemon
from storaged.config import Config as StoragedConfig
from storaged.daemon import Storaged
from storaged.drivers.fake import FakeVolumes
from storaged.images.store import ImageStore

NODES: Mapping[str, tuple[str, ...]] = {
    "k1": ("compute", "edge"), "k2": ("compute", "edge"), "g1": ("edge", "gateway"), "s1": ("storage",)
}  # fmt: skip
ROOM_BYTES = 1 << 40  # for images, on each storage node
BOOT_ID = "boot-1"


class Rack:
    """`async with Rack(...) as rack`; then `join` and `start` each node. `runtime(name)` is what a daemon of that name gets."""

    def __init__(
        self, directory: Path, nodes: Mapping[str, tuple[str, ...]], controllers: Sequence[str],
        runtime: Callable[[str], Runtime], *, volume_delay_s_max: float = 0.0,
        sample_interval_s: float = 10.0, ledger: Callable[[Path, Runtime], Ledger] = Ledger,
    ) -> None:  # fmt: skip
        """`nodes`: name -> roles. `controllers`: where agents dial. `volume_delay_s_max`: how long work on a volume takes.
        `sample_interval_s`: between usage samples. `ledger`: makes each agent's."""
        self.nodes, self.controllers = dict(nodes), list(controllers)
        self._directory, self._runtime, self._volume_delay_s_max = directory, runtime, volume_delay_s_max
        self._new_ledger, self._sample_interval_s = ledger, sample_interval_s
        self._starts = {"computed": self._computed, "networkd": self._networkd, "storaged": self._storaged}
        self._stack = AsyncExitStack()
        self.network = MemoryNetwork()
        self.blobs = MemoryBlobs()
        self.peers: dict[str, tls.Identity] = {}
        self.daemons: dict[str, Daemon] = {}
        self.sessions: dict[str, Session] = {}
        self.machines: dict[str, FakeMachine] = {}
        self.kernels: dict[str, FakeDriver] = {}
        self.volumes: dict[str, FakeVolumes] = {}
        self.networkds: dict[str, Networkd] = {}

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.network)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def link(self, node: str, controller: str = "") -> Link:
        """The way from `node` to one controller's address; to the first one if none is named."""
        return self.network.link(node, controller or self.controllers[0])

    # ---- nodes

    async def join(self, controller: Controller, name: str) -> None:
        """As `skyrack-join` does it, but for the wire. `controller` must lead."""
        token, _expiry = await controller.nodes.create_join_token(SYSTEM, name, self.nodes[name], 0)
        secret = str(json.loads(base64.urlsafe_b64decode(token))["secret"])
        joined = await controller.nodes.join(secret, name, tls.request(tls.new_key(), name, ["127.0.0.1"]))
        self.peers[name] = tls.identity_of(joined.certificate_pem)

    def daemons_of(self, node: str) -> list[str]:
        """Names as `start` and `kill` take them: "computed-k1"."""
        roles = self.nodes[node]
        kinds = {"networkd": "edge", "computed": "compute", "storaged": "storage"}
        return [f"{kind}-{node}" for kind, role in kinds.items() if role in roles]

    async def start(self, daemon: str) -> None:
        """`daemon`: "computed-k1". Again after `kill`: guests, disks and kernel are as they were."""
        kind, _, node = daemon.partition("-")
        runtime, held = self._runtime(daemon), AsyncExitStack()
        ledger = self._new_ledger(self._directory / daemon / "ledger.db", runtime)
        await ledger.open()
        held.push_async_callback(ledger.close)
        session, work = await self._starts[kind](node, self._directory / daemon, ledger, runtime, held)
        self.sessions[daemon] = session
        self.daemons[daemon] = Daemon(work, held)
        self._stack.push_async_callback(self.daemons[daemon].kill)

    async def kill(self, daemon: str) -> None:
        """As by SIGKILL. Errors: what it has died of by itself."""
        await self.daemons[daemon].kill()

    async def _computed(
        self, node: str, home: Path, ledger: Ledger, runtime: Runtime, _held: AsyncExitStack
    ) -> tuple[Session, Coroutine[Any, Any, None]]:
        settings = ComputedConfig(
            node=node, controllers=self.controllers, data_dir=home, driver="fake", virt_type="qemu",
            sample_interval_s=self._sample_interval_s,
        )  # fmt: skip
        machine = self.machines.setdefault(node, FakeMachine(runtime))
        hypervisor, store = FakeHypervisor(machine, xml_settings(settings)), FakeStore(machine)
        dialer = self.network.dialer(self.peers[node])
        computed = Computed(settings, hypervisor, store, ledger, dialer, runtime, BOOT_ID)
        return computed.session, computed.run()

    async def _networkd(
        self, node: str, home: Path, ledger: Ledger, runtime: Runtime, _held: AsyncExitStack
    ) -> tuple[Session, Coroutine[Any, Any, None]]:
        gateway = "gateway" in self.nodes[node]
        offered = GatewayConfig(enabled=gateway, external_device="wan" if gateway else "")
        number = 1 + list(self.nodes).index(node)
        vtep = f"10.9.{number >> 8}.{number & 255}"
        settings = NetworkdConfig(
            node=node, controllers=self.controllers, data_dir=home, vtep=vtep, driver="fake", gateway=offered
        )
        kernel = self.kernels.setdefault(node, FakeDriver(runtime, offered.external_device))
        where = Node(node, vtep, settings.underlay_mtu, offered.external_device)
        dialer = self.network.dialer(self.peers[node])
        networkd = self.networkds[node] = Networkd(settings, where, kernel, ledger, dialer, runtime, BOOT_ID)
        return networkd.session, networkd.run()

    async def _storaged(
        self, node: str, home: Path, ledger: Ledger, runtime: Runtime, held: AsyncExitStack
    ) -> tuple[Session, Coroutine[Any, Any, None]]:
        address = f"{node}:7730"
        # Without data_dir, which bounds the length of paths to sockets: the fake driver has none.
        settings = StoragedConfig(node=node, controllers=self.controllers, driver="fake", listen=address)
        volumes = self.volumes.setdefault(node, FakeVolumes(runtime, self._volume_delay_s_max))
        images = self.blobs.stores[address] = ImageStore(home / "images", 0, runtime, lambda _directory: ROOM_BYTES)
        held.callback(images.close)
        await images.open()
        dialer, fetch = self.network.dialer(self.peers[node]), self.blobs.fetch_to(address)
        storaged = Storaged(settings, volumes, images, fetch, ledger, dialer, runtime, BOOT_ID)
        return storaged.session, storaged.run()
