"""computed, put together. Decides nothing.

`main` is the program; `Computed` is the daemon without its outer skin (files of TLS, own gRPC, metrics), so that a simulation
builds it with a fake machine, its own dialer and clock.
"""

from __future__ import annotations

import asyncio
import sys
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
from daemonkit import lifecycle, program
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
        agent = ComputeAgent(settings.listen, hypervisor, store, self.reconciler, stop_grace_s=settings.stop_grace_s)
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
    tls = program.own_tls(settings)
    settings.data_dir.chmod(0o711)  # QEMU may run as another user: it finds its disks, and can list nothing
    async with AsyncExitStack() as stack:
        hypervisor, store = drivers(settings, runtime)
        stack.callback(store.close)
        ledger = Ledger(settings.data_dir / "ledger" / "ledger.sqlite", runtime)
        await ledger.open()
        stack.push_async_callback(ledger.close)
        await program.listen(stack, "computed", VERSION, settings, tls, Server(runtime.new_id), [])
        computed = Computed(settings, hypervisor, store, ledger, GrpcDialer(tls), runtime, program.boot_id())
        jobs = [computed.run()]
        if settings.driver == "libvirt":
            nbd_tls.prepare(tls, settings.nbd_tls_dir, settings.qemu_group)
            jobs.append(_renew_nbd_tls(tls, settings))
        await program.until_stopped(life, program.serving, *jobs)


async def _renew_nbd_tls(tls: TlsFiles, settings: Config) -> None:
    """QEMU uses the certificates in use when it opens a volume: keep them as fresh as the node's own."""
    while True:
        await asyncio.sleep(NBD_TLS_INTERVAL_S)
        nbd_tls.prepare(tls, settings.nbd_tls_dir, settings.qemu_group)


def main() -> int:
    return program.main("computed", "The agent of a compute node.", Config, serve)


if __name__ == "__main__":
    sys.exit(main())
