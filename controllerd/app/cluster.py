"""The cloud's own control plane: who leads, hand-over, backup, and whether what is agrees with what should be."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from controllerd.app.cloud import Cloud
from controllerd.domain.difference import Comparison, Difference
from controllerd.domain.page import Page, PageOf
from controllerd.domain.policy import Caller, authorise
from controllerd.leadership.kv import Health
from controllerd.leadership.member import Member
from controllerd.store import backup, event, foreign, node, recovery, snapshot
from controllerd.store.database import Tx
from controllerd.store.recovery import Restore
from daemonkit.errors import Conflict, NotLeader, Unavailable

CHUNK_BYTES = 1 << 20
PARTIAL = "backup-{}.partial"


class Membership(Protocol):
    """Which controllers there are: `controllerd.terms`."""

    def members(self) -> Mapping[str, Member]:
        """Every controller that is there, this one included, by name."""

    def clock_offsets_s(self) -> Mapping[str, float]:
        """How far each other controller's clock is ahead of this one's."""

    async def transfer(self, successor: str) -> None:
        """Begins to hand over; "" = to any other. Errors: NotFound (no such controller), Conflict, NotLeader, Unavailable."""

    async def health(self) -> Health | None:
        """Of the consensus store; None without one. Errors: Unavailable."""


class Differences(Protocol):
    async def compare(self) -> Comparison:
        """The store against what agents report, now."""


@dataclass(frozen=True)
class RecoveryView:
    """What came of a restore. `held_nodes`: names of nodes that are told nothing."""

    restore: Restore
    adopted: int
    missing: int
    foreign: int
    held_nodes: Sequence[str]


@dataclass(frozen=True)
class ClusterView:
    """`replicated`: there is a consensus store; `health`: of it, None also when it does not answer."""

    cluster_id: str
    leader: str
    epoch: int
    seq: int
    schema: int
    controllers: Sequence[Member]
    clock_offsets_s: Mapping[str, float]
    replicated: bool
    health: Health | None
    recovery: RecoveryView | None


@dataclass(frozen=True)
class Chunk:
    """Of a backup. The last one has no data but `sha256`, in hex, of the whole file of `size_bytes`."""

    data: bytes
    size_bytes: int
    sha256: str = ""


class Cluster:
    def __init__(
        self,
        cloud: Cloud,
        membership: Membership,
        differences: Differences,
        me: Member,
        directory: Path,
        files: Callable[[], Mapping[str, bytes]],
    ) -> None:
        """`directory`: room for a backup in the making. `files`: what a blank machine needs besides the state (see
        `controllerd.certificate`)."""
        self._db, self._runtime = cloud.database, cloud.runtime
        self._membership, self._differences = membership, differences
        self._name, self._version, self._directory, self._files = me.name, me.version, directory, files
        self._taking = asyncio.Lock()

    async def get(self, caller: Caller) -> ClusterView:
        authorise(caller, "cluster.get")
        return await self._view()

    async def _view(self) -> ClusterView:
        members = self._membership.members()
        try:
            health = await self._membership.health()
            replicated = health is not None
        except Unavailable:
            health, replicated = None, True
        return ClusterView(
            cluster_id=self._db.cluster_id, leader=self._name, epoch=self._db.epoch, seq=self._db.seq, schema=self._db.schema,
            controllers=[members[name] for name in sorted(members)], clock_offsets_s=self._membership.clock_offsets_s(),
            replicated=replicated, health=health, recovery=await self._db.read(_recovery),
        )  # fmt: skip

    async def transfer(self, caller: Caller, successor: str) -> ClusterView:
        """Begins it; `successor` "" = any other. Gives the cluster as it is still. Errors: NotFound, Conflict, Unavailable."""
        authorise(caller, "cluster.transfer")
        view = await self._view()
        if view.replicated and not {member.name for member in view.controllers} - {self._name}:
            raise Conflict("no other controller is there to hand over to")
        try:
            await self._membership.transfer(successor)
        except NotLeader:  # would mean "not carried out", and whoever forwards calls would send this one again
            raise Unavailable("this controller leads no longer; whether that is this call's doing is not known") from None
        return view

    async def release(self, caller: Caller) -> ClusterView:
        """Lets go of what nobody owns and was reported until now. Errors: Conflict when nothing is held."""
        authorise(caller, "cluster.release")

        def approve(tx: Tx) -> None:
            if not recovery.holds(tx):
                raise Conflict("no node is held")
            recovery.approve(tx)
            event.record(tx, "cluster.release", "", self._db.cluster_id, "what nobody owns is let go")

        await self._db.write(approve)
        return await self._view()

    async def differences(self, caller: Caller, page: Page) -> tuple[PageOf[Difference], float]:
        """The oldest first, and when they were looked for."""
        authorise(caller, "cluster.verify")
        found = await self._differences.compare()
        after = (page.after_time, page.after_id)
        items = [d for d in found.differences if (d.since, d.key) > after][: page.limit + 1]
        return PageOf.cut(items, page.limit, lambda d: (d.since, d.key)), found.checked_at

    # ---- backup

    async def backup(self, caller: Caller) -> AsyncIterator[Chunk]:
        """The file in order, taken while the cloud works. Errors: OutOfSpace, Unavailable."""
        authorise(caller, "cluster.backup")
        await self._db.write(lambda tx: event.record(tx, "cluster.backup", "", self._db.cluster_id, "a backup was made"))
        threads = self._runtime.threads("backup", 1)
        try:
            async with self._taking:
                file = await self._take(threads.run)
            with file:
                size_bytes, digest = os.fstat(file.fileno()).st_size, hashlib.sha256()
                while data := await threads.run(file.read, CHUNK_BYTES):
                    await threads.run(digest.update, data)
                    yield Chunk(data, size_bytes)
                yield Chunk(b"", size_bytes, digest.hexdigest())
        finally:
            await threads.run(int)  # behind a hash that nobody waits for any more: `close` would hold up the event loop
            threads.close()

    async def _take(self, run: Callable[..., Awaitable[object]]) -> BinaryIO:
        """The finished backup, open; it has no name any more, so that nothing is left of it whatever happens."""
        for left in self._directory.glob(PARTIAL.format("*")):
            left.unlink(missing_ok=True)
        path = self._directory / PARTIAL.format(self._runtime.new_id())
        try:
            await snapshot.take(self._db, path)
            mark = self._runtime.rng.randbytes(backup.MARK_BYTES)
            now = self._runtime.clock.wall_s()
            await run(backup.seal, path, now, self._version, self._files(), mark)
            return path.open("rb")
        finally:
            path.unlink(missing_ok=True)


def _recovery(tx: Tx) -> RecoveryView | None:
    restore = recovery.restored(tx)
    if restore is None:
        return None
    found, names = recovery.findings(tx), node.names(tx)
    held = sorted({names.get(hold.node_id, hold.node_id) for hold in recovery.holds(tx)})
    return RecoveryView(
        restore, found.get(recovery.ADOPTED, 0), found.get(recovery.MISSING, 0), foreign.count(tx), held
    )  # fmt: skip
