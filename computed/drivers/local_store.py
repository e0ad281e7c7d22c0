"""Files of this node's servers: one directory a server with its root disk and config drive; console logs beside.

A root disk is a qcow2 overlay on the cached image. Files are written beside their name and renamed, so what has its name is
whole.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from computed.config_drive import config_drive
from computed.domain_xml import config_drive_path, console_log_path, console_socket_path, root_disk_path, vnc_socket_path
from computed.drivers.base import BlobSource
from computed.drivers.image_cache import ImageCache
from computed.qcow2 import read_header
from computed.spec import GIB, Files, Image, Server
from daemonkit import command, failpoint
from daemonkit.errors import InvalidArgument
from daemonkit.runtime import Runtime

log = logging.getLogger(__name__)

QEMU_IMG_LIMITS = command.Limits(memory_bytes=1 << 30, cpu_s=30)
QEMU_IMG_TIMEOUT_S = 60
ROTATED_LOGS = 3  # virtlogd keeps so many older pieces of a console log


class LocalStore:
    def __init__(
        self,
        *,
        images_dir: Path,
        images_max_bytes: int,
        disks_dir: Path,
        console_dir: Path,
        source: BlobSource,
        runtime: Runtime,
    ) -> None:
        self._disks_dir, self._console_dir = disks_dir, console_dir
        self._wanted: set[str] = set()
        self._threads = runtime.threads("store", 2)
        self._images = ImageCache(images_dir, images_max_bytes, source, runtime, self._images_in_use)
        for directory in (disks_dir, console_dir):
            _make_directory(directory)

    # ---- looking

    def files(self, server: Server) -> Files:
        return Files(
            image=self._images.holds(server.image.sha256),
            root_disk=root_disk_path(self._disks_dir, server.server_id).exists(),
            config_drive=config_drive_path(self._disks_dir, server.server_id).exists(),
            anything=any(os.path.lexists(path) for path in self._all_paths(server.server_id)),
        )

    def servers(self) -> set[str]:
        return {entry.name for entry in os.scandir(self._disks_dir) if entry.is_dir() and _is_uuid(entry.name)}

    def images(self) -> list[str]:
        return self._images.held()

    def disk_bytes(self) -> int:
        return shutil.disk_usage(self._disks_dir).total

    def keep_images(self, servers: Sequence[Server]) -> None:
        self._wanted = {server.image.sha256 for server in servers if not server.absent}

    def _images_in_use(self) -> set[str]:
        """Those that servers will need, and those under root disks, whoever these belong to."""
        used = set(self._wanted)
        for path in self._disks_dir.glob("*/root.qcow2*"):
            header = read_header(path)
            if header is not None and header.backing_file:
                used.add(Path(header.backing_file).stem)
        return used

    def _all_paths(self, server_id: str) -> list[Path]:
        console = console_log_path(self._console_dir, server_id)
        older = [console.with_name(f"{console.name}.{n}") for n in range(ROTATED_LOGS)]
        sockets = [console_socket_path(self._console_dir, server_id), vnc_socket_path(self._console_dir, server_id)]
        return [self._disks_dir / server_id, console, *older, *sockets]

    # ---- making

    async def fetch_image(self, server: Server) -> None:
        await self._images.fetch(server.image)

    async def make_disks(self, server: Server) -> None:
        _make_directory(self._disks_dir / server.server_id)
        try:
            async with asyncio.TaskGroup() as group:
                if not root_disk_path(self._disks_dir, server.server_id).exists():
                    group.create_task(self._make_root_disk(server))
                if server.config_drive:
                    group.create_task(self._make_config_drive(server))
        except ExceptionGroup as several:
            raise several.exceptions[0] from None

    async def _make_root_disk(self, server: Server) -> None:
        path = root_disk_path(self._disks_dir, server.server_id)
        partial = path.with_name(path.name + ".partial")
        base = self._images.path(server.image.sha256)
        size_bytes = _root_disk_bytes(server, _virtual_bytes(base, server.image))
        self._images.touch(server.image.sha256)
        await command.run(
            "qemu-img", "create", "-q", "-f", "qcow2", "-F", server.image.format, "-b", str(base),
            str(partial), str(size_bytes),
            timeout_s=QEMU_IMG_TIMEOUT_S, limits=QEMU_IMG_LIMITS,
        )  # fmt: skip
        partial.chmod(0o600)
        failpoint.hit("computed.disk.made")
        partial.replace(path)

    async def _make_config_drive(self, server: Server) -> None:
        await self._threads.run(self._write_config_drive, server)

    def _write_config_drive(self, server: Server) -> None:
        path = config_drive_path(self._disks_dir, server.server_id)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(config_drive(server))
        partial.chmod(0o600)  # it may hold secrets; libvirt hands it to QEMU
        partial.replace(path)

    # ---- ending

    async def remove(self, server_id: str) -> None:
        await self._threads.run(self._remove, server_id)

    def _remove(self, server_id: str) -> None:
        directory, *files = self._all_paths(server_id)
        if directory.exists():
            shutil.rmtree(directory)
        failpoint.hit("computed.disk.removed")
        for path in files:
            path.unlink(missing_ok=True)

    async def console_log(self, server_id: str, bytes_max: int) -> bytes:
        return await self._threads.run(self._console_log, server_id, bytes_max)

    def _console_log(self, server_id: str, bytes_max: int) -> bytes:
        """The current piece, and as many older ones as it takes. A server that never ran has said nothing."""
        current = console_log_path(self._console_dir, server_id)
        text = b""
        for path in (current, *(current.with_name(f"{current.name}.{n}") for n in range(ROTATED_LOGS))):
            if len(text) >= bytes_max or not path.exists():
                break
            text = _tail(path, bytes_max - len(text)) + text
        return text

    def close(self) -> None:
        self._images.close()
        self._threads.close()


def _make_directory(path: Path) -> None:
    """Passed through by QEMU's user, listed by nobody but us."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o711)


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def _tail(path: Path, bytes_max: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - bytes_max))
        return file.read(bytes_max)


def _virtual_bytes(base: Path, image: Image) -> int:
    """As the content says, whatever we were told."""
    if image.format == "raw":
        return base.stat().st_size
    header = read_header(base)
    if header is None:
        raise InvalidArgument("image", "is not qcow2")
    return header.virtual_bytes


def _root_disk_bytes(server: Server, virtual_bytes: int) -> int:
    wanted = server.root_disk_gib * GIB
    if wanted and virtual_bytes > wanted:
        needed_gib = -(-virtual_bytes // GIB)
        raise InvalidArgument("root_disk_gib", f"the image needs {needed_gib} GiB, the disk has {server.root_disk_gib} GiB")
    return wanted or virtual_bytes
