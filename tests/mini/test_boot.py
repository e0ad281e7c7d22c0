"""The test image itself, in an emulated machine without any network: what it tells on its console, what it does to disks."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pycdlib
import pytest

IMAGE = Path(__file__).resolve().parents[2] / "images" / "mini"
BOOT_S = 180.0  # a hang, however loaded the machine is

METADATA = {
    "uuid": "u",
    "hostname": "web-1",
    "public_keys": {"mine": 'ssh-ed25519 AAAA "quoted"\n'},
}
ACCOUNTS = [
    "default",
    {"name": "alice", "ssh_authorized_keys": ["ssh-ed25519 AAAB a"], "sudo": "ALL=(ALL) NOPASSWD:ALL"},
    {"name": "../evil", "ssh_authorized_keys": []},
]
VENDOR_DATA = {"cloud-init": "#cloud-config\n" + json.dumps({"users": ACCOUNTS})}
SCRIPT = b"#!/bin/sh\ncp /root/.ssh/authorized_keys /mnt/vdb/keys\nid -u > /mnt/vdb/uid\nexit 7\n"


@pytest.fixture(scope="module")
def image() -> Path:
    subprocess.run([IMAGE / "build.sh"], check=True)
    return IMAGE / "mini.qcow2"


def config_drive(path: Path) -> None:
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, rock_ridge="1.09", vol_ident="config-2")
    iso.add_directory("/OPENSTACK", rr_name="openstack")
    iso.add_directory("/OPENSTACK/LATEST", rr_name="latest")
    for short, name, content in (
        ("META.;1", "meta_data.json", json.dumps(METADATA).encode()),
        ("USER.;1", "user_data", SCRIPT),
        ("VENDOR.;1", "vendor_data.json", json.dumps(VENDOR_DATA).encode()),
    ):
        iso.add_fp(io.BytesIO(content), len(content), f"/OPENSTACK/LATEST/{short}", rr_name=name)
    iso.write(str(path))
    iso.close()


class Machine:
    def __init__(self, directory: Path, disks: list[Path]) -> None:
        self._serial, self._monitor = directory / "serial", directory / "monitor"
        self._serial.unlink(missing_ok=True)
        drives = [
            a for d in disks for a in ("-drive", f"if=virtio,file={d},format={'qcow2' if d.suffix == '.qcow2' else 'raw'}")
        ]
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-machine", "q35,accel=tcg", "-m", "128", "-display", "none", "-nic", "none", *drives,
             "-serial", f"file:{self._serial}", "-monitor", f"unix:{self._monitor},server,nowait"],
        )  # fmt: skip

    def console(self) -> str:
        return self._serial.read_text(errors="replace") if self._serial.exists() else ""

    def until(self, *texts: str) -> str:
        deadline_s = time.monotonic() + BOOT_S
        while not all(text in self.console() for text in texts):
            assert time.monotonic() < deadline_s and self.process.poll() is None, self.console()
            time.sleep(0.1)
        return self.console()

    def press_power_button(self) -> None:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self._monitor))
            monitor.recv(4096)
            monitor.sendall(b"system_powerdown\n")
            monitor.recv(4096)
            assert self.process.wait(BOOT_S) == 0


@contextmanager
def machine(directory: Path, disks: list[Path]) -> Iterator[Machine]:
    running = Machine(directory, disks)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait()


@pytest.mark.timeout(600)
def test_boot_metadata_volumes_and_power_button(image: Path, tmp_path: Path) -> None:
    root, blank, strange, drive = (tmp_path / name for name in ("root.qcow2", "blank.raw", "strange.raw", "drive.iso"))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(image), str(root)], check=True)
    junk = b"\0" * 600_000 + b"somebody's data" + b"\0" * 3_000_000
    for disk, content in ((blank, b""), (strange, junk)):
        disk.write_bytes(content)
        with disk.open("r+b") as file:
            file.truncate(64 << 20)
    config_drive(drive)

    with machine(tmp_path, [root, blank, strange, drive]) as first:
        told = first.until("mini: ", "] ready", "user data ended with 7", "sshd listening")
        for milestone in (
            "boot number 1", "metadata from config drive /dev/vdd", "account alice", "account refused",
            "hostname web-1, 1 ssh key(s)", "httpd listening", "volume vdb 64 MiB, was blank: formatted, mounted on /mnt/vdb",
            "volume vdc 64 MiB, no file system known here: left alone",
        ):  # fmt: skip
            assert milestone in told
        first.press_power_button()
        assert "power button" in first.console()

    with strange.open("rb") as file:
        assert file.read(len(junk)) == junk
    with machine(tmp_path, [root, blank]) as second:
        told = second.until("] ready")
        assert "boot number 2" in told
        assert "volume vdb 64 MiB, ext4, mounted on /mnt/vdb" in told
        assert "metadata none" in told
    content = blank.read_bytes()
    assert b'ssh-ed25519 AAAA "quoted"\n' in content
