"""The time that the store writes and compares with.

It begins, with each term, at the machine's wall clock, but never before what an earlier term has written, and then goes at
the pace of the machine's boot-time clock. So a step of the wall clock moves no deadline and lengthens no usage: until the
next term the two differ, and `step_s` tells by how much.
"""

from __future__ import annotations

from daemonkit.runtime import Clock


class TermClock:
    def __init__(self, clock: Clock, last_s: float) -> None:
        """`last_s`: the newest time that was ever written."""
        self._clock = clock
        self._began_s = max(clock.wall_s(), last_s)
        self._ahead_s = self._began_s - clock.boottime_s()

    def now_s(self) -> float:
        """Seconds since 1970 UTC; never less than before, in this term or an earlier one."""
        return max(self._began_s, self._clock.boottime_s() + self._ahead_s)  # the sum is rounded

    @property
    def step_s(self) -> float:
        """How far the machine's clock is ahead of this one."""
        return self._clock.wall_s() - self.now_s()
