"""`Kv` over an etcd cluster (3.4 or later).

A call has `CALL_S` on a member; a member that is dead, frozen, cut off or without a leader costs at most that. What may be
done twice (reads, leases, compaction) moves on to the next member by itself. A transaction is sent exactly once: after an
error its outcome is unknown, and only its author knows how to find out; the next try goes to the next member.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc

from controllerd.leadership import key
from controllerd.leadership.etcd import etcd_pb2, wire
from controllerd.leadership.etcd.members import Connection, Members, TlsFiles
from controllerd.leadership.kv import Change, Compacted, Created, Delete, Health, Impossible, Page, Put, TxnResult
from daemonkit.errors import Unavailable

log = logging.getLogger(__name__)
T = TypeVar("T")

CALL_S = 1.0
PROBE_INTERVAL_S = 0.5  # a watch asks for a sign of life so often
SILENCE_MAX_S = 1.5  # and breaks when there was none for so long
COMPACT_S = 10.0
DEFRAGMENT_S = 60.0  # of one member, which answers nothing meanwhile
QUOTA_BYTES = 2 << 30  # etcd's default
TRIES_MIN = 3
SHRINK = 8

# A member that knows of no leader refuses at once, and ends a watch.
WITH_LEADER = (("hasleader", "true"),)
# The cluster's own word; asking another member would bring the same.
ANSWERS = frozenset(
    {
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


class Refused(Unavailable):
    """etcd has answered, and the answer is no."""

    def __init__(self, message: str, code: grpc.StatusCode) -> None:
        super().__init__(message)
        self.code = code


class EtcdKv:
    """`endpoints`: "host:port" of the members. `tls_dir`: see TlsFiles; None = plain. `quota_bytes`: as the members have it."""

    def __init__(self, endpoints: Sequence[str], tls_dir: Path | None, quota_bytes: int = QUOTA_BYTES) -> None:
        self._members = Members(endpoints, TlsFiles(tls_dir) if tls_dir else None)
        self._quota_bytes = quota_bytes

    async def txn(self, conditions: Sequence[Created], changes: Sequence[Put | Delete], look: Sequence[str] = ()) -> TxnResult:
        """Without changes it is a mere look, which may move on as reads do.

        etcd checks a request, its size too, before it is proposed. "No space" it may also say of one that it has carried out.
        """
        request = wire.txn(conditions, changes, look)
        send = self._once if changes else self._anywhere
        try:
            return wire.txn_result(await send(lambda at: at.kv.Txn(request, timeout=CALL_S, metadata=WITH_LEADER)))
        except Refused as error:
            if error.code == grpc.StatusCode.INVALID_ARGUMENT:
                raise Impossible(error.message) from None
            raise

    async def range(self, first: str, end: str = "", limit: int = 0) -> Page:
        """A page that takes too long is asked for again with a smaller limit."""

        async def read(at: Connection) -> etcd_pb2.RangeResponse:
            nonlocal limit
            request = wire.one_or_range(first, end, limit)
            limit = max(1, limit // SHRINK) if limit else 0
            return await at.kv.Range(request, timeout=CALL_S, metadata=WITH_LEADER)

        return wire.page(await self._anywhere(read))

    async def grant(self, ttl_s: int) -> int:
        request = etcd_pb2.LeaseGrantRequest(TTL=ttl_s)
        return (await self._anywhere(lambda at: at.lease.LeaseGrant(request, timeout=CALL_S, metadata=WITH_LEADER))).ID

    async def keep_alive(self, lease: int) -> float:
        return await self._anywhere(lambda at: _renew(at, lease))

    async def revoke(self, lease: int) -> None:
        request = etcd_pb2.LeaseRevokeRequest(ID=lease)
        try:
            await self._anywhere(lambda at: at.lease.LeaseRevoke(request, timeout=CALL_S, metadata=WITH_LEADER))
        except Refused as error:
            if error.code != grpc.StatusCode.NOT_FOUND:
                raise

    async def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[list[Change], None]:
        """Ends only with an error. Lets go of its member when the iterator is closed."""
        async with self._members.current().in_use() as at:
            call = at.watch.Watch(_watch_requests(prefix, from_revision), metadata=WITH_LEADER)
            try:
                while True:
                    if changes := _watched(await _read(call)):
                        yield changes
            except (grpc.aio.AioRpcError, Unavailable) as error:
                await self._members.leave(at)
                raise Unavailable(f"the watch at etcd {at.endpoint} broke: {_said(error)}") from None
            finally:
                call.cancel()

    async def compact(self, revision: int) -> None:
        """Returns when the member asked has done it on its disk, so that a defragmentation finds the space."""
        request = etcd_pb2.CompactionRequest(revision=revision, physical=True)
        try:
            await self._anywhere(lambda at: at.kv.Compact(request, timeout=COMPACT_S, metadata=WITH_LEADER))
        except Refused as error:
            if error.code != grpc.StatusCode.OUT_OF_RANGE:  # else: it is compacted already
                raise

    async def health(self) -> Health:
        members = await self._anywhere(lambda at: at.cluster.MemberList(etcd_pb2.MemberListRequest(), timeout=CALL_S))
        alarms = await self._anywhere(_alarms)
        statuses = await asyncio.gather(*(self._status(endpoint) for endpoint in self._members.endpoints))
        answering = [status for status in statuses if status is not None and status.leader]
        return Health(
            bytes_used=max((status.dbSize for status in answering), default=0),
            bytes_max=self._quota_bytes,
            full=any(alarm.alarm == etcd_pb2.NOSPACE for alarm in alarms),
            members=len(members.members),
            members_answering=len(answering),
        )

    async def reclaim(self) -> None:
        """Defragments the members one after another, then lifts the alarm; a member still too full raises it anew."""
        for endpoint in self._members.endpoints:
            await self._defragment(endpoint)
        for alarm in await self._anywhere(_alarms):
            await self._disarm(alarm.memberID)

    async def close(self) -> None:
        await self._members.close()

    async def _once(self, act: Callable[[Connection], Awaitable[T]]) -> T:
        async with self._members.current().in_use() as at:
            try:
                return await act(at)
            except grpc.aio.AioRpcError as error:
                message = f"etcd {at.endpoint}: {_said(error)}"
                if error.code() in ANSWERS:
                    raise Refused(message, error.code()) from None
                await self._members.leave(at)
                raise Unavailable(message) from None
            except (Unavailable, asyncio.CancelledError):  # or its caller's patience is shorter than ours
                await self._members.leave(at)
                raise

    async def _anywhere(self, act: Callable[[Connection], Awaitable[T]]) -> T:
        tries = max(TRIES_MIN, len(self._members.endpoints))
        for _ in range(tries - 1):
            try:
                return await self._once(act)
            except Refused:
                raise
            except Unavailable as error:
                log.debug("etcd: on to the next member", extra={"why": error.message})
        return await self._once(act)

    async def _status(self, endpoint: str) -> etcd_pb2.StatusResponse | None:
        connection = self._members.connect(endpoint)
        try:
            return await connection.maintenance.Status(etcd_pb2.StatusRequest(), timeout=CALL_S)
        except grpc.aio.AioRpcError:
            return None
        finally:
            await connection.retire()

    async def _disarm(self, member: int) -> None:
        action, alarm = etcd_pb2.AlarmRequest.DEACTIVATE, etcd_pb2.NOSPACE
        request = etcd_pb2.AlarmRequest(action=action, memberID=member, alarm=alarm)
        await self._anywhere(lambda at: at.maintenance.Alarm(request, timeout=CALL_S, metadata=WITH_LEADER))

    async def _defragment(self, endpoint: str) -> None:
        """One that does not answer is left as it is: it may be the dead one of three."""
        connection = self._members.connect(endpoint)
        try:
            await connection.maintenance.Defragment(etcd_pb2.DefragmentRequest(), timeout=DEFRAGMENT_S)
        except grpc.aio.AioRpcError as error:
            log.warning("etcd member not defragmented", extra={"member": endpoint, "why": _said(error)})
        finally:
            await connection.retire()


async def _renew(at: Connection, lease: int) -> float:
    """A leader of etcd's that has been replaced, but has not heard of it, renews leases that its successor lets end. So the
    member's term from before the renewal must still be the term of a linearizable read after it."""
    call = at.lease.LeaseKeepAlive(iter([etcd_pb2.LeaseKeepAliveRequest(ID=lease)]), timeout=CALL_S, metadata=WITH_LEADER)
    try:
        answer = await call.read()
    finally:
        call.cancel()
    if not isinstance(answer, etcd_pb2.LeaseKeepAliveResponse):
        raise Unavailable(f"etcd {at.endpoint} ended the call")
    seen = await at.kv.Range(wire.one_or_range(key.LEADER, ""), timeout=CALL_S, metadata=WITH_LEADER)
    if seen.header.raft_term != answer.header.raft_term:
        raise Unavailable(f"etcd {at.endpoint} elected a leader during a renewal")
    return float(answer.TTL)


