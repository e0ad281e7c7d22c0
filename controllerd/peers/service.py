"""PeerService, and who is let in on the address for agents and controllers."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

from controllerd.api.rpc.gate import Context, is_controller
from controllerd.api.rpc.switch import service_of
from daemonkit import metrics
from daemonkit.errors import Forbidden, Unavailable
from daemonkit.runtime import Runtime
from skyrack.v1 import peer_pb2 as pb
from skyrack.v1 import peer_pb2_grpc

CHUNK_BYTES = 1 << 20  # of the file, before compression
SNAPSHOTS_MAX = 2  # at once
RETRY_S = 5.0
FOR_AGENTS = frozenset({"skyrack.v1.AgentService"})

# Makes a file with the whole state: (seq of the last log entry in it, its path). The file is the caller's, who removes it.
TakeSnapshot = Callable[[], Awaitable[tuple[int, Path]]]


def admit(method: str, context: Context) -> None:
    """Agents to their service, which looks closer; everything else is for controllers. Errors: Forbidden."""
    if service_of(method) not in FOR_AGENTS and not is_controller(context):
        metrics.REFUSED_PEERS.labels("role").inc()
        raise Forbidden("only a certificate of role controller is let in here", why="role")


class PeerService(peer_pb2_grpc.PeerServiceServicer):
    """Served by the leader. Callers have passed `admit`."""

    def __init__(self, take_snapshot: TakeSnapshot, runtime: Runtime) -> None:
        self._take_snapshot = take_snapshot
        self._threads = runtime.threads("send-snapshot", SNAPSHOTS_MAX)
        self._running = 0

    def close(self) -> None:
        self._threads.close()

    async def GetSnapshot(self, request: pb.GetSnapshotRequest, context: Context) -> AsyncIterator[pb.SnapshotChunk]:
        if self._running >= SNAPSHOTS_MAX:
            busy = Unavailable("other controllers are fetching snapshots now")
            busy.retry_s = RETRY_S
            raise busy
        self._running += 1
        try:
            seq, path = await self._take_snapshot()
            try:
                async for chunk in self._chunks(seq, path):
                    yield chunk
            finally:
                path.unlink(missing_ok=True)
        finally:
            self._running -= 1

    async def _chunks(self, seq: int, path: Path) -> AsyncIterator[pb.SnapshotChunk]:
        chunks = _compressed(seq, path)
        while (chunk := await self._threads.run(lambda: next(chunks, None))) is not None:
            yield chunk


def _compressed(seq: int, path: Path) -> Iterator[pb.SnapshotChunk]:
    digest, press = hashlib.sha256(), zlib.compressobj(1)
    with path.open("rb") as file:
        while data := file.read(CHUNK_BYTES):
            digest.update(data)
            if packed := press.compress(data):
                yield pb.SnapshotChunk(seq=seq, data=packed)
    yield pb.SnapshotChunk(seq=seq, data=press.flush())
    yield pb.SnapshotChunk(seq=seq, sha256=digest.digest())
