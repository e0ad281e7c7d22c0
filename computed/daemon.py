"""computed, put together. Decides nothing.

`main` is the program; `Computed` is the daemon without its outer skin (files of TLS, own gRPC, metrics), so that a simulation
builds it with a fake machine, its own dialer and clock.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from computed.config import Config
from computed.domain_xml import XmlSettings
from computed.drivers import nbd_tls
from computed.drivers.base import Hypervisor, Store
from computed.drivers.fake import FakeHypervisor, FakeMachine, FakeStore
from computed.drivers.local_store import LocalStore
from computed.reconcile import Reconciler
from computed.report import Reporter, sample_usage
from computed.session import VERSION, ComputeAgent
from computed.spec import GIB
from computed.wire import GrpcBlobSource
from daemonkit import config, lifecycle, log, metrics
from daemonkit.errors import ConfigError
from daemonkit.ledger import Ledger
from daemonkit.rpc import Server
from daemonkit.runtime import Runtime, system_runtime
from daemonkit.session import Session, SessionSettings
from daemonkit.tls import TlsFiles
from daemonkit.transport import Dialer, GrpcDialer

SURVEY_LIMIT_S = 5.0
NBD_TLS_INTERVAL_S = 600.0
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Computed:
    """The rooms, wired. `run` works until cancelled; the ledger must be open."""

    def __init__(
        self, settings: Config, hypervisor: Hypervisor, store: Store, ledger: Ledger, dialer: Dialer, runtime: Runtime,
        boot_id: str,
    ) -> None:  # fmt: skip
        self._settings, self._hypervisor, self._runtime = settings, hypervisor, runtime
        reporter = Reporter()
        self.reconciler = Reconciler(
            hypervisor, store, runtime, reporter.publish,
            starts_max=settings.starts_max, stop_grace_s=settings.stop_grace_s, pass_interval_s=settings.pass_interval_s,
        )  # fmt: skip
        agent = ComputeAgent(settings.listen, hypervisor, store, self.reconciler, runtime, stop_grace_s=settings.stop_grace_s)
        session = SessionSettings(settings.node, tuple(settings.controllers), boot_id)
        self.session = Session(agent, session, dialer, ledger, runtime)
        reporter.session = self.session

    async def run(self) -> None:
        await self.session.restore()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.reconciler.run())
            group.create_task(self._converse())
            interval_s = self._settings.sample_interval_s
            group.create_task(sample_usage(self._hypervisor, self.session, self._runtime, interval_s))

    async def _converse(self) -> None:
        """Begins when we know what is here, as the first report is a whole one; a hypervisor that is away can't stop it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SURVEY_LIMIT_S):
                await self.reconciler.surveyed.wait()
        await self.session.run()


def xml_settings(settings: Config) -> XmlSettings:
    virt_type = settings.virt_type
    if virt_type == "auto" and settings.driver == "libvirt":
        from computed.drivers.libvirt_driver import kvm_works

        virt_type = "kvm" if kvm_works() else "qemu"
    return XmlSettings(
        virt_type=virt_type,
        disks_dir=settings.disks_dir,
        console_dir=settings.console_dir,
        vnc=settings.vnc,
        tb_cache_mib=settings.tb_cache_mib,
        spare_pci_ports=settings.spare_pci_ports,
    )


def drivers(settings: Config, runtime: Runtime) -> tuple[Hypervisor, Store]:
    if settings.driver == "fake":
        machine = FakeMachine(runtime)
        return FakeHypervisor(machine, xml_settings(settings)), FakeStore(machine)
    from computed.drivers.libvirt_driver import LibvirtDriver  # libvirt is loaded only where it is used

    hypervisor = LibvirtDriver(
        settings.libvirt_uri, xml_settings(settings), runtime, reserved_memory_mib=settings.reserved_memory_mib
    )
    store = LocalStore(
        images_dir=settings.images_dir,
        images_max_bytes=settings.images_max_gib * GIB,
        disks_dir=settings.disks_dir,
        console_dir=settings.console_dir,
        source=GrpcBlobSource(TlsFiles(settings.tls_dir)),
        runtime=runtime,
    )
    return hypervisor, store


async def serve(settings: Config, life: lifecycle.Lifecycle) -> None:
    """Until asked to stop. Guests go on running."""
    runtime = system_runtime()
    tls = TlsFiles(settings.tls_dir)
    if tls.identity().node != settings.node:
        raise ConfigError(f"node is {settings.node!r}, but the certificate is of {tls.identity().node!r}")
    async with AsyncExitStack() as stack:
        hypervisor, store = drivers(settings, runtime)
        stack.callback(store.close)
        ledger = Ledger(settings.data_dir / "ledger" / "ledger.sqlite", runtime)
        await ledger.open()
        stack.push_async_callback(ledger.close)
        server = Server(runtime.new_id)
        server.bind(settings.listen, tls.server(clients_must_show_certificate=True))
        await server.start([])
        stack.push_async_callback(server.stop)
        if settings.metrics_listen:
            metrics.INFO.labels("computed", VERSION).set(1)
            stack.callback(metrics.serve(settings.metrics_listen).shutdown)
        computed = Computed(settings, hypervisor, store, ledger, GrpcDialer(tls), runtime, _boot_id())
        jobs = [computed.run(), metrics.watch_loop_lag()]
        if settings.driver == "libvirt":
            nbd_tls.prepare(tls, settings.nbd_tls_dir, settings.qemu_group)
            jobs.append(_renew_nbd_tls(tls, settings))
        await _until_stopped(jobs, life)


async def _renew_nbd_tls(tls: TlsFiles, settings: Config) -> None:
    """QEMU uses the certificates in use when it opens a volume: keep them as fresh as the node's own."""
    while True:
        await asyncio.sleep(NBD_TLS_INTERVAL_S)
        nbd_tls.prepare(tls, settings.nbd_tls_dir, settings.qemu_group)


async def _until_stopped(jobs: list[Coroutine[None, None, None]], life: lifecycle.Lifecycle) -> None:
    async with asyncio.TaskGroup() as group:
        work = [group.create_task(job) for job in jobs]
        life.ready("serving")
        await life.stopping.wait()
        for task in work:
            task.cancel()


def _boot_id() -> str:
    """Changes when the machine starts anew."""
    return BOOT_ID.read_text().strip()


def main() -> int:
    parser = argparse.ArgumentParser(prog="skyrack-computed", description="The agent of a compute node.")
    parser.add_argument("--config", type=Path, default=Path("/etc/skyrack/computed.toml"))
    parser.add_argument("--print-config", action="store_true", help="print every option with its default, and end")
    arguments = parser.parse_args()
    if arguments.print_config:
        print(config.describe(Config), end="")
        return 0
    os.umask(0o077)  # disks, user data and keys are nobody else's; what QEMU's user must reach is opened one by one
    try:
        settings = config.load(Config, arguments.config)
        settings.for_daemon()
        log.setup("computed", settings.log_level)
        data = lifecycle.DataDirectory(settings.data_dir)
        settings.data_dir.chmod(0o711)  # QEMU may run as another user: it finds its disks, and can list nothing
    except ConfigError as error:
        print(f"cannot start: {error.message}", file=sys.stderr)
        return 1
    try:
        return lifecycle.run(lambda life: serve(settings, life))
    finally:
        data.close()


if __name__ == "__main__":
    sys.exit(main())
