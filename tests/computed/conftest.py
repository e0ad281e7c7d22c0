"""Fixtures: one host with libvirt for all tests here, a rig of its own for each."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from skyrack.sandbox import hypervisor
from skyrack.sandbox.host import Host
from tests.computed.rig import NODE, Rig, until
from tests.pki import Pki

MINI = Path(__file__).parents[2] / "images" / "mini"
WARM = Path(tempfile.gettempdir()) / "skyrack-qemu-capabilities"


@pytest.fixture(scope="package")
def mini_image() -> bytes:
    """The test image; built when it is not there."""
    path = MINI / "mini.qcow2"
    if not path.exists():
        subprocess.run(["bash", str(MINI / "build.sh")], check=True, timeout=280, stdin=subprocess.DEVNULL)
    return path.read_bytes()


@pytest.fixture(scope="package")
def host() -> Iterator[Host]:
    directory = Path(tempfile.mkdtemp(prefix="cmp-", dir="/tmp"))
    directory.chmod(0o755)
    host = Host(NODE, directory / "host", namespace_name=directory.name, virtualization=True, warm=WARM)

    async def start() -> None:
        await host.start()
        await host.until("libvirtd", timeout_s=60)

    try:
        asyncio.run(start())
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        connect(host).getCapabilities()
        hypervisor.keep_capabilities(host.directory / "var", WARM)
        yield host
    finally:
        asyncio.run(host.remove())
        shutil.rmtree(directory, ignore_errors=True)


def connect(host: Host) -> Any:
    """libvirt of the host, from the test itself."""
    return libvirt.open(f"qemu+unix:///system?socket={host.directory}/run/libvirt/libvirt-sock")


@pytest.fixture
def directory(host: Host) -> Iterator[Path]:
    """Short, for the sake of socket paths, and seen alike inside the host and outside."""
    path = Path(tempfile.mkdtemp(prefix="n-", dir=host.directory.parent))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
async def rig(host: Host, directory: Path) -> AsyncIterator[Rig]:
    pki = Pki(directory / "pki")
    rig = Rig(
        host,
        pki.node("controller-1", "controller", "storage"),
        {
            "node": NODE,
            "data_dir": directory,
            "tls_dir": pki.node(NODE, "compute"),
            "listen": "127.0.0.1:7720",
            "metrics_listen": "127.0.0.1:9720",
            "images_dir": directory / "images",
            "disks_dir": directory / "disks",
            "console_dir": directory / "console",
            "virt_type": "qemu",
            "stop_grace_s": 30.0,
            "sample_interval_s": 0.5,
            "pass_interval_s": 5.0,
        },
    )
    try:
        await rig.listen()
        yield rig
    finally:
        await rig.close()
        await until(lambda: _clear(host), "an empty libvirt")


def _clear(host: Host) -> bool:
    try:
        connection = connect(host)
        for domain in connection.listAllDomains(0):
            if domain.isActive():
                domain.destroy()
            if domain.isPersistent():
                domain.undefine()
        return True
    except libvirt.libvirtError:
        return False


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
