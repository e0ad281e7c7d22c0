"""QuotaService."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from controllerd.api.rpc.gate import Context, Gate, seconds_of, timestamp
from controllerd.app.quota import QuotaItem, Quotas, UsageOf
from controllerd.domain import usage as domain
from skyrack.v1 import quota_pb2 as pb
from skyrack.v1 import quota_pb2_grpc


class QuotaService(quota_pb2_grpc.QuotaServiceServicer):
    def __init__(self, gate: Gate, quotas: Quotas) -> None:
        self._gate, self._quotas = gate, quotas

    async def GetQuota(self, request: pb.GetQuotaRequest, context: Context) -> pb.Quota:
        caller = await self._gate.caller(context)
        return render(*await self._quotas.get(caller, request.project_id))

    async def UpdateQuota(self, request: pb.UpdateQuotaRequest, context: Context) -> pb.Quota:
        caller = await self._gate.caller(context)
        return render(*await self._quotas.update(caller, request.project_id, dict(request.limits)))

    async def GetUsage(self, request: pb.GetUsageRequest, context: Context) -> pb.Usage:
        caller = await self._gate.caller(context)
        # "from" is a Python keyword
        since, until = seconds_of("from", getattr(request, "from")), seconds_of("to", request.to)
        return render_usage(await self._quotas.usage(caller, request.project_id, since, until))


def render(project_id: str, items: list[QuotaItem]) -> pb.Quota:
    return pb.Quota(
        project_id=project_id, items=[pb.QuotaItem(resource=i.resource, limit=i.limit, in_use=i.in_use) for i in items]
    )


def render_usage(usage: UsageOf) -> pb.Usage:
    message = pb.Usage(project_id=usage.project_id, to=timestamp(usage.to_at), servers=map(_server, usage.servers))
    getattr(message, "from").CopyFrom(timestamp(usage.from_at) or Timestamp())
    message.server_hours = sum(s.hours for s in usage.servers)
    message.vcpu_hours = sum(s.hours * s.vcpus for s in usage.servers)
    message.memory_mib_hours = sum(s.hours * s.memory_mib for s in usage.servers)
    message.disk_gib_hours = sum(s.hours * s.disk_gib for s in usage.servers)
    return message


def _server(server: domain.ServerUsage) -> pb.ServerUsage:
    counters = server.counters
    return pb.ServerUsage(
        server_id=server.server_id, name=server.name, hours=server.hours, vcpus=server.vcpus, memory_mib=server.memory_mib,
        disk_gib=server.disk_gib, cpu_s=counters.cpu_ns / 1e9, rx_bytes=counters.rx_bytes, tx_bytes=counters.tx_bytes,
        read_bytes=counters.read_bytes, write_bytes=counters.write_bytes,
    )  # fmt: skip
