"""Usage in the store: intervals of servers' lives, and counter totals."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

from controllerd.domain.server import Server
from controllerd.domain.usage import Counters, Meter, ServerUsage, hours_between
from controllerd.store.database import Row, Tx

_METER = ("cpu_ns", "rx_bytes", "tx_bytes", "read_bytes", "write_bytes", "memory_kib", "last", "sampled_at")
_METER_AGAIN = f"ON CONFLICT (server_id) DO UPDATE SET {', '.join(f'{c} = excluded.{c}' for c in _METER)}"


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


# ---- intervals


def open_interval(tx: Tx, server: Server) -> None:
    """The server runs for the first time. Twice is once."""
    if tx.value("SELECT 1 FROM usage_interval WHERE server_id = ? AND ended_at = 0", server.id):
        return
    tx.run(
        "INSERT INTO usage_interval (id, server_id, server_name, project_id, vcpus, memory_mib, disk_gib, started_at, ended_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)",
        tx.new_id(), server.id, server.name, server.project_id, server.vcpus, server.memory_mib, server.disk_gib, tx.now,
    )  # fmt: skip


def close_interval(tx: Tx, server_id: str) -> None:
    """Its deletion was accepted. Twice is once."""
    tx.run("UPDATE usage_interval SET ended_at = ? WHERE server_id = ? AND ended_at = 0", tx.now, server_id)


# ---- counters


def meters_of(tx: Tx, node_id: str, server_ids: Iterable[str]) -> dict[str, Meter]:
    """Server -> its meter, of those that are on the node; at 0 where there were no samples yet."""
    columns = ", ".join(f"c.{column}" for column in _METER)
    sql = (
        f"SELECT s.id, {columns} FROM server s LEFT JOIN usage_counter c ON c.server_id = s.id"
        " WHERE s.node_id = ? AND s.id IN (SELECT value FROM json_each(?))"
    )
    rows = tx.each(sql, node_id, json.dumps(sorted(set(server_ids))))
    return {row["id"]: _meter(row) for row in rows}


def _meter(row: Row) -> Meter:
    if row["last"] is None:
        return Meter()
    total = Counters(**{f: row[f] for f in Counters.__dataclass_fields__})
    return Meter(total, Counters(**json.loads(row["last"])), row["memory_kib"], row["sampled_at"])


def put_meter(tx: Tx, server_id: str, meter: Meter) -> None:
    total = meter.total
    tx.run(
        f"INSERT INTO usage_counter (server_id, project_id, {', '.join(_METER)})"
        f" SELECT id, project_id, ?, ?, ?, ?, ?, ?, ?, ? FROM server WHERE id = ? {_METER_AGAIN}",
        total.cpu_ns, total.rx_bytes, total.tx_bytes, total.read_bytes, total.write_bytes, meter.memory_kib,
        json.dumps(asdict(meter.last)), meter.sampled_at, server_id,
    )  # fmt: skip


def cursor(tx: Tx, node_id: str, incarnation: str) -> int:
    """The last sample of that spool that was counted, 0 = none."""
    sql = "SELECT seq FROM telemetry_cursor WHERE node_id = ? AND incarnation = ?"
    return int(tx.value(sql, node_id, incarnation) or 0)


def put_cursor(tx: Tx, node_id: str, incarnation: str, seq: int) -> None:
    again = "ON CONFLICT (node_id, incarnation) DO UPDATE SET seq = excluded.seq"
    tx.run(f"INSERT INTO telemetry_cursor (node_id, incarnation, seq) VALUES (?, ?, ?) {again}", node_id, incarnation, seq)
