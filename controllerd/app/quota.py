"""Quotas and usage of projects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controllerd.app.cloud import Cloud
from controllerd.domain.policy import Caller, authorise
from controllerd.domain.quota import DEFAULTS, UNLIMITED
from controllerd.domain.usage import ServerUsage
from controllerd.store import event, quota, usage
from controllerd.store.database import Tx
from controllerd.store.identity import PROJECTS
from daemonkit.errors import InvalidArgument, NotFound

LIMIT_MAX = 1 << 40
PERIOD_DEFAULT_S = 30 * 24 * 3600.0


@dataclass(frozen=True)
class QuotaItem:
    resource: str
    limit: int
    in_use: int


@dataclass(frozen=True)
class UsageOf:
    project_id: str
    from_at: float
    to_at: float
    servers: list[ServerUsage]


class Quotas:
    def __init__(self, cloud: Cloud) -> None:
        self._db = cloud.database

    async def get(self, caller: Caller, project_id: str) -> tuple[str, list[QuotaItem]]:
        authorise(caller, "quota.get")
        chosen = _chosen(caller, project_id)
        return chosen, await self._db.read(lambda tx: _items(tx, chosen))

    async def update(self, caller: Caller, project_id: str, limits: Mapping[str, int]) -> tuple[str, list[QuotaItem]]:
        """A limit may be below what is in use: nothing is taken away, nothing more is given."""
        authorise(caller, "quota.update")
        chosen = _chosen(caller, project_id)
        for resource, value in limits.items():
            if resource not in DEFAULTS:
                raise InvalidArgument("limits", f"unknown resource {resource[:64]!r}; known: {', '.join(DEFAULTS)}")
            if not UNLIMITED <= value <= LIMIT_MAX:
                raise InvalidArgument(f"limits.{resource}", f"from {UNLIMITED} (unlimited) to {LIMIT_MAX}, is {value}")

        def change(tx: Tx) -> list[QuotaItem]:
            PROJECTS.get(tx, chosen)
            for resource, value in limits.items():
                quota.set_limit(tx, chosen, resource, value)
            event.record(tx, "quota.update", chosen, chosen, ", ".join(f"{k} {v}" for k, v in limits.items()))
            return _items(tx, chosen)

        return chosen, await self._db.write(change)

    async def usage(self, caller: Caller, project_id: str, from_at: float, to_at: float) -> UsageOf:
        """`from_at`, `to_at`: seconds; 0 = 30 days ago, now. What is still to come is not counted."""
        authorise(caller, "usage.get")
        chosen = _chosen(caller, project_id)
        for field, value in (("from", from_at), ("to", to_at)):
            if value < 0:
                raise InvalidArgument(field, "must not be before 1970")
        now = self._db.now_s()
        until = min(to_at or now, now)
        since = from_at or max(until - PERIOD_DEFAULT_S, 0.0)
        if since >= until:
            raise InvalidArgument("from", "must be before 'to', and before now")

        def find(tx: Tx) -> list[ServerUsage]:
            PROJECTS.get(tx, chosen)
            return usage.of_project(tx, chosen, since, until)

        return UsageOf(chosen, since, until, await self._db.read(find))


def _chosen(caller: Caller, project_id: str) -> str:
    if project_id and not caller.owns(project_id):
        raise NotFound("project", project_id)
    return project_id or caller.project_id


def _items(tx: Tx, project_id: str) -> list[QuotaItem]:
    PROJECTS.get(tx, project_id)
    used, limits = quota.used(tx, project_id), quota.limits(tx, project_id)
    return [QuotaItem(r, limits[r], used[r]) for r in DEFAULTS]
