"""Nodes: the machines of the cloud (admins), and the way a new one joins."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from google.protobuf.empty_pb2 import Empty

from skyrack.client import errors
from skyrack.client.collection import Collection, Ref, id_of
from skyrack.client.connection import Retry
from skyrack.client.wire import to_record
from skyrack.v1 import node_pb2 as pb


@dataclass(frozen=True)
class NodeAgent:
    kind: str
    connected: bool
    last_seen_at: datetime.datetime | None
    version: str
    address: str
    clock_offset_s: float | None
    """How far its machine's clock is ahead of the cloud's time, negative when behind; None when not in session, or not known
    yet."""


@dataclass(frozen=True)
class Node:
    id: str
    name: str
    roles: tuple[str, ...]
    state: str
    """JOINED (never seen), UP (every agent of its roles is in session) or DOWN."""
    enabled: bool
    agents: tuple[NodeAgent, ...]
    vcpus: int
    vcpus_claimed: int
    memory_mib: int
    memory_mib_claimed: int
    disk_gib: int
    disk_gib_claimed: int
    servers: int
    hypervisor: str
    virt_type: str
    joined_at: datetime.datetime | None


@dataclass(frozen=True)
class JoinToken:
    token: str = field(repr=False)
    expires_at: datetime.datetime | None


@dataclass(frozen=True)
class Membership:
    """What a node gets when it joins."""

    certificate_pem: bytes
    ca_pem: bytes
    roles: tuple[str, ...]
    controllers: tuple[str, ...]
    """ "host:port" of the agent service of each controller."""


class Nodes(Collection[Node]):
    kind, service, record = "node", "NodeService", Node

    async def get(self, ref: Ref) -> Node:
        """By id or name."""
        return await self._one("GetNode", pb.GetNodeRequest(node_id=id_of(ref)), pb.Node)

    def list(self, *, name: str = "") -> AsyncIterator[Node]:
        return self._pages("ListNodes", pb.ListNodesRequest(name=name), pb.ListNodesResponse, "nodes")

    async def update(self, ref: Ref, *, enabled: bool | None = None) -> Node:
        """`enabled` False: nothing new is placed there; what runs goes on."""
        return await self._one("UpdateNode", pb.UpdateNodeRequest(node_id=id_of(ref), enabled=enabled), pb.Node)

    async def delete(self, ref: Ref) -> None:
        """Errors: Conflict unless it is DOWN and holds nothing."""
        await self._delete("DeleteNode", pb.DeleteNodeRequest(node_id=id_of(ref)), Empty)

    async def create_join_token(self, name: str, *, roles: Sequence[str], lifetime_s: int = 0) -> JoinToken:
        """One-time, for a node of that name. `lifetime_s` 0 = 1 h, at most 24 h."""
        request = pb.CreateJoinTokenRequest(name=name, roles=roles, lifetime_s=lifetime_s)
        return to_record(JoinToken, await self._call("CreateJoinToken", request, pb.JoinToken, Retry.ONCE))

    async def join(self, *, secret: str, name: str, csr_pem: bytes) -> Membership:
        """Needs no login. Works once. Errors: JoinRefused (unknown, used or expired secret), InvalidArgument."""
        request = pb.JoinNodeRequest(secret=secret, name=name, csr_pem=csr_pem)
        try:
            answer = await self._connection.call(
                "NodeService/JoinNode", request, pb.JoinNodeResponse, retry=Retry.ONCE, with_token=False
            )
        except errors.Unauthenticated as error:
            raise errors.JoinRefused(error.message, metadata=error.metadata, request_id=error.request_id) from None
        return to_record(Membership, answer)
