"""The few fields of a qcow2 header that we look at ourselves (QEMU's docs/interop/qcow2.txt). Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

HEADER_BYTES = 32
BACKING_NAME_BYTES_MAX = 1023
_FIELDS = struct.Struct(">4sIQIIQ")


@dataclass(frozen=True)
class Header:
    virtual_bytes: int
    backing_file: str  # "" = none


def read_header(path: Path) -> Header | None:
    """None when the file is not qcow2. Errors: OSError."""
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
        if len(start) < HEADER_BYTES:
            return None
        magic, _version, offset, length, _cluster_bits, virtual_bytes = _FIELDS.unpack(start)
        if magic != b"QFI\xfb":
            return None
        name = b""
        if offset and length <= BACKING_NAME_BYTES_MAX:
            file.seek(offset)
            name = file.read(length)
        return Header(virtual_bytes, name.decode(errors="replace"))
