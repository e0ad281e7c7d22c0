"""Images: whole or not at all, looked into before use, fetched once for many, and thrown out when nobody uses them."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from computed.drivers.image_cache import ImageCache
from computed.spec import Image
from daemonkit.errors import InvalidArgument, NotFound, OutOfSpace, Unavailable
from daemonkit.runtime import Runtime, SystemClock, ThreadPool
from tests.computed.conftest import sha256

RUNTIME = Runtime(SystemClock(), random.Random(1), ThreadPool)
CHUNK_BYTES = 65536


class Shelf:
    """A storage node in memory. `broken` addresses end after one chunk."""

    def __init__(self, *contents: bytes) -> None:
        self.blobs = {sha256(content): content for content in contents}
        self.broken: set[str] = set()
        self.calls: list[tuple[str, int]] = []

    async def read(self, address: str, sha256: str, offset: int) -> AsyncIterator[bytes]:
        self.calls.append((address, offset))
        if sha256 not in self.blobs:
            raise NotFound("blob", sha256)
        content = self.blobs[sha256]
        for start in range(offset, len(content), CHUNK_BYTES):
            await asyncio.sleep(0)
            yield content[start : start + CHUNK_BYTES]
            if address in self.broken:
                raise Unavailable("cable pulled")


def raw(fill: bytes, size: int = 300_000) -> bytes:
    return (fill * size)[:size]


def image(content: bytes, *sources: str, declared: str = "raw") -> Image:
    return Image("i", sha256(content), len(content), declared, sources or ("s1",))


def cache(tmp_path: Path, shelf: Shelf, bytes_max: int = 1 << 20, in_use: set[str] | None = None) -> ImageCache:
    return ImageCache(tmp_path / "images", bytes_max, shelf, RUNTIME, lambda: in_use or set())


async def test_one_download_for_many_waiters(tmp_path: Path) -> None:
    content = raw(b"a")
    shelf = Shelf(content)
    images = cache(tmp_path, shelf)
    await asyncio.gather(*(images.fetch(image(content)) for _ in range(10)))
    assert shelf.calls == [("s1", 0)]
    assert images.path(sha256(content)).read_bytes() == content
    assert cache(tmp_path, shelf).held() == [sha256(content)]


async def test_broken_download_goes_on_at_the_next_source(tmp_path: Path) -> None:
    content = raw(b"a")
    shelf = Shelf(content)
    shelf.broken = {"s1"}
    images = cache(tmp_path, shelf)
    await images.fetch(image(content, "s1", "s2"))
    assert shelf.calls == [("s1", 0), ("s2", CHUNK_BYTES)]
    assert images.path(sha256(content)).read_bytes() == content


async def test_goes_on_after_a_restart(tmp_path: Path) -> None:
    content = raw(b"a")
    shelf = Shelf(content)
    shelf.broken = {"s1"}
    with pytest.raises(Unavailable):
        await cache(tmp_path, shelf).fetch(image(content))
    shelf.broken = set()
    await cache(tmp_path, shelf).fetch(image(content))
    assert shelf.calls == [("s1", 0), ("s1", CHUNK_BYTES)]


async def test_next_waiter_goes_on_when_the_first_gives_up(tmp_path: Path) -> None:
    content = raw(b"a", 5_000_000)
    shelf = Shelf(content)
    images = cache(tmp_path, shelf, bytes_max=1 << 24)
    first = asyncio.create_task(images.fetch(image(content)))
    second = asyncio.create_task(images.fetch(image(content)))
    await asyncio.sleep(0.05)
    first.cancel()
    await second
    assert images.path(sha256(content)).read_bytes() == content


async def test_wrong_content_is_refused_and_not_kept(tmp_path: Path) -> None:
    content, other = raw(b"a"), raw(b"b")
    shelf = Shelf()
    shelf.blobs[sha256(content)] = other
    with pytest.raises(InvalidArgument, match="checksum"):
        await cache(tmp_path, shelf).fetch(image(content))
    assert list((tmp_path / "images").iterdir()) == []


async def test_longer_content_than_promised_is_cut_short(tmp_path: Path) -> None:
    content = raw(b"a")
    shelf = Shelf()
    shelf.blobs[sha256(content)] = content * 50
    with pytest.raises(InvalidArgument, match="longer"):
        await cache(tmp_path, shelf, bytes_max=1 << 30).fetch(image(content))
    assert list((tmp_path / "images").iterdir()) == []


def qcow2(backing: bytes = b"") -> bytes:
    """A header that QEMU would follow to its backing file."""
    offset = 512 if backing else 0
    header = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, offset, len(backing), 16, 1 << 30, 0, 1, 65536, 131072, 1, 0, 0)
    return (header.ljust(512, b"\0") + backing).ljust(300_000, b"\0")


@pytest.mark.parametrize(
    ("content", "declared", "why"),
    [
        (qcow2(b"/etc/passwd"), "qcow2", "backing_file"),
        (qcow2(), "raw", "content is qcow2, not raw"),
        (raw(b"a"), "qcow2", "content is raw, not qcow2"),
        (raw(b"a"), "vmdk", "not supported"),
    ],
)
async def test_hostile_image_is_refused(tmp_path: Path, content: bytes, declared: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        await cache(tmp_path, Shelf(content)).fetch(image(content, declared=declared))
    assert list((tmp_path / "images").iterdir()) == []


async def test_checksum_that_is_no_checksum(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="hexadecimal"):
        await cache(tmp_path, Shelf()).fetch(Image("i", "../../etc/passwd", 1, "raw", ("s1",)))


async def test_longest_unused_images_make_room(tmp_path: Path) -> None:
    contents = [raw(bytes([65 + n])) for n in range(4)]
    shelf, in_use = Shelf(*contents), {sha256(contents[0])}
    images = cache(tmp_path, shelf, in_use=in_use)
    for content in contents[:3]:
        await images.fetch(image(content))
        await asyncio.sleep(0.01)
    images.touch(sha256(contents[1]))
    await images.fetch(image(contents[3]))
    assert set(images.held()) == {sha256(contents[n]) for n in (0, 1, 3)}
    in_use.update(images.held())
    with pytest.raises(OutOfSpace):
        await images.fetch(image(contents[2]))
