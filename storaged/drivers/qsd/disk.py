"""Volumes as qcow2 files: `<volume id>.qcow2`. One is made under another name and gets its own when it is whole and durable.

Nothing here ever puts a new file in the place of one that is there, whatever state that is in. And because a disk that is not
mounted looks like one on which everything has yet to be made, the directory carries an identity that is known elsewhere too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from daemonkit import command, failpoint
from daemonkit.errors import CommandFailed, ConfigError, Conflict, InvalidArgument, OutOfSpace, SkyrackError
from daemonkit.runtime import Runtime
from daemonkit.tls import write_private
from storaged.durable import sync_directory, sync_file
from storaged.spec import ImageFile, Space, Volume

log = logging.getLogger(__name__)

SUFFIX = ".qcow2"
MARK = ".skyrack-volumes"
PARTIAL = ".partial"
# Sub-clusters: a small first write neither copies nor zeroes 64 KiB, and the tables stay small.
FORMAT_OPTIONS = "extended_l2=on,cluster_size=128k"
CONVERT_LIMITS = command.Limits(memory_bytes=2 << 30, cpu_s=3600)
CONVERT_TIMEOUT_S = 7200.0
COMMANDS_AT_ONCE = 4
FULL_BYTES = 16 << 20  # a file system with less than this is full

_MAGIC = b"QFI\xfb"
_SIZE_AT = 24  # of the virtual size, 8 bytes big-endian, in a qcow2 header (docs/interop/qcow2.txt of QEMU)


@dataclass(frozen=True)
class Extent:
    """Of one volume's file."""

    size_bytes: int
    allocated_bytes: int


class VolumeFiles:
    """`identity`: a file on another disk that remembers which directory this is."""

    def __init__(self, directory: Path, identity: Path, runtime: Runtime) -> None:
        self._directory, self._identity, self._runtime = directory, identity, runtime
        self._threads = runtime.threads("volumes", 2)
        self._commands = asyncio.Semaphore(COMMANDS_AT_ONCE)

    def path(self, volume_id: str) -> Path:
        return self._directory / (volume_id + SUFFIX)

    async def open(self) -> None:
        """Removes what an interrupted run left. Errors: ConfigError, also when this is not the directory of the last time."""
        await self._threads.run(self._open)

    def _open(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._check_identity()
            for rest in self._directory.glob("*" + PARTIAL):
                rest.unlink()
        except OSError as error:
            raise ConfigError(f"{error.filename}: {error.strerror}") from None

    def _check_identity(self) -> None:
        mark = self._directory / MARK
        here = mark.read_text() if mark.exists() else ""
        known = self._identity.read_text() if self._identity.exists() else ""
        if known and known != here:
            raise ConfigError(
                f"{self._directory} is not the directory whose volumes this node keeps; is its disk mounted?"
                f" If they are to be given up, remove {self._identity}"
            )
        if not here:
            here = self._runtime.new_id()
            write_private(mark, here.encode())
        if not known:
            write_private(self._identity, here.encode())

    def close(self) -> None:
        self._threads.close()

    async def extents(self) -> dict[str, Extent]:
        return await self._threads.run(self._extents)

    def _extents(self) -> dict[str, Extent]:
        found = {}
        for path in self._directory.glob("*" + SUFFIX):
            volume_id = path.name.removesuffix(SUFFIX)
            try:
                extent = self._extent(volume_id)
            except SkyrackError as error:
                log.error("a volume can't be read", extra={"volume": volume_id, "why": error.message})
                continue
            if extent:
                found[volume_id] = extent
        return found

    async def extent(self, volume_id: str) -> Extent | None:
        return await self._threads.run(self._extent, volume_id)

    def _extent(self, volume_id: str) -> Extent | None:
        """None when there is no such file. Errors: Conflict when there is one that can't be a volume."""
        try:
            with self.path(volume_id).open("rb") as file:
                header = file.read(_SIZE_AT + 8)
                blocks = os.fstat(file.fileno()).st_blocks
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Conflict(f"the volume's file can't be read: {error.strerror}") from None
        if len(header) < _SIZE_AT + 8 or not header.startswith(_MAGIC):
            raise Conflict("the volume's file is damaged")
        return Extent(struct.unpack_from(">Q", header, _SIZE_AT)[0], blocks * 512)

    async def make(self, volume: Volume, image: ImageFile | None) -> None:
        """Errors: InvalidArgument when the image is larger than the volume, OutOfSpace, CommandFailed, Conflict."""
        if await self.extent(volume.id):
            return
        partial = self._directory / (volume.id + PARTIAL)
        try:
            if image is None:
                await self._qemu_img("create", "-q", "-f", "qcow2", "-o", FORMAT_OPTIONS, str(partial), str(volume.size_bytes))
            else:
                await self._copy(image, partial, volume.size_bytes)
            failpoint.hit("volume-filled")
            await self._threads.run(self._give_name, partial, self.path(volume.id))
        finally:
            partial.unlink(missing_ok=True)
        failpoint.hit("volume-made")

    async def _copy(self, image: ImageFile, partial: Path, size_bytes: int) -> None:
        source, target = str(image.path), str(partial)
        await self._qemu_img("convert", "-f", image.format, "-O", "qcow2", "-o", FORMAT_OPTIONS, source, target)
        with partial.open("rb") as file:
            image_bytes = struct.unpack_from(">Q", file.read(_SIZE_AT + 8), _SIZE_AT)[0]
        if image_bytes > size_bytes:
            raise InvalidArgument("size", f"the image needs {image_bytes} bytes, the volume has {size_bytes}")
        await self._qemu_img("resize", "-q", "-f", "qcow2", target, str(size_bytes))

    def _give_name(self, partial: Path, path: Path) -> None:
        sync_file(partial)
        path.hardlink_to(partial)  # where a rename would replace what is there
        partial.unlink()
        sync_directory(self._directory)

    async def grow(self, volume_id: str, size_bytes: int) -> None:
        """Nobody may have the volume open. Errors: CommandFailed."""
        extent = await self.extent(volume_id)
        if extent and extent.size_bytes < size_bytes:
            await self._qemu_img("resize", "-q", "-f", "qcow2", str(self.path(volume_id)), str(size_bytes))

    async def remove(self, volume_id: str) -> None:
        await self._threads.run(self._remove, self.path(volume_id))
        failpoint.hit("volume-removed")

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        sync_directory(self._directory)

    def space(self) -> Space:
        room = os.statvfs(self._directory)
        return Space(room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize)

    async def _qemu_img(self, *arguments: str) -> None:
        async with self._commands:
            try:
                await command.run("qemu-img", *arguments, timeout_s=CONVERT_TIMEOUT_S, limits=CONVERT_LIMITS)
            except CommandFailed:
                if self.space().free_bytes < FULL_BYTES:
                    raise OutOfSpace("the volume store is full") from None
                raise
