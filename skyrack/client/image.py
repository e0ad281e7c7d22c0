"""Images: bootable templates; upload from and download to files."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import grpc
import grpc.aio
from google.protobuf.empty_pb2 import Empty

from skyrack.client import errors
from skyrack.client.collection import Collection, Ref, id_of, new_key
from skyrack.client.connection import Connection, Metadata, Retry
from skyrack.client.fault import Fault
from skyrack.client.wire import to_record
from skyrack.v1 import image_pb2 as pb

CHUNK_BYTES = 1 << 20
BytesDone = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all)."""


@dataclass(frozen=True)
class Image:
    id: str
    name: str
    project_id: str
    public: bool
    state: str
    """QUEUED (no content yet), SAVING, ACTIVE or ERROR."""
    format: str
    size_bytes: int
    virtual_bytes: int
    sha256: str
    min_disk_gib: int
    min_memory_mib: int
    fault: Fault | None
    created_at: datetime.datetime | None
    properties: Mapping[str, str]


class Images(Collection[Image]):
    kind, service, record = "image", "ImageService", Image

    async def create(
        self,
        name: str,
        *,
        format: str = "qcow2",
        public: bool = False,
        min_disk_gib: int = 0,
        min_memory_mib: int = 0,
        properties: Mapping[str, str] | None = None,
    ) -> Image:
        """The record only, state QUEUED; `upload` brings the content. `format`: "qcow2" or "raw"."""
        request = pb.CreateImageRequest(
            name=name,
            format=format,
            public=public,
            min_disk_gib=min_disk_gib,
            min_memory_mib=min_memory_mib,
            properties=dict(properties or {}),
            idempotency_key=new_key(),
        )
        return await self._one("CreateImage", request, pb.Image)

    async def get(self, ref: Ref) -> Image:
        return await self._one("GetImage", pb.GetImageRequest(image_id=id_of(ref)), pb.Image)

    def list(self, *, name: str = "", all_projects: bool = False) -> AsyncIterator[Image]:
        """Public ones and the project's own. `all_projects`: admins."""
        request = pb.ListImagesRequest(name=name, all_projects=all_projects)
        return self._pages("ListImages", request, pb.ListImagesResponse, "images")

    async def update(
        self,
        ref: Ref,
        *,
        name: str | None = None,
        public: bool | None = None,
        min_disk_gib: int | None = None,
        min_memory_mib: int | None = None,
    ) -> Image:
        request = pb.UpdateImageRequest(
            image_id=id_of(ref), name=name, public=public, min_disk_gib=min_disk_gib, min_memory_mib=min_memory_mib
        )
        return await self._one("UpdateImage", request, pb.Image)

    async def delete(self, ref: Ref) -> None:
        await self._delete("DeleteImage", pb.DeleteImageRequest(image_id=id_of(ref)), Empty)

    async def upload(self, ref: Ref, path: str | Path, *, progress: BytesDone | None = None) -> Image:
        """Sends the file's content; gives the image, ACTIVE. A broken connection begins again from the start.

        Errors: InvalidArgument (not what its format says), OutOfSpace, QuotaExceeded, Conflict (has content already), OSError.
        """
        upload = _Upload(self._connection, id_of(ref), Path(path), progress)
        try:
            return to_record(Image, await self._connection.run(upload.send, retry=Retry.SAFE))
        except errors.Conflict as error:
            # The answer to an earlier try may have been lost after its commit.
            image = await self.get(ref) if error.resent else None
            if image is not None and image.state == "ACTIVE" and image.sha256 == upload.sha256:
                return image
            raise

    async def download(self, ref: Ref, path: str | Path, *, progress: BytesDone | None = None) -> Image:
        """Writes the content to `path`, which appears only when all of it is there and its checksum fits.

        Errors: NotFound, Conflict (no content), CloudError when the checksum is wrong, OSError.
        """
        image = await self.get(ref)
        target = Path(path)
        partial = target.with_name(target.name + ".part")
        try:
            with partial.open("wb") as file:
                await self._fetch(image, file, progress)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return image

    async def _fetch(self, image: Image, file: BinaryIO, progress: BytesDone | None) -> None:
        done, digest = 0, hashlib.sha256()

        def request() -> pb.DownloadImageRequest:
            return pb.DownloadImageRequest(image_id=image.id, offset=done)

        async for chunk in self._connection.stream("ImageService/DownloadImage", request, pb.ImageChunk):
            await asyncio.to_thread(_write, file, digest, chunk.data)
            done += len(chunk.data)
            if progress is not None:
                progress(done, image.size_bytes)
        if image.sha256 and digest.hexdigest() != image.sha256:
            raise errors.CloudError(f"image {image.name}: what arrived has not the image's checksum; nothing was kept")


class _Upload:
    """One file on its way up; `send` may be called again after a break.

    Goes through gRPC's blocking interface, in a thread: the asynchronous one loses the cloud's answer when that comes while a
    chunk is being written (it says "INTERNAL" instead), which is how every refused upload ends.
    """

    def __init__(self, connection: Connection, image_id: str, path: Path, progress: BytesDone | None) -> None:
        self._connection, self._image_id, self._path, self._progress = connection, image_id, path, progress
        self._loop = asyncio.get_running_loop()
        self._unreadable: OSError | None = None
        self.sha256 = ""

    async def send(self, _channel: grpc.aio.Channel, metadata: Metadata) -> pb.Image:
        with self._path.open("rb") as file, self._connection.blocking_channel() as channel:
            stub = channel.stream_unary(
                "/skyrack.v1.ImageService/UploadImage",
                request_serializer=pb.UploadImageRequest.SerializeToString,
                response_deserializer=pb.Image.FromString,
            )
            call = stub.future(self._parts(file), metadata=metadata)
            try:
                answer: pb.Image = await asyncio.to_thread(call.result)
            except grpc.RpcError:
                if self._unreadable is not None:
                    raise self._unreadable from None
                raise
            finally:
                call.cancel()
            return answer

    def _parts(self, file: BinaryIO) -> Iterator[pb.UploadImageRequest]:
        """Begin, the chunks and commit; without commit when the file can't be read. Runs in gRPC's thread."""
        total, done, digest = self._path.stat().st_size, 0, hashlib.sha256()
        yield pb.UploadImageRequest(begin=pb.UploadImageBegin(image_id=self._image_id))
        try:
            while chunk := file.read(CHUNK_BYTES):
                yield pb.UploadImageRequest(chunk=chunk)
                digest.update(chunk)
                done += len(chunk)
                if self._progress is not None:
                    self._loop.call_soon_threadsafe(self._progress, done, total)
        except OSError as error:
            self._unreadable = error
            return
        self.sha256 = digest.hexdigest()
        yield pb.UploadImageRequest(commit=pb.UploadImageCommit(sha256=self.sha256))


def _write(file: BinaryIO, digest: hashlib._Hash, data: bytes) -> None:
    digest.update(data)
    file.write(data)
