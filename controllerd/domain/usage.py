"""Usage: what a project consumed between two moments. Server hours come from launches and deletions, never from samples."""

from __future__ import annotations

from dataclasses import dataclass

HOUR_S = 3600.0
COUNTER_MAX = (1 << 63) - 1  # SQLite's integers: 292 years of a CPU in ns, 9 EB


@dataclass(frozen=True)
class Counters:
    """Totals since the server was made."""

    cpu_ns: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    read_bytes: int = 0
    write_bytes: int = 0


@dataclass(frozen=True)
class Meter:
    """Totals, and the raw counters of the last sample. Raw ones begin at 0 whenever the guest is started."""

    total: Counters = Counters()
    last: Counters = Counters()
    memory_kib: int = 0
    sampled_at: float = 0.0

    def read(self, raw: Counters, memory_kib: int, sampled_at: float) -> Meter:
        """Counts what was added since the last sample.

        CPU time that fell means a restart: everything began at 0. Any other counter that fell alone lost a device of several
        (a volume was detached): it counts on from where it is.
        """
        last = self.last if raw.cpu_ns >= self.last.cpu_ns else Counters()
        added = {name: max(0, value - getattr(last, name)) for name, value in vars(raw).items()}
        total = Counters(**{name: min(getattr(self.total, name) + value, COUNTER_MAX) for name, value in added.items()})
        return Meter(total, raw, memory_kib, max(sampled_at, self.sampled_at))


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
