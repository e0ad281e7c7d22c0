"""One image on its way in: written, inspected and summed as the chunks come.

Chunk n is worked on in threads (the sums let go of the interpreter) while chunk n+1 is on its way.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from daemonkit.errors import InvalidArgument, OutOfSpace
from daemonkit.runtime import Threads
from storaged.images.inspection import Inspection, virtual_bytes
from storaged.spec import HeldBlob

CHUNK_BYTES_MAX = 1 << 20
LANES = 3  # threads that one upload can use


class Upload:
    """`reserve_bytes` of the file system stay free. `size_bytes_max`: 0 = no limit but space."""

    def __init__(self, path: Path, inspection: Inspection, size_bytes_max: int, reserve_bytes: int, threads: Threads) -> None:
        self.path = path
        self.size_bytes = 0
        self._inspection, self._size_bytes_max, self._reserve_bytes = inspection, size_bytes_max, reserve_bytes
        self._threads = threads
        self._md5, self._sha256, self._sha512 = hashlib.md5(usedforsecurity=False), hashlib.sha256(), hashlib.sha512()
        self._lanes: tuple[Callable[[bytes], None], ...] = (self._store, self._sum_twice, self._sha512.update)
        self._working: asyncio.Future[list[BaseException | None]] | None = None
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    async def write(self, chunk: bytes) -> None:
        """Errors, some of them one chunk late: InvalidArgument, OutOfSpace."""
        if len(chunk) > CHUNK_BYTES_MAX:
            raise InvalidArgument("chunk", f"is larger than {CHUNK_BYTES_MAX} bytes")
        self.size_bytes += len(chunk)
        if self._size_bytes_max and self.size_bytes > self._size_bytes_max:
            raise OutOfSpace(f"the image is larger than the {self._size_bytes_max} bytes it may have")
        await self._settle()
        self._begin(*(self._threads.run(lane, chunk) for lane in self._lanes))

    def _begin(self, *work: Coroutine[Any, Any, None]) -> None:
        self._working = asyncio.gather(*work, return_exceptions=True)

    async def _settle(self) -> None:
        """Waits for the threads; whoever is cancelled here does not stop them. Errors: those of the threads."""
        if self._working is None:
            return
        results = await asyncio.shield(self._working)
        self._working = None
        for error in results:
            if error is not None:
                raise error

    def _store(self, chunk: bytes) -> None:
        room = os.fstatvfs(self._file)
        if room.f_bavail * room.f_frsize < self._reserve_bytes + len(chunk):
            raise OutOfSpace("the image store is full")
        view = memoryview(chunk)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as error:
            raise _told(error) from None
        self._inspection.feed(chunk)

    def _sum_twice(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        self._md5.update(chunk)

    async def finish(self, sha256: str) -> HeldBlob:
        """Everything is checked and on the disk, under a temporary name. `sha256`: what it should be, "" = not known.

        Errors: InvalidArgument, OutOfSpace.
        """
        await self._settle()
        if self.size_bytes == 0:
            raise InvalidArgument("content", "is empty")
        self._begin(self._threads.run(self._inspection.finish))
        await self._settle()
        held = HeldBlob(
            sha256=self._sha256.hexdigest(),
            size_bytes=self.size_bytes,
            format=self._inspection.declared,
            virtual_bytes=await virtual_bytes(self.path, self._inspection.declared, self.size_bytes),
            md5=self._md5.hexdigest(),
            sha512=self._sha512.hexdigest(),
        )
        if sha256 and sha256.lower() != held.sha256:
            raise InvalidArgument("sha256", f"is {held.sha256}, not {sha256[:64]} as announced")
        self._begin(self._threads.run(self._sync))
        await self._settle()
        return held

    def _sync(self) -> None:
        try:
            os.fsync(self._file)
        except OSError as error:
            raise _told(error) from None

    def discard(self) -> None:
        """Leaves nothing; harmless after the file was renamed away. The file is closed when no thread uses it any more."""
        self.path.unlink(missing_ok=True)
        if self._working is None:
            os.close(self._file)
        else:
            self._working.add_done_callback(lambda _working: os.close(self._file))


def _told(error: OSError) -> Exception:
    return OutOfSpace("the image store is full") if error.errno in (errno.ENOSPC, errno.EDQUOT) else error
