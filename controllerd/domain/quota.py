"""Quota arithmetic: what a project may hold."""

from __future__ import annotations

from collections.abc import Mapping

from daemonkit.errors import QuotaExceeded

UNLIMITED = -1

DEFAULTS: dict[str, int] = {
    "servers": 10, "vcpus": 20, "memory_mib": 51200, "volumes": 10, "volume_gib": 1000, "images": 20, "image_gib": 200,
    "networks": 20, "subnets": 40, "ports": 200, "routers": 10, "floating_ips": 20, "security_groups": 20,
    "security_group_rules": 200, "flavors": 20,
}  # fmt: skip


def enforce(limits: Mapping[str, int], used: Mapping[str, int], requested: Mapping[str, int]) -> None:
    """Errors: QuotaExceeded naming the first resource that would go over."""
    for resource, amount in requested.items():
        limit = limits.get(resource, DEFAULTS[resource])
        if amount > 0 and limit != UNLIMITED and used[resource] + amount > limit:
            raise QuotaExceeded(resource, limit, used[resource], amount)
