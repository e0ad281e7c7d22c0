"""networkd: makes the networks of this node. Composition root: builds every room, decides nothing.

`main` is the program; `Networkd` is the daemon without its outer skin (files of TLS, own gRPC, metrics), so that a simulation
builds it with a fake driver, its own dialer and clock.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from daemonkit import config, program
from daemonkit.config import option
from daemonkit.errors import ConfigError
from daemonkit.ledger import Ledger
from daemonkit.lifecycle import Lifecycle
from daemonkit.rpc import Server
from daemonkit.runtime import Runtime, system_runtime
from daemonkit.session import Session, SessionSettings
from daemonkit.transport import Dialer, GrpcDialer
from networkd.compile import metadata
from networkd.drivers.base import Answer, Driver
from networkd.reconcile import Reconciler
from networkd.report import Reporter
from networkd.session import VERSION, NetworkAgent
from networkd.spec.desired import Node

log = logging.getLogger(__name__)

UNDERLAY_MTU_MIN = 1280


@dataclass(frozen=True)
class GatewayConfig:
    enabled: bool = option(False, "may this node carry routers and floating IPs?")
    external_device: str = option("", "interface on the provider network (the internet side); it joins a bridge of ours")

    def __post_init__(self) -> None:
        if self.enabled and not self.external_device:
            raise ConfigError("gateway.external_device must be set on a gateway node")


@dataclass(frozen=True)
class Config:
    node: str = option("", "name of this node; the common name of its certificate")
    controllers: list[str] = option(["127.0.0.1:7701"], 'agent service of the controllers, "host:port"')
    data_dir: Path = option(Path("/var/lib/skyrack/networkd"), "what must survive a reboot")
    run_dir: Path = option(Path("/run/skyrack/networkd"), "what goes with a reboot: dnsmasq's files; not below data_dir")
    tls_dir: Path = option(Path("/etc/skyrack/tls"), "ca.pem, node.pem, node.key")
    listen: str = option("127.0.0.1:7710", "own gRPC (health, reflection) with mutual TLS")
    metrics_listen: str = option("127.0.0.1:9710", 'Prometheus metrics; "" = none')
    log_level: str = option("info", "debug, info, warning, error")
    vtep: str = option("", "IPv4 address of this node on the network for tenants' traffic")
    underlay_mtu: int = option(1500, "of that network, bytes")
    driver: str = option("kernel", '"kernel" or "fake"')
    gateway: GatewayConfig = config.section(GatewayConfig)

    def __post_init__(self) -> None:
        if self.driver not in ("kernel", "fake"):
            raise ConfigError(f'driver must be "kernel" or "fake", is {self.driver!r}')
        if self.underlay_mtu < UNDERLAY_MTU_MIN:
            raise ConfigError(f"underlay_mtu must be at least {UNDERLAY_MTU_MIN}")
        try:
            ipaddress.IPv4Address(self.vtep or "0.0.0.0")
        except ValueError:
            raise ConfigError(f"vtep must be an IPv4 address, is {self.vtep!r}") from None

    def for_daemon(self) -> None:
        """Checks what only a real daemon needs. Errors: ConfigError."""
        if not self.node or not self.vtep:
            raise ConfigError("node and vtep must be set")


async def serve(settings: Config, life: Lifecycle) -> None:
    """Until told to stop; what was made stays. Errors: ConfigError when the machine is not fit."""
    runtime = system_runtime()
    tls = program.own_tls(settings)
    async with AsyncExitStack() as stack:
        ledger = Ledger(settings.data_dir / "ledger.db", runtime)
        await ledger.open()
        stack.push_async_callback(ledger.close)
        external_device = settings.gateway.external_device if settings.gateway.enabled else ""
        node = Node(settings.node, settings.vtep, settings.underlay_mtu, external_device)
        driver = _driver(settings, node, runtime, lambda *who: metadata.answer(networkd.reconciler.desired, *who))
        networkd = Networkd(settings, node, driver, ledger, GrpcDialer(tls), runtime, program.boot_id())
        stack.push_async_callback(driver.close)
        for warning in await driver.open():
            log.warning("the machine", extra={"why": warning})
        await program.listen(stack, "networkd", VERSION, settings, tls, Server(runtime.new_id), [])
        await program.until_stopped(life, networkd.standing, networkd.run())


class Networkd:
    """The rooms, wired. `run` works until cancelled; driver and ledger must be open."""

    def __init__(
        self, settings: Config, node: Node, driver: Driver, ledger: Ledger, dialer: Dialer, runtime: Runtime, boot_id: str
    ) -> None:
        reporter = Reporter(lambda objects: self.session.report(objects))
        self.reconciler = Reconciler(driver, node, settings.data_dir / "zones.json", reporter)
        agent = NetworkAgent(self.reconciler, reporter, node, settings.listen, gateway=settings.gateway.enabled)
        session = SessionSettings(settings.node, tuple(settings.controllers), boot_id)
        self.session = Session(agent, session, dialer, ledger, runtime)

    async def run(self) -> None:
        await self.session.restore()  # what was desired before holds before any controller answers
        async with asyncio.TaskGroup() as group:
            group.create_task(self.reconciler.run())
            group.create_task(self.session.run())

    async def standing(self) -> str:
        """Waits for the first pass; what stands then."""
        await self.reconciler.passed.wait()
        return f"{len(self.reconciler.desired.ports)} ports, {len(self.reconciler.desired.routers)} routers"


def _driver(settings: Config, node: Node, runtime: Runtime, answer: Answer) -> Driver:
    if settings.driver == "fake":
        from networkd.drivers.fake import FakeDriver

        return FakeDriver(runtime, node.external_device)
    from networkd.drivers.kernel import KernelDriver

    return KernelDriver(runtime, settings.run_dir, node.external_device, answer)


def main() -> int:
    return program.main("networkd", "The network agent of a node.", Config, serve)


if __name__ == "__main__":
    sys.exit(main())
