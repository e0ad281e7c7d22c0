"""Usage in the store: intervals of servers' lives, and counter totals."""

from __future__ import annotations

from controllerd.domain.usage import Counters, ServerUsage, hours_between
from controllerd.store.database import Row, Tx


def of_project(tx: Tx, project_id: str, from_at: float, to_at: float) -> list[ServerUsage]:
    """One entry a server that lived within [from, to], by start."""
    sql = (
        "SELECT i.server_id, i.server_name, i.vcpus, i.memory_mib, i.disk_gib, i.started_at, i.ended_at,"
        " coalesce(c.cpu_ns, 0) AS cpu_ns, coalesce(c.rx_bytes, 0) AS rx_bytes, coalesce(c.tx_bytes, 0) AS tx_bytes,"
        " coalesce(c.read_bytes, 0) AS read_bytes, coalesce(c.write_bytes, 0) AS write_bytes"
        " FROM usage_interval i LEFT JOIN usage_counter c ON c.server_id = i.server_id"
        " WHERE i.project_id = ? AND i.started_at < ? AND (i.ended_at = 0 OR i.ended_at > ?) ORDER BY i.started_at, i.id"
    )
    return [_usage(row, from_at, to_at) for row in tx.each(sql, project_id, to_at, from_at)]


def _usage(row: Row, from_at: float, to_at: float) -> ServerUsage:
    hours = hours_between(row["started_at"], row["ended_at"], from_at, to_at)
    counters = Counters(row["cpu_ns"], row["rx_bytes"], row["tx_bytes"], row["read_bytes"], row["write_bytes"])
    return ServerUsage(row["server_id"], row["server_name"], row["vcpus"], row["memory_mib"], row["disk_gib"], hours, counters)
