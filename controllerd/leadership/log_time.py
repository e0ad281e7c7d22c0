"""The time that a replicated log goes by, as one process knows it from the entries that it has seen being written.

Every entry tells the time of its transactions. Whoever sees it at once learns how far that time is ahead of its own boot-time
clock, which nobody sets; delay can only make it look less, so of the last entries the one that came soonest counts. A process
that begins to lead goes on from there: the wall clock of its machine may be an hour off, and that hour would be billed.

An entry that has lain unread for longer tells nothing. So what counts is only what was written after the reader is known to
have had all there was, and that not long ago: the backlog of a process that stood still is not among it. What such a process
knew before it stood still it forgets; the cloud may have begun anew meanwhile.
"""

from __future__ import annotations

import math
from collections import deque

from daemonkit.runtime import Clock

ENTRIES_KEPT = 64
LATE_S = 2.0  # an entry may have lain unread for so long; a process that has not looked for longer stood still


class LogTime:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ahead_s: deque[float] = deque(maxlen=ENTRIES_KEPT)
        self._complete_s = -math.inf

    def complete(self, boottime_s: float) -> None:
        """All that was written before that moment was read: it is asked for before the look that tells so."""
        self._complete_s = boottime_s

    @property
    def unknown_s(self) -> float:
        """For how long entries may have lain unread."""
        return self._clock.boottime_s() - self._complete_s

    def woke(self) -> None:
        """Called by a reader that looks more often than every LATE_S, whenever it goes on: did it stand still?"""
        if self.unknown_s > LATE_S:
            self._ahead_s.clear()

    def seen(self, now_s: float) -> None:
        """An entry of that time was read, which was not there at the last `complete`."""
        if now_s and self.unknown_s <= LATE_S:  # an older software tells none
            self._ahead_s.append(now_s - self._clock.boottime_s())

    @property
    def ahead_s(self) -> float | None:
        """How far it is ahead of this machine's boot-time clock; None before any entry was seen."""
        return max(self._ahead_s, default=None)
