"""Images: the record first, then the content, streamed through to a storage node and inspected there before it counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

from controllerd.agents.blob import BlobStore, Stored
from controllerd.app.cloud import Cloud, Once, owned
from controllerd.domain import image as domain
from controllerd.domain.image import Image
from controllerd.domain.page import Page, PageOf
from controllerd.domain.policy import Caller, authorise
from controllerd.store import event, quota, tombstone
from controllerd.store import image as store
from controllerd.store.database import Tx
from controllerd.store.image import IMAGES
from daemonkit.errors import Conflict, InvalidArgument, NotFound, QuotaExceeded, SkyrackError, Unavailable

GIB = 1 << 30


class Images:
    def __init__(self, cloud: Cloud, blobs: BlobStore) -> None:
        self._db, self._blobs = cloud.database, blobs

    async def create(
        self, caller: Caller, name: str, format_: str, public: bool, min_disk_gib: int, min_memory_mib: int,
        properties: dict[str, str], once: Once,
    ) -> Image:  # fmt: skip
        authorise(caller, "image.create")
        if public:
            authorise(caller, "public_resource")

        def make(tx: Tx) -> Image:
            image = domain.queued(
                tx.new_id(), name, caller.project_id, public, format_, min_disk_gib, min_memory_mib, properties, tx.now
            )
            quota.take(tx, caller.project_id, images=1)
            IMAGES.insert(tx, image)
            event.record(tx, "image.create", caller.project_id, image.id, name)
            return image

        return await self._db.write(
            lambda tx: once.run(tx, caller, lambda: make(tx), lambda i: IMAGES.get(tx, i), lambda i: i.id)
        )

    async def get(self, caller: Caller, image_id: str) -> Image:
        authorise(caller, "image.get")
        return await self._db.read(lambda tx: _seen(tx, caller, image_id))

    async def list(self, caller: Caller, name: str, page: Page, all_projects: bool = False) -> PageOf[Image]:
        authorise(caller, "image.list")
        if all_projects:
            authorise(caller, "all_projects")
        return await self._db.read(lambda tx: store.visible(tx, caller.project_id, all_projects, name, page))

    async def update(self, caller: Caller, image_id: str, **changes: str | int | bool) -> Image:
        """`changes`: name, public, min_disk_gib, min_memory_mib."""
        authorise(caller, "image.update")
        if "public" in changes:
            authorise(caller, "public_resource")

        def change(tx: Tx) -> Image:
            changed = replace(_own(tx, caller, image_id), **changes)  # type: ignore[arg-type]
            if changes:
                IMAGES.update(tx, image_id, **changes)
                event.record(tx, "image.update", changed.project_id, image_id)
            return changed

        return await self._db.write(change)

    async def delete(self, caller: Caller, image_id: str) -> None:
        authorise(caller, "image.delete")

        def remove(tx: Tx) -> None:
            image = _own(tx, caller, image_id)
            IMAGES.delete(tx, image_id)
            store.collect(tx, tx.now - store.UNREFERENCED_KEPT_S)
            event.record(tx, "image.delete", image.project_id, image_id, image.name)

        await self._db.write(remove)

    # ---- content

    async def upload(self, caller: Caller, image_id: str, content: AsyncIterator[bytes | str]) -> Image:
        """`content` as for BlobStore.put. Whatever happens the image ends ACTIVE, ERROR or back in QUEUED.

        Errors: Conflict (has content, or another upload is under way), InvalidArgument, QuotaExceeded, OutOfSpace, Unavailable.
        """
        authorise(caller, "image.upload")
        began: list[Image] = []

        def begin(tx: Tx) -> tuple[Image, store.StorageNode, int]:
            begun = _begin(tx, caller, image_id)
            began.append(begun[0])
            return begun

        try:
            return await self._transfer(await self._db.write(begin), content)
        finally:  # in the order of writes after all above, also when we are cancelled; nothing where the upload ended by itself
            await asyncio.shield(self._db.submit(lambda tx: began and store.end_upload(tx, image_id, domain.QUEUED)))

    async def _transfer(self, begun: tuple[Image, store.StorageNode, int], content: AsyncIterator[bytes | str]) -> Image:
        image, node, size_max = begun
        sender = _Sender(content)
        try:
            stored = await self._blobs.put(node.address, image.format, size_max, sender.parts())
        except InvalidArgument as error:
            if error is not sender.error:
                self._db.submit(lambda tx, error=error: _refuse(tx, image, error))  # type: ignore[misc]
            raise
        return await self._db.write(lambda tx: _activate(tx, image, node.node_id, stored))

    async def download(self, caller: Caller, image_id: str, offset: int) -> AsyncIterator[bytes]:
        """Errors: Conflict (no content yet), InvalidArgument (offset), Unavailable."""
        authorise(caller, "image.download")
        image, address = await self._db.read(lambda tx: _located(tx, caller, image_id))
        if offset > image.size_bytes:
            raise InvalidArgument("offset", f"at most {image.size_bytes}, is {offset}")
        async for chunk in self._blobs.get(address, image.sha256, offset):
            yield chunk


class _Sender:
    """The tenant's side of an upload; tells its failures from the storage node's."""

    def __init__(self, content: AsyncIterator[bytes | str]) -> None:
        self._content = content
        self.error: Exception | None = None

    async def parts(self) -> AsyncIterator[bytes | str]:
        try:
            async for part in self._content:
                yield part
        except Exception as error:
            self.error = error
            raise


def usable(tx: Tx, caller: Caller, image_id: str) -> Image:
    """An image that servers and volumes can be made from. Errors: NotFound, Conflict."""
    image = _seen(tx, caller, image_id)
    if image.state != domain.ACTIVE:
        raise Conflict(f"image {image.name!r} is {image.state}, not {domain.ACTIVE}")
    return image


def _seen(tx: Tx, caller: Caller, image_id: str) -> Image:
    image = IMAGES.get(tx, image_id)
    if not image.public:
        owned(caller, "image", image_id, image.project_id)
    return image


def _own(tx: Tx, caller: Caller, image_id: str) -> Image:
    """Errors: NotFound, also for a public image of another project: it may be used, not changed."""
    image = _seen(tx, caller, image_id)
    if not caller.owns(image.project_id):
        raise NotFound("image", image_id)
    return image


def _begin(tx: Tx, caller: Caller, image_id: str) -> tuple[Image, store.StorageNode, int]:
    image = _own(tx, caller, image_id)
    if image.state == domain.SAVING:
        raise Conflict("another upload of this image is under way")
    if image.state != domain.QUEUED:
        raise Conflict(f"image {image.name!r} is {image.state}; its content can't be changed, make a new image")
    nodes = store.storage_nodes(tx)
    if not nodes:
        raise Unavailable("no storage node is in session")
    limit, used = quota.limits(tx, image.project_id)["image_gib"], quota.used(tx, image.project_id, "image_gib")["image_gib"]
    if limit >= 0 and used >= limit:
        raise QuotaExceeded("image_gib", limit, used, 1)
    IMAGES.update(tx, image_id, state=domain.SAVING)
    return image, nodes[0], (limit - used) * GIB if limit >= 0 else 0


def _activate(tx: Tx, image: Image, node_id: str, stored: Stored) -> Image:
    IMAGES.get(tx, image.id)  # NotFound: deleted while it was uploaded; the content is collected later
    if tombstone.stands(tx, node_id, "blob", stored.sha256):
        raise Unavailable("the same content is just being removed; upload again")
    quota.take(tx, image.project_id, image_gib=-(-stored.size_bytes // GIB))
    store.put_blob(tx, stored.sha256, node_id, stored.size_bytes)
    content = {
        "state": domain.ACTIVE, "size_bytes": stored.size_bytes, "virtual_bytes": stored.virtual_bytes,
        "sha256": stored.sha256, "md5": stored.md5, "sha512": stored.sha512,
    }  # fmt: skip
    IMAGES.update(tx, image.id, **content)
    event.record(tx, "image.active", image.project_id, image.id, image.name, sha256=stored.sha256)
    tx.touch(image.id)
    return replace(image, **content)  # type: ignore[arg-type]


def _refuse(tx: Tx, image: Image, error: SkyrackError) -> None:
    if store.end_upload(tx, image.id, domain.ERROR, error.reason, error.message):
        event.record(tx, "image.refused", image.project_id, image.id, error.message)


def _located(tx: Tx, caller: Caller, image_id: str) -> tuple[Image, str]:
    image = usable(tx, caller, image_id)
    addresses = store.sources(tx, image.sha256)
    if not addresses:
        raise Unavailable("no storage node that holds the image is in session")
    return image, addresses[0]
