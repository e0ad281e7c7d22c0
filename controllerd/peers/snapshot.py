"""The other end of PeerService.GetSnapshot: the leader's whole state, into a file.

The file appears under its name only when all of it is there, on disk, and has the checksum that the leader sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import zlib
from pathlib import Path
from typing import BinaryIO

import grpc

from controllerd.leadership.member import Member
from daemonkit import rpc
from daemonkit.errors import OutOfSpace, Unavailable
from daemonkit.runtime import Runtime, Threads
from daemonkit.tls import TlsFiles
from skyrack.v1 import peer_pb2 as pb
from skyrack.v1 import peer_pb2_grpc

SNAPSHOT_BYTES_MAX = 64 << 30
SNAPSHOT_TIMEOUT_S = 1800.0
FIRST_TIMEOUT_S = 120.0  # in which the leader makes the file
SILENCE_MAX_S = 30.0
WRITE_BYTES = 1 << 20


class SnapshotClient:
    def __init__(self, tls: TlsFiles, runtime: Runtime) -> None:
        self._tls, self._runtime = tls, runtime

    async def fetch_snapshot(self, leader: Member, into: Path) -> int:
        """Replaces `into`; gives the seq of the last log entry in it.

        Errors: NotLeader, Unavailable (broken, wrong checksum, too slow), Forbidden (not let in), OutOfSpace.
        Nothing is left of a file that did not come whole.
        """
        partial = into.with_name(into.name + ".part")
        threads = self._runtime.threads("fetch-snapshot", 1)
        try:
            with _private(partial) as file:
                seq = await self._fetch(leader, _Landing(file, threads))
            partial.replace(into)
        except OSError as error:
            raise OutOfSpace(f"a snapshot cannot be written: {error.strerror}") from None
        finally:
            threads.close()
            partial.unlink(missing_ok=True)
        return seq

    async def _fetch(self, leader: Member, landing: _Landing) -> int:
        channel = rpc.channel(leader.agents, self._tls.client())
        try:
            async with asyncio.timeout(SNAPSHOT_TIMEOUT_S):
                call = peer_pb2_grpc.PeerServiceStub(channel).GetSnapshot(pb.GetSnapshotRequest())
                return await _land(call, landing)
        except TimeoutError:
            raise Unavailable("the leader's snapshot does not come") from None
        except grpc.RpcError as error:
            raise rpc.from_rpc_error(error) from None
        finally:
            await channel.close(None)


async def _land(call: grpc.aio.UnaryStreamCall[pb.GetSnapshotRequest, pb.SnapshotChunk], landing: _Landing) -> int:
    limit_s = FIRST_TIMEOUT_S
    while True:
        async with asyncio.timeout(limit_s):
            chunk = await call.read()
        if not isinstance(chunk, pb.SnapshotChunk):
            raise Unavailable("the snapshot ended without its checksum")
        if chunk.sha256:
            await landing.finish(chunk.sha256)
            return chunk.seq
        await landing.add(chunk.data)
        limit_s = SILENCE_MAX_S


def _private(path: Path) -> BinaryIO:
    """Anew, for its owner only: the state holds secrets."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


class _Landing:
    """The file as it grows."""

    def __init__(self, file: BinaryIO, threads: Threads) -> None:
        self._file, self._threads = file, threads
        self._digest, self._unpack = hashlib.sha256(), zlib.decompressobj()
        self._size = 0

    async def add(self, packed: bytes) -> None:
        await self._threads.run(self._add, packed)

    async def finish(self, sha256: bytes) -> None:
        await self._threads.run(self._finish, sha256)

    def _add(self, packed: bytes) -> None:
        try:
            data = b""
            while packed or len(data) == WRITE_BYTES:
                data = self._unpack.decompress(packed, WRITE_BYTES)
                packed = self._unpack.unconsumed_tail
                self._size += len(data)
                if self._size > SNAPSHOT_BYTES_MAX:
                    raise OutOfSpace(f"the snapshot is larger than {SNAPSHOT_BYTES_MAX >> 30} GiB")
                self._digest.update(data)
                self._file.write(data)
        except zlib.error as error:
            raise Unavailable(f"the snapshot is damaged: {error}") from None

    def _finish(self, sha256: bytes) -> None:
        if not self._unpack.eof or self._digest.digest() != sha256:
            raise Unavailable("the snapshot has not the checksum that the leader sent")
        self._file.flush()
        os.fsync(self._file.fileno())
