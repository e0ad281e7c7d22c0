"""Images that lie, leak or are broken, made on the spot: (name, declared format, content)."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

DESCRIPTOR = b"""# Disk DescriptorFile
version=1
CID=01234567
parentCID=ffffffff
createType="monolithicFlat"
RW 8 FLAT "/etc/passwd" 0
"""


def qemu_img(*arguments: str) -> None:
    subprocess.run(["qemu-img", *arguments], check=True, stdout=subprocess.DEVNULL)


def good(directory: Path, name: str = "good.qcow2", size: str = "16M", written: bytes = b"") -> bytes:
    """A harmless qcow2 with `written` at its beginning."""
    raw, path = directory / "content.raw", directory / name
    raw.write_bytes(written)
    raw.open("r+b").truncate(int(size.rstrip("M")) << 20)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", str(raw), str(path))
    return path.read_bytes()


def _made(directory: Path, name: str, *arguments: str) -> bytes:
    for tries_left in range(9, -1, -1):
        try:
            qemu_img("create", "-q", *arguments[:-1], str(directory / name), arguments[-1])
            break
        except subprocess.CalledProcessError:  # for LUKS it measures the CPU, which fails where the kernel's clock is coarse
            if not tries_left:
                raise
    return (directory / name).read_bytes()


def corpus(directory: Path) -> Iterator[tuple[str, str, bytes]]:
    whole = good(directory, written=b"x" * 300_000)
    yield "backing file", "qcow2", _made(directory, "b.qcow2", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", "1M")
    old = ("-f", "qcow2", "-o", "compat=0.10", "-b", "/etc/passwd", "-F", "raw")
    yield "backing file, version 2", "qcow2", _made(directory, "b2.qcow2", *old, "1M")
    outside = directory / "outside.raw"
    data_file = ("-f", "qcow2", "-o", f"data_file={outside},data_file_raw=on")
    yield "data file", "qcow2", _made(directory, "d.qcow2", *data_file, "1M")
    secret = (
        "-f",
        "qcow2",
        "--object",
        "secret,id=s,data=abc",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
    )
    yield "encrypted", "qcow2", _made(directory, "e.qcow2", *secret, "1M")
    yield "qcow2 as raw", "raw", whole
    yield "qcow2 with a backing file as raw", "raw", (directory / "b.qcow2").read_bytes()
    yield "descriptor of a foreign disk as raw", "raw", DESCRIPTOR
    yield "descriptor of a foreign disk as qcow2", "qcow2", DESCRIPTOR
    for kind in ("vmdk", "vdi", "vhdx", "vpc", "qed"):
        other = _made(directory, f"o.{kind}", "-f", kind, "8M")
        yield f"{kind} as raw", "raw", other
        yield f"{kind} as qcow2", "qcow2", other
    yield "raw as qcow2", "qcow2", b"\0" * 65536
    yield "garbage as qcow2", "qcow2", bytes(range(256)) * 400
    yield "truncated in the header", "qcow2", whole[:60]
    yield "truncated in the tables", "qcow2", whole[:100_000]
    yield "truncated in the data", "qcow2", whole[: len(whole) - 131_072]
    yield "tables out of the file", "qcow2", whole[:40] + struct.pack(">Q", 1 << 50) + whole[48:]
    yield "unknown version", "qcow2", whole[:4] + struct.pack(">I", 9) + whole[8:]
    yield "unknown features", "qcow2", whole[:72] + b"\xff" * 8 + whole[80:]
    yield "absurd cluster size", "qcow2", whole[:20] + struct.pack(">I", 63) + whole[24:]
    yield "nothing as qcow2", "qcow2", b""
    yield "nothing as raw", "raw", b""
    yield "a format nobody takes", "vmdk", (directory / "o.vmdk").read_bytes()
    yield "no format", "", whole
