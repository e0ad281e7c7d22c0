"""Usage: what a project consumed between two moments. Server hours come from launches and deletions, never from samples."""

from __future__ import annotations

from dataclasses import dataclass

HOUR_S = 3600.0


@dataclass(frozen=True)
class Counters:
    """Totals since the server was made."""

    cpu_ns: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    read_bytes: int = 0
    write_bytes: int = 0


@dataclass(frozen=True)
class ServerUsage:
    server_id: str
    name: str
    vcpus: int
    memory_mib: int
    disk_gib: int
    hours: float
    counters: Counters


def hours_between(started_at: float, ended_at: float, from_at: float, to_at: float) -> float:
    """Hours of [started, ended] (ended 0 = still running) that fall into [from, to]."""
    end_at = min(ended_at or to_at, to_at)
    return max(0.0, end_at - max(started_at, from_at)) / HOUR_S
