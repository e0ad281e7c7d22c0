"""The lease as arithmetic: until when this controller may believe that it leads.

Pure: times come in, in seconds of CLOCK_BOOTTIME of this machine. The deadline counts from before a renewal was *sent*, so it
is never later than the lease's real end, whatever the network did with the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from daemonkit.errors import ConfigError


@dataclass(frozen=True)
class LeaseSettings:
    """`ttl_s`: whole seconds, etcd takes at least 2. `margin_s`: a leader stops so long before its deadline."""

    ttl_s: int = 3
    margin_s: float = 0.5

    def __post_init__(self) -> None:
        if not 2 <= self.ttl_s <= 60:
            raise ConfigError("cluster.lease_ttl_s must be from 2 to 60")
        if not 0 < self.margin_s <= self.ttl_s / 3:
            raise ConfigError("cluster.lease_margin_s must be above 0 and at most a third of cluster.lease_ttl_s")

    @property
    def renew_interval_s(self) -> float:
        return self.ttl_s / 4


class Lease:
    """Held from a grant or renewal sent at `sent_s` for `ttl_s`."""

    def __init__(self, settings: LeaseSettings, sent_s: float, ttl_s: float) -> None:
        self._margin_s = settings.margin_s
        self._deadline_s = sent_s + ttl_s

    def renewed(self, sent_s: float, ttl_s: float) -> None:
        """`ttl_s` 0: it is gone."""
        self._deadline_s = max(self._deadline_s, sent_s + ttl_s) if ttl_s > 0 else sent_s

    def rest_s(self, now_s: float) -> float:
        """Until this controller must have stopped; 0 or less: it must not act."""
        return self._deadline_s - self._margin_s - now_s

    def holds(self, now_s: float) -> bool:
        return self.rest_s(now_s) > 0
