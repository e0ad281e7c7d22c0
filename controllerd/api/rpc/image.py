"""ImageService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from google.protobuf.empty_pb2 import Empty

from controllerd.agents.blob import CHUNK_BYTES_MAX
from controllerd.api.rpc.gate import Context, Gate, given, once, page, timestamp
from controllerd.app.image import Images
from controllerd.domain import image as domain
from daemonkit.errors import InvalidArgument, SkyrackError, Unavailable
from skyrack.v1 import common_pb2, image_pb2_grpc
from skyrack.v1 import image_pb2 as pb

DRAIN_LIMIT_S = 30.0


class ImageService(image_pb2_grpc.ImageServiceServicer):
    def __init__(self, gate: Gate, images: Images) -> None:
        self._gate, self._images = gate, images

    async def CreateImage(self, request: pb.CreateImageRequest, context: Context) -> pb.Image:
        caller = await self._gate.caller(context)
        return render(
            await self._images.create(
                caller, request.name, request.format, request.public, request.min_disk_gib, request.min_memory_mib,
                dict(request.properties), once(request),
            )
        )  # fmt: skip

    async def UploadImage(self, request_iterator: AsyncIterator[pb.UploadImageRequest], context: Context) -> pb.Image:
        caller = await self._gate.caller(context)
        parts = aiter(request_iterator)
        first = await anext(parts, None)
        if first is None or first.WhichOneof("part") != "begin":
            raise InvalidArgument("part", "the first message must be begin")
        try:
            return render(await self._images.upload(caller, first.begin.image_id, _content(parts)))
        except SkyrackError:
            await _drain(parts)
            raise

    async def DownloadImage(self, request: pb.DownloadImageRequest, context: Context) -> AsyncIterator[pb.ImageChunk]:
        caller = await self._gate.caller(context)
        async for data in self._images.download(caller, request.image_id, request.offset):
            yield pb.ImageChunk(data=data)

    async def GetImage(self, request: pb.GetImageRequest, context: Context) -> pb.Image:
        caller = await self._gate.caller(context)
        return render(await self._images.get(caller, request.image_id))

    async def ListImages(self, request: pb.ListImagesRequest, context: Context) -> pb.ListImagesResponse:
        caller = await self._gate.caller(context)
        found = await self._images.list(caller, request.name, page(request), request.all_projects)
        return pb.ListImagesResponse(images=[render(i) for i in found.items], next_page_token=found.next_token)

    async def UpdateImage(self, request: pb.UpdateImageRequest, context: Context) -> pb.Image:
        caller = await self._gate.caller(context)
        changes = given(request, "name", "public", "min_disk_gib", "min_memory_mib")
        return render(await self._images.update(caller, request.image_id, **changes))

    async def DeleteImage(self, request: pb.DeleteImageRequest, context: Context) -> Empty:
        caller = await self._gate.caller(context)
        await self._images.delete(caller, request.image_id)
        return Empty()


async def _content(parts: AsyncIterator[pb.UploadImageRequest]) -> AsyncIterator[bytes | str]:
    """Chunks, then the sha256 of the commit. Errors: InvalidArgument, Unavailable for a stream that was cut."""
    async for part in parts:
        match part.WhichOneof("part"):
            case "chunk":
                if len(part.chunk) > CHUNK_BYTES_MAX:
                    raise InvalidArgument("chunk", f"at most {CHUNK_BYTES_MAX} bytes, has {len(part.chunk)}")
                yield part.chunk
            case "commit":
                yield part.commit.sha256.lower()
                return
            case _:
                raise InvalidArgument("part", "after begin come chunks and one commit")
    raise Unavailable("the upload ended without commit; nothing was kept")


async def _drain(parts: AsyncIterator[pb.UploadImageRequest]) -> None:
    """Reads on after a refusal: an asyncio client whose write is cut off never learns why the call ended."""
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_LIMIT_S):
            async for _part in parts:
                pass


def render(image: domain.Image) -> pb.Image:
    fault = common_pb2.Fault(reason=image.fault_reason, message=image.fault_message) if image.fault_reason else None
    return pb.Image(
        id=image.id, name=image.name, project_id=image.project_id, public=image.public,
        state=pb.ImageState.Value(f"IMAGE_STATE_{image.state}"), format=image.format, size_bytes=image.size_bytes,
        virtual_bytes=image.virtual_bytes, sha256=image.sha256, min_disk_gib=image.min_disk_gib,
        min_memory_mib=image.min_memory_mib, fault=fault, created_at=timestamp(image.created_at),
        properties=image.properties,
    )  # fmt: skip
