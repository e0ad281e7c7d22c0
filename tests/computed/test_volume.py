"""Volumes on a real guest: NBD with TLS from a qemu-storage-daemon, attached and detached, running and stopped, and lost."""

from __future__ import annotations

import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator

import pytest

from computed.drivers.libvirt_connection import tenant_text
from skyrack.v1 import agent_pb2
from tests.computed.rig import PAUSED, RUNNING, STOPPED, Rig, inside, until

EXPORT = "export-a1b2c3"
VOLUME_BYTES = 32 << 20


class StorageDaemon:
    """One volume under one name. The listening socket is ours, so it outlives the daemon."""

    def __init__(self, rig: Rig) -> None:
        self._certificates = rig.directory / "storage-tls"
        self._certificates.mkdir()
        names = {"ca-cert.pem": "ca.pem", "server-cert.pem": "node.pem", "server-key.pem": "node.key"}
        for name, source in names.items():
            shutil.copy(rig.tls_dir / source, self._certificates / name)
        self._volume = rig.directory / "volume.raw"
        with self._volume.open("wb") as file:
            file.truncate(VOLUME_BYTES)
        with inside(rig.host.namespace):
            self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        fd = self._listener.fileno()
        argv = [
            "qemu-storage-daemon",
            "--object", f"tls-creds-x509,id=tls0,dir={self._certificates},endpoint=server,verify-peer=on",
            "--blockdev", f"driver=file,node-name=file0,filename={self._volume}",
            "--blockdev", "driver=raw,node-name=volume0,file=file0",
            "--nbd-server", f"addr.type=fd,addr.str={fd},tls-creds=tls0,max-connections=0",
            "--export", f"type=nbd,id=e0,node-name=volume0,name={EXPORT},writable=on",
        ]  # fmt: skip
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        self._process = subprocess.Popen(argv, pass_fds=[fd], **quiet)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        self.kill()
        self._listener.close()


@pytest.fixture
def storage(rig: Rig) -> Iterator[StorageDaemon]:
    daemon = StorageDaemon(rig)
    daemon.start()
    yield daemon
    daemon.close()


def disk(storage: StorageDaemon) -> agent_pb2.Disk:
    return agent_pb2.Disk(
        attachment_id="attachment-1", volume_id=str(uuid.uuid4()), target="vdb", nbd_host="127.0.0.1",
        nbd_port=storage.port, export_name=EXPORT,
    )  # fmt: skip


async def test_attach_lose_detach_while_running_and_while_stopped(rig: Rig, mini_image: bytes, storage: StorageDaemon) -> None:
    server_id, spec = str(uuid.uuid4()), rig.new_server(mini_image)
    await rig.start_agent()
    await rig.controller.put(server_id, spec)
    await rig.controller.wait(server_id, RUNNING)
    await until(lambda: b"] ready" in rig.console(server_id), "a booted guest")

    spec.disks.append(disk(storage))
    await rig.controller.put(server_id, spec)
    await rig.controller.wait(server_id, RUNNING, lambda seen: list(seen.attached) == ["attachment-1"])
    await until(lambda: b"volume vdb 32 MiB" in rig.console(server_id), "the volume in the guest")

    await survives_loss_of_storage(rig, server_id, storage)

    del spec.disks[:]
    await rig.controller.put(server_id, spec)
    await rig.controller.wait(server_id, RUNNING, lambda seen: not seen.attached)
    await until(lambda: b"volume vdb removed" in rig.console(server_id), "the volume leaving the guest")

    spec.power = agent_pb2.POWER_STOPPED
    await rig.controller.put(server_id, spec)
    await rig.controller.wait(server_id, STOPPED)
    spec.disks.append(disk(storage))
    await rig.controller.put(server_id, spec)
    await rig.controller.wait(server_id, STOPPED, lambda seen: list(seen.attached) == ["attachment-1"])
    del spec.disks[:]
    await rig.controller.put(server_id, spec)
    await rig.controller.wait(server_id, STOPPED, lambda seen: not seen.attached)


async def survives_loss_of_storage(rig: Rig, server_id: str, storage: StorageDaemon) -> None:
    """The guest reads the volume through its serial console's shell meanwhile; it is held, and goes on."""
    with socket.socket(socket.AF_UNIX) as console:
        console.connect(str(rig.directory / "console" / f"{server_id}.sock"))
        storage.kill()
        console.sendall(b"\ndd if=/dev/vdb of=/dev/null bs=4096 count=1 iflag=direct && echo re''ad\n")
        seen = await rig.controller.wait(server_id, PAUSED)
        assert seen.fault == "a disk does not answer: vdb"
        storage.start()
        await rig.controller.wait(server_id, RUNNING, lambda seen: not seen.fault)
        await until(lambda: b"\nread" in rig.console(server_id).replace(b"\r", b""), "the data, without an error")


async def test_volume_at_launch_and_a_guest_slow_to_let_go(rig: Rig, mini_image: bytes, storage: StorageDaemon) -> None:
    """A guest in its firmware does not answer the request to let go: it is asked again when it has booted."""
    server_id, spec = str(uuid.uuid4()), rig.new_server(mini_image)
    spec.disks.append(disk(storage))
    await rig.start_agent()
    await rig.controller.put(server_id, spec)
    await rig.controller.wait(server_id, RUNNING, lambda seen: list(seen.attached) == ["attachment-1"])
    del spec.disks[:]
    await rig.controller.put(server_id, spec)
    await rig.controller.wait(server_id, RUNNING, lambda seen: not seen.attached)
    await rig.controller.remove(server_id)
    assert rig.files(server_id) == []


async def test_storage_that_is_away_at_the_start(rig: Rig, mini_image: bytes, storage: StorageDaemon) -> None:
    storage.kill()
    server_id, spec = str(uuid.uuid4()), rig.new_server(mini_image)
    spec.disks.append(disk(storage))
    spec.disks[0].nbd_port = 9
    await rig.start_agent()
    await rig.controller.put(server_id, spec)
    seen = await rig.controller.wait(server_id, agent_pb2.OBSERVED_STATE_FAILED)
    assert "Connection refused" in seen.fault and str(rig.directory) not in seen.fault
    storage.start()
    spec.disks[0].nbd_port = storage.port
    await rig.controller.put(server_id, spec)
    await rig.controller.wait(server_id, RUNNING)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "Cannot access storage file '/var/lib/x/disks/1/root.qcow2' (as uid:64055):\n No such file",
            "Cannot access storage file '(file)' (as uid:64055): No such file",
        ),
        (
            "qemu unexpectedly closed the monitor: 2026-11-22T08:25:41.165035Z qemu-system-x86_64: "
            '-blockdev {"driver":"nbd","server":{"port":"9"},"export":"secret"}: '
            "Failed to connect to '127.0.0.1:9': Connection refused",
            "qemu unexpectedly closed the monitor: -blockdev (...): Failed to connect to '(address)': Connection refused",
        ),
        ("Requested export 'secret' not available", "Requested (export) not available"),
    ],
)
def test_tenants_learn_nothing_of_the_machine(said: str, told: str) -> None:
    assert tenant_text(said) == told
