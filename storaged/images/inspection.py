"""Is an uploaded image what it says, and may it be opened? Looked at while it streams in, and once more as a file.

A qcow2 image can name other files of the machine that opens it (backing file, data file), and a "raw" image that is really a
qcow2 gets there by the back door. So: the declared format must be the one detected, only qcow2 and raw are taken, and no file
but the image itself may be touched. Format detection is oslo.utils' format_inspector.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from daemonkit import command
from daemonkit.errors import CommandFailed, InvalidArgument

FORMATS = ("qcow2", "raw")
LIMITS = command.Limits(memory_bytes=1 << 30, cpu_s=60)
TIMEOUT_S = 120.0
LEAKS_ONLY = 3  # exit code of `qemu-img check`: space is wasted, nothing is wrong

# What a raw disk may look like: anything without a known header, or one with a partition table.
_RAW = frozenset(("raw", "gpt"))


class _Tap:
    """The inspector reads from this what is put into it."""

    def __init__(self) -> None:
        self.chunk = b""

    def read(self, _size: int) -> bytes:
        return self.chunk


class Inspection:
    """Of one stream. Blocking work, to make it too: call from a thread."""

    def __init__(self, declared: str) -> None:
        from oslo_utils.imageutils import format_inspector  # heavy, and needed only by uploads

        if declared not in FORMATS:
            raise InvalidArgument("format", f"must be one of {', '.join(FORMATS)}")
        self.declared = declared
        self._library: Any = format_inspector
        self._tap = _Tap()
        expected = declared if declared != "raw" else None
        self._wrapper = format_inspector.InspectWrapper(self._tap, expected_format=expected)

    def feed(self, chunk: bytes) -> None:
        """Errors: InvalidArgument as soon as it is known that this is not the declared format."""
        self._tap.chunk = chunk
        try:
            self._wrapper.read(len(chunk))
        except Exception as error:  # the parsers raise whatever hostile content makes them raise
            raise InvalidArgument("content", f"is not {self.declared}: {error}") from None

    def finish(self) -> None:
        """After the last chunk. Errors: InvalidArgument."""
        self._wrapper.close()
        try:
            found = self._wrapper.format
        except self._library.ImageFormatError as error:
            raise InvalidArgument("content", str(error)) from None
        if not _agrees(self.declared, str(found)):
            raise InvalidArgument("content", f"is {found}, not {self.declared} as declared")
        if self.declared != "raw":
            self._check_safety(found)

    def _check_safety(self, found: Any) -> None:
        try:
            found.safety_check()
        except self._library.SafetyCheckFailed as error:
            reasons = "; ".join(str(why) for why in error.failures.values())
            raise InvalidArgument("content", f"is not safe to open: {reasons}") from None
        except self._library.ImageFormatError as error:
            raise InvalidArgument("content", str(error)) from None


def _agrees(declared: str, detected: str) -> bool:
    return detected in _RAW if declared == "raw" else detected == declared


async def virtual_bytes(path: Path, declared: str, size_bytes: int) -> int:
    """Size of the disk in an image file of `size_bytes`, after a look at the whole. Errors: InvalidArgument."""
    if declared == "raw":
        return -(-size_bytes // 512) * 512
    info = await _qemu_img("info", path)
    described = json.loads(info)
    specific = described.get("format-specific", {}).get("data", {})
    if "backing-filename" in described or "data-file" in specific:
        raise InvalidArgument("content", "is not safe to open: it names another file")
    if described.get("encrypted"):
        raise InvalidArgument("content", "is encrypted; nobody here has the key")
    await _qemu_img("check", path)
    return int(described["virtual-size"])


async def _qemu_img(verb: str, path: Path) -> str:
    try:
        return await command.run(
            "qemu-img", verb, "-f", "qcow2", "--output", "json", str(path), timeout_s=TIMEOUT_S, limits=LIMITS
        )
    except CommandFailed as error:
        if verb == "check" and error.code == LEAKS_ONLY:
            return ""
        raise InvalidArgument("content", "is a damaged qcow2 image") from None
