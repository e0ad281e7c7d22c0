"""storaged, put together. Decides nothing.

`main` is the program; `Storaged` is the daemon without its outer skin (files of TLS, own gRPC, metrics), so that a simulation
builds it with a fake driver, its own dialer and clock.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack

from daemonkit import lifecycle, program
from daemonkit.ledger import Ledger
from daemonkit.rpc import Server
from daemonkit.runtime import Runtime, system_runtime
from daemonkit.session import Session, SessionSettings
from daemonkit.tls import TlsFiles
from daemonkit.transport import Dialer, GrpcDialer
from skyrack.v1 import blob_pb2_grpc
from storaged.config import Config
from storaged.drivers.base import VolumeDriver
from storaged.drivers.fake import FakeVolumes
from storaged.images.store import ImageStore
from storaged.reconcile import Fetch, Reconciler
from storaged.report import Reporter, publish_gauges
from storaged.session import VERSION, Addresses, StorageAgent
from storaged.transfer import BlobServicer, GrpcOrigin

BLOB_SERVICE = "skyrack.v1.BlobService"


class Storaged:
    """The rooms, wired. `run` works until cancelled; ledger and image store must be open."""

    def __init__(
        self, settings: Config, driver: VolumeDriver, images: ImageStore, fetch: Fetch, ledger: Ledger, dialer: Dialer,
        runtime: Runtime, boot_id: str,
    ) -> None:  # fmt: skip
        reporter = Reporter()
        self.reconciler = Reconciler(driver, images, fetch, runtime, reporter.tell)
        agent = StorageAgent(Addresses(settings.listen, *settings.nbd_address()), driver, images, self.reconciler)
        session = SessionSettings(settings.node, tuple(settings.controllers), boot_id)
        self.session = Session(agent, session, dialer, ledger, runtime)
        reporter.session = self.session
        publish_gauges(self.reconciler, images, driver)

    async def run(self) -> None:
        await self.session.restore()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.reconciler.run())
            # A report before we know what is served could call an export gone that still is.
            await self.reconciler.reached.wait()
            await self.reconciler.look_around()
            group.create_task(self.session.run())


async def volume_driver(settings: Config, tls: TlsFiles, runtime: Runtime, stack: AsyncExitStack) -> VolumeDriver:
    if settings.driver == "fake":
        return FakeVolumes(runtime)
    from storaged.drivers.qsd.disk import VolumeFiles
    from storaged.drivers.qsd.driver import QsdVolumes
    from storaged.drivers.qsd.process import QsdSettings

    files = VolumeFiles(settings.volumes_dir, settings.data_dir / "volumes.id", runtime)
    stack.callback(files.close)
    await files.open()
    settings.qsd_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    return QsdVolumes(QsdSettings(settings.qsd_dir, tls, *settings.nbd_address()), files)


async def serve(settings: Config, life: lifecycle.Lifecycle) -> None:
    """Until asked to stop. Volumes stay served."""
    runtime = system_runtime()
    tls = program.own_tls(settings)
    async with AsyncExitStack() as stack:
        driver = await volume_driver(settings, tls, runtime, stack)
        images = ImageStore(settings.images_dir, settings.images_reserve_mib << 20, runtime)
        stack.callback(images.close)
        await images.open()
        ledger = Ledger(settings.data_dir / "ledger" / "ledger.sqlite", runtime)
        await ledger.open()
        stack.push_async_callback(ledger.close)
        server = Server(runtime.new_id)
        blobs = BlobServicer(images, runtime)
        stack.callback(blobs.close)
        blob_pb2_grpc.add_BlobServiceServicer_to_server(blobs, server.grpc)
        await program.listen(stack, "storaged", VERSION, settings, tls, server, [BLOB_SERVICE])
        fetch = GrpcOrigin(images, tls).fetch
        storaged = Storaged(settings, driver, images, fetch, ledger, GrpcDialer(tls), runtime, program.boot_id())
        await program.until_stopped(life, program.serving, storaged.run())


def main() -> int:
    return program.main("storaged", "The agent of a storage node.", Config, serve)


if __name__ == "__main__":
    sys.exit(main())