async def _alarms(at: Connection) -> list[etcd_pb2.AlarmMember]:
    request = etcd_pb2.AlarmRequest(action=etcd_pb2.AlarmRequest.GET)
    answer = await at.maintenance.Alarm(request, timeout=CALL_S, metadata=WITH_LEADER)
    return list(answer.alarms)


async def _watch_requests(prefix: str, from_revision: int) -> AsyncIterator[etcd_pb2.WatchRequest]:
    create = etcd_pb2.WatchCreateRequest(
        key=prefix.encode(), range_end=key.after(prefix).encode(), start_revision=from_revision
    )
    yield etcd_pb2.WatchRequest(create_request=create)
    while True:
        await asyncio.sleep(PROBE_INTERVAL_S)
        yield etcd_pb2.WatchRequest(progress_request=etcd_pb2.WatchProgressRequest())


async def _read(call: Any) -> object:
    """The next message of a stream, not a message at its end. Errors: Unavailable after SILENCE_MAX_S, AioRpcError."""
    reading = asyncio.ensure_future(call.read())
    try:
        await asyncio.wait([reading], timeout=SILENCE_MAX_S)  # unlike asyncio.timeout, it takes no cancellation for its own
        if not reading.done():
            raise Unavailable("no sign of life")
        return reading.result()
    finally:
        reading.cancel()


def _watched(answer: object) -> list[Change]:
    """Empty for a mere sign of life. Errors: Compacted, Unavailable."""
    if not isinstance(answer, etcd_pb2.WatchResponse):
        raise Unavailable("the member ended it")
    if answer.compact_revision:
        raise Compacted(f"changes before revision {answer.compact_revision} are not kept any more")
    if answer.canceled:
        raise Unavailable(answer.cancel_reason or "the member ended it")
    return wire.changes(answer)


def _said(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name.lower()}: {error.details()}"
    return str(error)
