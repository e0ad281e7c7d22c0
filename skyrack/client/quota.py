"""Quotas: what a project may hold, and what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from skyrack.client.collection import Ref, id_of
from skyrack.client.connection import Connection
from skyrack.client.wire import to_record
from skyrack.v1 import quota_pb2 as pb

RESOURCES = (
    "servers", "vcpus", "memory_mib", "volumes", "volume_gib", "images", "image_gib", "networks", "subnets", "ports",
    "routers", "floating_ips", "security_groups", "security_group_rules", "flavors",
)  # fmt: skip


@dataclass(frozen=True)
class QuotaItem:
    resource: str
    limit: int
    """-1 = unlimited."""
    in_use: int


@dataclass(frozen=True)
class Quota:
    project_id: str
    items: tuple[QuotaItem, ...]


class Quotas:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, project: Ref | None = None) -> Quota:
        """None = the caller's project."""
        request = pb.GetQuotaRequest(project_id=id_of(project))
        return to_record(Quota, await self._connection.call("QuotaService/GetQuota", request, pb.Quota))

    async def update(self, project: Ref, limits: Mapping[str, int]) -> Quota:
        """Admins only; resources not named keep their limit. Errors: InvalidArgument."""
        request = pb.UpdateQuotaRequest(project_id=id_of(project), limits=dict(limits))
        return to_record(Quota, await self._connection.call("QuotaService/UpdateQuota", request, pb.Quota))
