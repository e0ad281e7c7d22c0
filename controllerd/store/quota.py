"""Quota limits, and usage counted from live rows in the transaction that takes it. Nothing is kept twice."""

from __future__ import annotations

from controllerd.domain import quota
from controllerd.store.database import Tx

# Each query counts one resource of project ?1.
_COUNTS: dict[str, str] = {
    "servers": "SELECT count(*) FROM server WHERE project_id = ?1",
    "vcpus": "SELECT coalesce(sum(vcpus), 0) FROM server WHERE project_id = ?1",
    "memory_mib": "SELECT coalesce(sum(memory_mib), 0) FROM server WHERE project_id = ?1",
    "volumes": "SELECT count(*) FROM volume WHERE project_id = ?1",
    "volume_gib": "SELECT coalesce(sum(size_gib), 0) FROM volume WHERE project_id = ?1",
    "images": "SELECT count(*) FROM image WHERE project_id = ?1",
    "image_gib": "SELECT (coalesce(sum(size_bytes), 0) + 1073741823) / 1073741824 FROM image WHERE project_id = ?1",
    "networks": "SELECT count(*) FROM network WHERE project_id = ?1",
    "subnets": "SELECT count(*) FROM subnet WHERE project_id = ?1",
    "ports": "SELECT count(*) FROM port WHERE project_id = ?1 AND purpose IN ('', 'server')",
    "routers": "SELECT count(*) FROM router WHERE project_id = ?1",
    "floating_ips": "SELECT count(*) FROM floating_ip WHERE project_id = ?1",
    "security_groups": "SELECT count(*) FROM security_group WHERE project_id = ?1",
    "security_group_rules": "SELECT count(*) FROM security_group_rule WHERE project_id = ?1",
    "flavors": "SELECT count(*) FROM flavor WHERE project_id = ?1",
}
assert _COUNTS.keys() == quota.DEFAULTS.keys()


def used(tx: Tx, project_id: str, *resources: str) -> dict[str, int]:
    return {r: int(tx.value(_COUNTS[r], project_id)) for r in resources or _COUNTS}


def limits(tx: Tx, project_id: str) -> dict[str, int]:
    rows = tx.each("SELECT resource, value FROM quota_limit WHERE project_id = ?", project_id)
    own = {row["resource"]: row["value"] for row in rows}
    return {**quota.DEFAULTS, **own}


def set_limit(tx: Tx, project_id: str, resource: str, value: int) -> None:
    again = "ON CONFLICT (project_id, resource) DO UPDATE SET value = excluded.value"
    tx.run(f"INSERT INTO quota_limit (project_id, resource, value) VALUES (?, ?, ?) {again}", project_id, resource, value)


def take(tx: Tx, project_id: str, **requested: int) -> None:
    """Checks that `requested` more still fit. Call it in the transaction that inserts the rows. Errors: QuotaExceeded."""
    allowed = limits(tx, project_id)
    counted = {r: amount for r, amount in requested.items() if allowed[r] != quota.UNLIMITED}  # counting may take long
    if counted:
        quota.enforce(allowed, used(tx, project_id, *counted), counted)
