"""Images over gRPC: those that others put here or get from here, and those that we get from another storage node."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc

from daemonkit import tls
from daemonkit.errors import Forbidden, InvalidArgument, SkyrackError, Unavailable
from daemonkit.rpc import channel, from_rpc_error
from daemonkit.runtime import Runtime
from daemonkit.tls import TlsFiles
from skyrack.v1 import blob_pb2, blob_pb2_grpc
from storaged import metric, wire
from storaged.images.store import ImageStore
from storaged.images.upload import CHUNK_BYTES_MAX
from storaged.spec import Image, ImageFile

log = logging.getLogger(__name__)

MAY_PUT = frozenset(("controller",))
MAY_GET = frozenset(("controller", "compute", "storage"))
GETS_AT_ONCE = 8
FETCH_TIMEOUT_S = 3600.0
DRAIN_TIMEOUT_S = 60.0

Context = grpc.aio.ServicerContext[Any, Any]


def _admit(context: Context, roles: frozenset[str]) -> None:
    caller = tls.peer(context)
    if not caller.roles & roles:
        raise Forbidden(f"node {caller.node} has none of the roles {', '.join(sorted(roles))}")


async def _drain(requests: AsyncIterator[blob_pb2.PutBlobRequest]) -> None:
    """Lets a refused sender come to its end: who is stopped while sending often learns that it was, but not why."""
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_TIMEOUT_S):
            async for _request in requests:
                pass


class BlobServicer(blob_pb2_grpc.BlobServiceServicer):
    def __init__(self, images: ImageStore, runtime: Runtime) -> None:
        self._images = images
        self._threads = runtime.threads("blobs", GETS_AT_ONCE)

    def close(self) -> None:
        self._threads.close()

    async def Put(self, request_iterator: AsyncIterator[blob_pb2.PutBlobRequest], context: Context) -> blob_pb2.Blob:
        _admit(context, MAY_PUT)
        try:
            kept = await self._receive(request_iterator)
        except SkyrackError as error:
            metric.BLOB_PUTS.labels(error.reason).inc()
            await _drain(request_iterator)
            raise
        except BaseException:
            metric.BLOB_PUTS.labels("CUT").inc()
            raise
        metric.BLOB_PUTS.labels("OK").inc()
        return kept

    async def _receive(self, requests: AsyncIterator[blob_pb2.PutBlobRequest]) -> blob_pb2.Blob:
        start_s = asyncio.get_running_loop().time()
        first = await anext(requests, None)
        if first is None or first.WhichOneof("part") != "begin":
            raise InvalidArgument("part", "the first message must be begin")
        async with self._images.receive(first.begin.format, first.begin.size_bytes_max) as upload:
            async for request in requests:
                match request.WhichOneof("part"):
                    case "chunk":
                        await upload.write(request.chunk)
                    case "commit":
                        held = await self._images.keep(upload, request.commit.sha256)
                        _count(start_s, held.sha256, held.size_bytes)
                        return wire.blob(held)
                    case _:
                        raise InvalidArgument("part", "after begin come chunks and then commit")
        raise Unavailable("the upload ended without commit")

    async def Get(self, request: blob_pb2.GetBlobRequest, context: Context) -> None:  # type: ignore[override]
        _admit(context, MAY_GET)
        if not wire.is_sha256(request.sha256):
            raise InvalidArgument("sha256", "must be 64 hexadecimal digits in lower case")
        async with self._images.borrow(request.sha256) as file:
            if request.offset > self._images.held[request.sha256].size_bytes:
                raise InvalidArgument("offset", "is beyond the end")
            await self._send(file, request.offset, context)

    async def _send(self, file: ImageFile, offset: int, context: Context) -> None:
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while data := await self._threads.run(os.pread, descriptor, CHUNK_BYTES_MAX, offset):
                await context.write(blob_pb2.BlobChunk(data=data))
                offset += len(data)
                metric.BLOB_GET_BYTES.inc(len(data))
        finally:
            os.close(descriptor)


def _count(start_s: float, sha256: str, size_bytes: int) -> None:
    duration_s = asyncio.get_running_loop().time() - start_s
    metric.BLOB_PUT_S.observe(duration_s)
    metric.BLOB_PUT_BYTES.inc(size_bytes)
    rate = round(size_bytes / 1e6 / max(duration_s, 1e-6))
    log.info("image kept", extra={"sha256": sha256, "bytes": size_bytes, "mb_per_s": rate})


class GrpcOrigin:
    """Brings images from other storage nodes; checked like an upload, so no node has to trust another's inspection."""

    def __init__(self, images: ImageStore, files: TlsFiles) -> None:
        self._images, self._files = images, files

    async def fetch(self, image: Image) -> None:
        """Errors: Unavailable when no source gives it; InvalidArgument, OutOfSpace."""
        for source in image.sources:
            try:
                await self._fetch_from(source, image)
                return
            except grpc.RpcError as error:
                log.warning("no image from a source", extra={"source": source, "why": from_rpc_error(error).message})
        raise Unavailable(f"no storage node gives image {image.sha256}")

    async def _fetch_from(self, source: str, image: Image) -> None:
        request = blob_pb2.GetBlobRequest(sha256=image.sha256)
        async with channel(source, self._files.client()) as connection, self._images.receive(image.format) as upload:
            stub = blob_pb2_grpc.BlobServiceStub(connection)
            async for chunk in stub.Get(request, timeout=FETCH_TIMEOUT_S):
                await upload.write(chunk.data)
            await self._images.keep(upload, image.sha256)
