"""Images on this node, by the sha256 of their content.

A file appears under its name only after its checksum held and it was looked into; until then it is `NAME.partial`, and a
download that broke goes on where it ended. Many servers may wait for one image: the first fetches it, and if that one gives
up the next goes on. When the cache is full, images that no server here uses go, those longest out of use first.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from computed import metric
from computed.drivers.base import BlobSource
from computed.spec import Image
from daemonkit import command, failpoint
from daemonkit.errors import CommandFailed, InvalidArgument, NotFound, OutOfSpace, SkyrackError, Unavailable
from daemonkit.runtime import Runtime

log = logging.getLogger(__name__)

READ_BYTES = 1 << 20
PARTIAL_LIFETIME_S = 86_400.0  # a broken download that nobody went on with
INSPECTION_LIMITS = command.Limits(memory_bytes=1 << 30, cpu_s=30)
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ImageCache:
    def __init__(
        self, directory: Path, bytes_max: int, source: BlobSource, runtime: Runtime, in_use: Callable[[], set[str]]
    ) -> None:
        """`in_use` gives the sha256 of every image that must stay."""
        self._directory, self._bytes_max, self._source, self._in_use = directory, bytes_max, source, in_use
        self._threads = runtime.threads("images", 2)
        self._fetching: dict[str, asyncio.Lock] = {}
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o711)
        _forget_old_partials(directory, runtime.clock.wall_s())
        self._held = {path.stem for path in directory.glob("*.img") if _SHA256.fullmatch(path.stem)}
        self._count()

    def path(self, sha256: str) -> Path:
        return self._directory / f"{sha256}.img"

    def held(self) -> list[str]:
        return sorted(self._held)

    def holds(self, sha256: str) -> bool:
        return sha256 in self._held

    def touch(self, sha256: str) -> None:
        """It is being used now."""
        os.utime(self.path(sha256))

    async def fetch(self, image: Image) -> None:
        """Errors: InvalidArgument, OutOfSpace, Unavailable, NotFound."""
        if not _SHA256.fullmatch(image.sha256):
            raise InvalidArgument("image.sha256", "is not 64 hexadecimal digits")
        if self.holds(image.sha256):
            metric.IMAGE_REQUESTS.labels("cache").inc()
            return
        lock = self._fetching.setdefault(image.sha256, asyncio.Lock())
        async with lock:
            if not self.holds(image.sha256):
                metric.IMAGE_REQUESTS.labels("storage").inc()
                await self._bring(image)
        if not lock.locked():
            self._fetching.pop(image.sha256, None)

    async def _bring(self, image: Image) -> None:
        self._make_room(image)
        partial = self._directory / f"{image.sha256}.partial"
        try:
            digest = await self._download(image, partial)
            failpoint.hit("computed.image.downloaded")
            if digest != image.sha256:
                raise InvalidArgument("image", "its content does not have the checksum it should have")
            await self._inspect(partial, image)
            await self._threads.run(_publish, partial, self.path(image.sha256))
        except InvalidArgument:
            partial.unlink(missing_ok=True)
            raise
        except OSError as error:
            raise OutOfSpace(f"the image can't be stored: {error.strerror}") from None
        self._held.add(image.sha256)
        self._count()

    async def _download(self, image: Image, partial: Path) -> str:
        """From the first source that has it; the next one goes on where a broken one ended. Gives the sha256."""
        digest, offset = await self._threads.run(_digest_of, partial)
        why: SkyrackError = Unavailable("no storage node is named as source of the image")
        for address in image.sources:
            try:
                async for chunk in self._source.read(address, image.sha256, offset):
                    offset += len(chunk)
                    if image.size_bytes and offset > image.size_bytes:
                        raise InvalidArgument("image", "its content is longer than it should be")
                    await self._threads.run(_append, partial, digest, chunk)
                return str(digest.hexdigest())
            except (Unavailable, NotFound) as error:
                log.warning("image not had from", extra={"source": address, "image": image.sha256, "why": error.message})
                why = error
        raise Unavailable(f"the image can't be fetched: {why.message}")

    async def _inspect(self, partial: Path, image: Image) -> None:
        argv = (sys.executable, "-I", "-m", "computed.image_inspection", str(partial), image.format)
        try:
            await command.run(*argv, timeout_s=60, limits=INSPECTION_LIMITS)
        except CommandFailed as error:
            why = (await command.run(*argv, timeout_s=60, limits=INSPECTION_LIMITS, check=False)).strip()
            log.error("image refused", extra={"image": image.sha256, "why": why, "error": error.stderr[-500:]})
            raise InvalidArgument("image", why or "can't be looked into") from None

    def _make_room(self, image: Image) -> None:
        needed, used = image.size_bytes, self._bytes()
        if used + needed <= self._bytes_max:
            return
        unused = [self.path(sha) for sha in self._held - self._in_use()]
        for path in sorted(unused, key=lambda path: path.stat().st_mtime):
            if used + needed <= self._bytes_max:
                break
            used -= path.stat().st_size
            path.unlink()
            self._held.discard(path.stem)
            log.info("image removed from the cache", extra={"image": path.stem})
        self._count()
        if used + needed > self._bytes_max:
            raise OutOfSpace("the image cache is full of images in use")

    def _bytes(self) -> int:
        return sum(self.path(sha).stat().st_size for sha in self._held)

    def _count(self) -> None:
        metric.IMAGE_CACHE_BYTES.set(self._bytes())

    def close(self) -> None:
        self._threads.close()


def _forget_old_partials(directory: Path, now_s: float) -> None:
    for path in directory.glob("*.partial"):
        if path.stat().st_mtime < now_s - PARTIAL_LIFETIME_S:
            path.unlink()


# ---- in a thread


def _digest_of(path: Path) -> tuple[Any, int]:
    """The running checksum and the length of what an earlier, broken download left."""
    digest = hashlib.sha256()
    if path.exists():
        with path.open("rb") as file:
            while chunk := file.read(READ_BYTES):
                digest.update(chunk)
        return digest, path.stat().st_size
    return digest, 0


def _append(path: Path, digest: Any, chunk: bytes) -> None:
    with path.open("ab") as file:
        file.write(chunk)
    digest.update(chunk)


def _publish(partial: Path, final: Path) -> None:
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.chmod(0o644)
    partial.replace(final)
