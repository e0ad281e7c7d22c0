"""The cloud's own control plane, for admins: who leads, hand-over, backup, and what does not agree."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from skyrack.client import errors
from skyrack.client.connection import Connection, Retry
from skyrack.client.wire import to_record
from skyrack.v1 import cluster_pb2 as pb

BytesDone = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all)."""
_LOOK_S = 0.2


@dataclass(frozen=True)
class Controller:
    name: str
    leader: bool
    api_address: str
    version: str
    applied_seq: int
    """Of the log: less than the cluster's `seq` while it catches up."""
    schema: int
    seen_at: datetime.datetime | None
    clock_offset_s: float
    """Its clock less the leader's."""


@dataclass(frozen=True)
class Recovery:
    """What came of a restore from a backup."""

    backup_at: datetime.datetime | None
    restored_at: datetime.datetime | None
    released_at: datetime.datetime | None
    """None: nodes are held, and go on with what they were told before."""
    adopted: int
    missing: int
    foreign: int
    held_nodes: tuple[str, ...]


@dataclass(frozen=True)
class Cluster:
    cluster_id: str
    leader: str
    epoch: int
    controllers: tuple[Controller, ...]
    seq: int
    schema: int
    replicated: bool
    log_bytes: int
    log_bytes_max: int
    recovery: Recovery | None


@dataclass(frozen=True)
class BackupFile:
    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Difference:
    kind: str
    resource_kind: str
    resource_id: str
    node: str
    project_id: str
    owner: str
    """Who mends it: a task's id, a reconciler's or agent's name, or "operator"."""
    message: str
    since: datetime.datetime | None


class Clusters:
    record = Cluster

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self) -> Cluster:
        return to_record(Cluster, await self._call("GetCluster", pb.GetClusterRequest(), pb.Cluster))

    async def transfer(self, controller: str = "", *, deadline_s: float = 30.0) -> Cluster:
        """Hands leadership over, to `controller` or any other; gives the cluster under its new leader.

        Errors: NotFound, Conflict (there is no other, or it leads already), WaitTimeout.
        """
        request = pb.TransferLeadershipRequest(controller=controller)
        before = await self._call("TransferLeadership", request, pb.Cluster, Retry.ONCE)
        ends_s = time.monotonic() + deadline_s
        while time.monotonic() < ends_s:
            with contextlib.suppress(errors.Unavailable, errors.Unreachable, errors.NotLeader):
                now = await self.get()
                if now.epoch > before.epoch:
                    return now
            await asyncio.sleep(_LOOK_S)
        message = f"{before.leader} did not hand over within {deadline_s:g} s"
        raise errors.WaitTimeout(message, kind="cluster", record=to_record(Cluster, before))

    async def release(self) -> Cluster:
        """After a restore: lets go of what nobody owns, so that nodes are told what to do again. Errors: Conflict."""
        return to_record(Cluster, await self._call("ReleaseNodes", pb.ReleaseNodesRequest(), pb.Cluster))

    async def differences(self) -> AsyncIterator[Difference]:
        """Where the store and what nodes report do not agree, now; the oldest first."""
        request = pb.ListDifferencesRequest(page_size=1000)
        while True:
            page = await self._call("ListDifferences", request, pb.ListDifferencesResponse)
            for row in page.differences:
                yield to_record(Difference, row)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def backup(self, path: str | Path, *, progress: BytesDone | None = None) -> BackupFile:
        """The whole state as one file, readable by its owner only: whoever has it has the cloud.

        `path` appears when all of it is there and its checksum fits. Errors: CloudError when it does not, OutOfSpace, OSError.
        """
        target = Path(path)
        partial = target.with_name(target.name + ".part")
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                sha256 = await self._fetch(file, progress)
                size_bytes = file.tell()
                await asyncio.to_thread(os.fsync, file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return BackupFile(str(target), size_bytes, sha256)

    async def _fetch(self, file: BinaryIO, progress: BytesDone | None) -> str:
        """Gives the sha256. A broken connection begins again: the next backup is another file."""
        digest, told = hashlib.sha256(), ""

        def begin() -> pb.BackupRequest:
            nonlocal digest, told
            digest, told = hashlib.sha256(), ""
            file.seek(0)
            file.truncate()
            return pb.BackupRequest()

        async for chunk in self._connection.stream("ClusterService/Backup", begin, pb.BackupChunk):
            told = chunk.sha256
            await asyncio.to_thread(file.write, chunk.data)
            digest.update(chunk.data)
            if progress is not None:
                progress(file.tell(), chunk.size_bytes)
        file.flush()
        if digest.hexdigest() != told:
            raise errors.CloudError("what arrived does not have the checksum of the backup; nothing was kept")
        return told

    async def _call(self, method: str, request: Any, response: Any, retry: Retry = Retry.SAFE) -> Any:
        return await self._connection.call(f"ClusterService/{method}", request, response, retry=retry)
