"""The time that a replicated log goes by, as one process knows it from the entries that it has seen being written.

Every entry tells the time of its transactions. Whoever sees it at once learns how far that time is ahead of its own boot-time
clock, which nobody sets; delay can only make it look less, so of the last entries the one that came soonest counts. A process
that begins to lead goes on from there: the wall clock of its machine may be an hour off, and that hour would be billed.
"""

from __future__ import annotations

from collections import deque

from daemonkit.runtime import Clock

ENTRIES_KEPT = 64


class LogTime:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ahead_s: deque[float] = deque(maxlen=ENTRIES_KEPT)

    def seen(self, now_s: float) -> None:
        """An entry of that time was written just now."""
        if now_s:  # an older software tells none
            self._ahead_s.append(now_s - self._clock.boottime_s())

    @property
    def ahead_s(self) -> float | None:
        """How far it is ahead of this machine's boot-time clock; None before any entry was seen."""
        return max(self._ahead_s, default=None)
