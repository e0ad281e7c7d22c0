"""Image content to and from storage nodes, over their BlobService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

import grpc

from daemonkit.rpc import channel, from_rpc_error, with_request_id
from daemonkit.tls import TlsFiles
from skyrack.v1 import blob_pb2, blob_pb2_grpc

CHUNK_BYTES_MAX = 1 << 20


@dataclass(frozen=True)
class Stored:
    sha256: str
    size_bytes: int
    virtual_bytes: int
    md5: str
    sha512: str


class BlobStore(Protocol):
    """Port; a simulation has its own."""

    async def put(self, address: str, format_: str, size_bytes_max: int, content: AsyncIterator[bytes | str]) -> Stored:
        """`content`: chunks, and last the expected sha256 as str ("" = unknown). If it ends without, nothing is kept.

        Errors: InvalidArgument, OutOfSpace, Unavailable, and whatever `content` raises.
        """

    def get(self, address: str, sha256: str, offset: int) -> AsyncIterator[bytes]:
        """Errors: NotFound, Unavailable."""


class GrpcBlobStore:
    def __init__(self, tls: TlsFiles) -> None:
        self._tls = tls

    async def put(self, address: str, format_: str, size_bytes_max: int, content: AsyncIterator[bytes | str]) -> Stored:
        async with channel(address, self._tls.client()) as connection:
            call = blob_pb2_grpc.BlobServiceStub(connection).Put(metadata=with_request_id())
            try:
                begin = blob_pb2.PutBlobBegin(format=format_, size_bytes_max=size_bytes_max)
                await call.write(blob_pb2.PutBlobRequest(begin=begin))
                async for part in content:
                    if isinstance(part, bytes):
                        await call.write(blob_pb2.PutBlobRequest(chunk=part))
                    else:
                        commit = blob_pb2.PutBlobCommit(sha256=part)
                        await call.write(blob_pb2.PutBlobRequest(commit=commit))
                await call.done_writing()
                blob = await call
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from None
            except (grpc.aio.UsageError, asyncio.InvalidStateError):  # the node ended the call while we wrote; it says why
                raise await _why(call) from None
            finally:
                call.cancel()
        return Stored(blob.sha256, blob.size_bytes, blob.virtual_bytes, blob.md5, blob.sha512)

    async def get(self, address: str, sha256: str, offset: int) -> AsyncIterator[bytes]:
        async with channel(address, self._tls.client()) as connection:
            request = blob_pb2.GetBlobRequest(sha256=sha256, offset=offset)
            try:
                async for chunk in blob_pb2_grpc.BlobServiceStub(connection).Get(request, metadata=with_request_id()):
                    yield chunk.data
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from None


async def _why(call: grpc.aio.StreamUnaryCall[blob_pb2.PutBlobRequest, blob_pb2.Blob]) -> Exception:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    return RuntimeError("the storage node accepted what was not sent whole")
