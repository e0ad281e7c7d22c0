"""Images by their content: `blobs/<sha256>` is the bytes, `blobs/<sha256>.json` what is known of them.

A blob is there when its bytes have their name; the description is written before and removed after, so whatever moment the
power goes, a start finds whole blobs, and rests that it removes (`incoming/`, descriptions without a blob).
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from daemonkit import failpoint
from daemonkit.errors import ConfigError, Conflict, NotFound, OutOfSpace
from daemonkit.runtime import Runtime, Threads
from daemonkit.tls import write_private
from storaged.durable import sync_directory
from storaged.images.inspection import Inspection
from storaged.images.upload import LANES, Upload
from storaged.spec import HeldBlob, ImageFile

log = logging.getLogger(__name__)

UPLOADS_AT_ONCE = 4


def room_bytes(directory: Path) -> int:
    """Free on its file system."""
    room = os.statvfs(directory)
    return room.f_bavail * room.f_frsize


class ImageStore:
    """`changed` is called with a sha256 when that blob came, went or is no longer in use."""

    def __init__(
        self, directory: Path, reserve_bytes: int, runtime: Runtime, room_bytes: Callable[[Path], int] = room_bytes
    ) -> None:
        """`room_bytes`: how much a directory can still take; a simulation has its own."""
        self._blobs, self._incoming = directory / "blobs", directory / "incoming"
        self._reserve_bytes, self._room_bytes = reserve_bytes, room_bytes
        self._runtime = runtime
        self._threads: Threads = runtime.threads("images", UPLOADS_AT_ONCE * LANES)
        self._held: dict[str, HeldBlob] = {}
        self._borrowed: dict[str, int] = {}
        self._keeping: set[asyncio.Future[HeldBlob]] = set()
        self._changing = asyncio.Lock()  # a blob can't come and go at once
        self.changed: Callable[[str], None] = lambda _sha256: None

    async def open(self) -> None:
        """Errors: ConfigError when the directories can't be made."""
        await self._threads.run(self._open)

    def _open(self) -> None:
        try:
            for directory in (self._blobs, self._incoming):
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(f"{error.filename}: {error.strerror}") from None
        for rest in self._incoming.iterdir():
            rest.unlink()
        for description in self._blobs.iterdir():
            if description.suffix == ".new":
                description.unlink()
            elif description.suffix == ".json":
                self._load(description)

    def _load(self, description: Path) -> None:
        if not description.with_suffix("").exists():
            description.unlink()
            return
        try:
            held = HeldBlob(**json.loads(description.read_text()))
        except (ValueError, TypeError) as error:
            log.error("damaged description of an image", extra={"file": description.name, "why": str(error)})
            return
        self._held[held.sha256] = held

    def close(self) -> None:
        self._threads.close()

    @property
    def held(self) -> Mapping[str, HeldBlob]:
        return self._held

    def free_bytes(self) -> int:
        """What uploads can still take."""
        return max(0, self._room_bytes(self._blobs) - self._reserve_bytes)

    @asynccontextmanager
    async def receive(self, declared: str, size_bytes_max: int = 0) -> AsyncIterator[Upload]:
        """For the time of an upload; nothing of it is left unless `keep` was called. Errors: InvalidArgument."""
        inspection = await self._threads.run(Inspection, declared)
        path = self._incoming / self._runtime.new_id()
        upload = Upload(path, inspection, size_bytes_max, self._reserve_bytes, self._threads)
        try:
            yield upload
        finally:
            upload.discard()

    async def keep(self, upload: Upload, sha256: str) -> HeldBlob:
        """Errors: InvalidArgument, OutOfSpace; nothing is kept then."""
        held = await upload.finish(sha256)
        failpoint.hit("blob-received")
        keeping = asyncio.ensure_future(self._keep(upload.path, held))
        self._keeping.add(keeping)
        keeping.add_done_callback(self._keeping.discard)
        return await asyncio.shield(keeping)  # a caller who goes away now leaves a blob or none, not half of one

    async def _keep(self, incoming: Path, held: HeldBlob) -> HeldBlob:
        async with self._changing:
            if known := self._held.get(held.sha256):
                return known
            await self._threads.run(self._give_name, incoming, held)
            self._held[held.sha256] = held
        self.changed(held.sha256)
        return held

    def _give_name(self, incoming: Path, held: HeldBlob) -> None:
        path = self._blobs / held.sha256
        description = path.with_suffix(".json")
        try:
            write_private(description, json.dumps(dataclasses.asdict(held)).encode())
            failpoint.hit("blob-described")
            incoming.rename(path)
            sync_directory(self._blobs)
        except OSError as error:
            for rest in (path, description, description.with_name(description.name + ".new")):
                rest.unlink(missing_ok=True)
            raise OutOfSpace(f"the image store can't keep it: {error.strerror}") from None
        failpoint.hit("blob-kept")

    @asynccontextmanager
    async def borrow(self, sha256: str) -> AsyncIterator[ImageFile]:
        """While it is borrowed a blob is not removed. Errors: NotFound."""
        if sha256 not in self._held:
            raise NotFound("image", sha256)
        self._borrowed[sha256] = self._borrowed.get(sha256, 0) + 1
        try:
            yield ImageFile(self._blobs / sha256, self._held[sha256].format)
        finally:
            self._borrowed[sha256] -= 1
            if not self._borrowed[sha256]:
                del self._borrowed[sha256]
                self.changed(sha256)

    async def remove(self, sha256: str) -> None:
        """Errors: Conflict while somebody reads it; `changed` tells when nobody does any more."""
        if sha256 in self._borrowed:
            raise Conflict("the image is being read")
        async with self._changing:
            if self._held.pop(sha256, None):
                await self._threads.run(self._remove, sha256)
        self.changed(sha256)

    def _remove(self, sha256: str) -> None:
        path = self._blobs / sha256
        path.unlink(missing_ok=True)
        failpoint.hit("blob-unlinked")
        path.with_suffix(".json").unlink(missing_ok=True)
        sync_directory(self._blobs)
