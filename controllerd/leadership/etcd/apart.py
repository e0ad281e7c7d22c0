"""Keeps etcd's own leader off the machine of the controller that leads.

Were both on one machine, its power failure would take both, and etcd's next leader begins every lease anew: the lease of the
dead controller would end after etcd's election and a whole TTL more, 5-6 s after the failure instead of 3. With etcd's leader
elsewhere the lease simply ends. The member on a controller's machine is the one that has the controller's name.

It is a preference only: nothing depends on it, and nothing is done when a member does not answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import grpc

from controllerd.leadership.etcd import etcd_pb2
from controllerd.leadership.etcd.members import Members, TlsFiles
from daemonkit.errors import Unavailable

log = logging.getLogger(__name__)

CALL_S = 2.0
INTERVAL_S = 10.0


class Apart:
    """`endpoints`: "host:port" of the members. `tls_dir`: see TlsFiles; None = plain. `node`: name of this controller."""

    def __init__(self, endpoints: Sequence[str], tls_dir: Path | None, node: str) -> None:
        self._members = Members(endpoints, TlsFiles(tls_dir) if tls_dir else None)
        self._node = node

    async def run(self) -> None:
        """Until cancelled; to be run while this controller leads."""
        while True:
            with suppress(Unavailable):
                await self.step()
            await asyncio.sleep(INTERVAL_S)

    async def step(self) -> bool:
        """Tells whether etcd's leader was here and has moved. Errors: Unavailable."""
        answers = await asyncio.gather(*(self._status(endpoint) for endpoint in self._members.endpoints))
        answering = {endpoint: status for endpoint, status in answers if status is not None}
        for endpoint, status in answering.items():
            if status.leader == status.header.member_id and await self._name(endpoint, status.leader) == self._node:
                others = [other for other in answering.values() if other.header.member_id != status.leader]
                freshest = max(others, key=lambda other: other.raftIndex, default=None)
                return freshest is not None and await self._move(endpoint, freshest.header.member_id)
        return False

    async def _status(self, endpoint: str) -> tuple[str, etcd_pb2.StatusResponse | None]:
        connection = self._members.connect(endpoint)
        try:
            return endpoint, await connection.maintenance.Status(etcd_pb2.StatusRequest(), timeout=CALL_S)
        except grpc.aio.AioRpcError:
            return endpoint, None
        finally:
            await connection.retire()

    async def _name(self, endpoint: str, member: int) -> str:
        connection = self._members.connect(endpoint)
        try:
            listed = await connection.cluster.MemberList(etcd_pb2.MemberListRequest(), timeout=CALL_S)
        except grpc.aio.AioRpcError:
            return ""
        finally:
            await connection.retire()
        return next((known.name for known in listed.members if member == known.ID), "")

    async def _move(self, endpoint: str, target: int) -> bool:
        """`endpoint`: of etcd's leader, which alone can hand over."""
        connection = self._members.connect(endpoint)
        try:
            await connection.maintenance.MoveLeader(etcd_pb2.MoveLeaderRequest(targetID=target), timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            log.warning("etcd's leader stays beside this controller", extra={"why": error.details()})
            return False
        finally:
            await connection.retire()
        log.info("etcd's leader moved to another machine")
        return True
