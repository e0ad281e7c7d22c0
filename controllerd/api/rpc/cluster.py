"""ClusterService."""

from __future__ import annotations

from collections.abc import AsyncIterator

from controllerd.api.rpc.gate import Context, Gate, page, timestamp
from controllerd.app.cluster import Cluster, ClusterView, RecoveryView
from controllerd.domain.difference import Difference
from controllerd.leadership.member import Member
from skyrack.v1 import cluster_pb2 as pb
from skyrack.v1 import cluster_pb2_grpc


class ClusterService(cluster_pb2_grpc.ClusterServiceServicer):
    def __init__(self, gate: Gate, cluster: Cluster) -> None:
        self._gate, self._cluster = gate, cluster

    async def GetCluster(self, request: pb.GetClusterRequest, context: Context) -> pb.Cluster:
        caller = await self._gate.caller(context)
        return render(await self._cluster.get(caller))

    async def TransferLeadership(self, request: pb.TransferLeadershipRequest, context: Context) -> pb.Cluster:
        caller = await self._gate.caller(context)
        return render(await self._cluster.transfer(caller, request.controller))

    async def ReleaseNodes(self, request: pb.ReleaseNodesRequest, context: Context) -> pb.Cluster:
        caller = await self._gate.caller(context)
        return render(await self._cluster.release(caller))

    async def Backup(self, request: pb.BackupRequest, context: Context) -> AsyncIterator[pb.BackupChunk]:
        caller = await self._gate.caller(context)
        async for chunk in self._cluster.backup(caller):
            yield pb.BackupChunk(data=chunk.data, size_bytes=chunk.size_bytes, sha256=chunk.sha256)

    async def ListDifferences(self, request: pb.ListDifferencesRequest, context: Context) -> pb.ListDifferencesResponse:
        caller = await self._gate.caller(context)
        found, checked_at = await self._cluster.differences(caller, page(request))
        return pb.ListDifferencesResponse(
            differences=[_difference(d) for d in found.items],
            next_page_token=found.next_token,
            checked_at=timestamp(checked_at),
        )


def render(view: ClusterView) -> pb.Cluster:
    health = view.health
    return pb.Cluster(
        cluster_id=view.cluster_id, leader=view.leader, epoch=view.epoch, seq=view.seq, schema=view.schema,
        controllers=[_controller(view, member) for member in view.controllers], replicated=view.replicated,
        log_bytes=health.bytes_used if health else 0, log_bytes_max=health.bytes_max if health else 0,
        recovery=_recovery(view.recovery) if view.recovery else None,
    )  # fmt: skip


def _controller(view: ClusterView, member: Member) -> pb.Controller:
    leads, offset_s = member.name == view.leader, view.clock_offsets_s.get(member.name, 0.0)
    return pb.Controller(
        name=member.name, leader=leads, api_address=member.api, version=member.version, schema=member.schema,
        applied_seq=view.seq if leads else member.applied_seq, seen_at=timestamp(member.wall_s - offset_s),
        clock_offset_s=offset_s,
    )  # fmt: skip


def _recovery(view: RecoveryView) -> pb.Recovery:
    restore = view.restore
    return pb.Recovery(
        backup_at=timestamp(restore.backup_at), restored_at=timestamp(restore.restored_at),
        released_at=timestamp(restore.released_at), adopted=view.adopted, missing=view.missing, foreign=view.foreign,
        held_nodes=view.held_nodes,
    )  # fmt: skip


def _difference(item: Difference) -> pb.Difference:
    return pb.Difference(
        kind=item.kind, resource_kind=item.resource_kind, resource_id=item.resource_id, node=item.node,
        project_id=item.project_id, owner=item.owner, message=item.message, since=timestamp(item.since),
    )  # fmt: skip
