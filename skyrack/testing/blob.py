"""Image content between the daemons of one process: the ports of `controllerd.agents.blob` and `storaged.reconcile`, without
the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator

from controllerd.agents.blob import Stored
from daemonkit.errors import Unavailable
from storaged.images.store import ImageStore
from storaged.reconcile import Fetch
from storaged.spec import Image

CHUNK_BYTES = 1 << 20


class MemoryBlobs:
    """By the address that each storage node tells. One that is not here does not answer."""

    def __init__(self) -> None:
        self.stores: dict[str, ImageStore] = {}

    def _store(self, address: str) -> ImageStore:
        if address not in self.stores:
            raise Unavailable(f"no storage node at {address}")
        return self.stores[address]

    async def put(self, address: str, format_: str, size_bytes_max: int, content: AsyncIterator[bytes | str]) -> Stored:
        """As `controllerd.agents.blob.BlobStore.put`."""
        store = self._store(address)
        async with store.receive(format_, size_bytes_max) as upload:
            async for part in content:
                if isinstance(part, str):
                    held = await store.keep(upload, part)
                    return Stored(held.sha256, held.size_bytes, held.virtual_bytes, held.md5, held.sha512)
                await upload.write(part)
        raise Unavailable("the upload ended without commit")

    async def get(self, address: str, sha256: str, offset: int) -> AsyncIterator[bytes]:
        """As `controllerd.agents.blob.BlobStore.get`."""
        async with self._store(address).borrow(sha256) as file:
            with file.path.open("rb") as content:
                content.seek(offset)
                while chunk := content.read(CHUNK_BYTES):
                    yield chunk

    def fetch_to(self, address: str) -> Fetch:
        """What the storage node at `address` gets images of other nodes with."""

        async def fetch(image: Image) -> None:
            for source in image.sources:
                if source in self.stores and source != address:
                    await self._copy(source, address, image)
                    return
            raise Unavailable(f"no storage node gives image {image.sha256}")

        return fetch

    async def _copy(self, source: str, to: str, image: Image) -> None:
        async with self.stores[to].receive(image.format) as upload:
            async for chunk in self.get(source, image.sha256, 0):
                await upload.write(chunk)
            await self.stores[to].keep(upload, image.sha256)
