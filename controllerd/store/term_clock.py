"""The time that the store writes and compares with.

It begins, with each term, at the machine's wall clock, but never before what an earlier term has written, and then goes at
the pace of the machine's boot-time clock. Where it is known what time the terms before went by, and the wall clock is off that,
it goes on from there. So a step of the wall clock, or a leader whose clock is wrong, moves no deadline and lengthens no usage:
the two differ then, and `step_s` tells by how much.
"""

from __future__ import annotations

from daemonkit.runtime import Clock

SAME_S = 1.0  # wall clocks that are so near are right, and the better ones


class TermClock:
    def __init__(self, clock: Clock, last_s: float, ahead_s: float | None = None) -> None:
        """`last_s`: the newest time that was ever written. `ahead_s`: how far the time of earlier terms is ahead of the
        boot-time clock, None if that is not known."""
        self._clock = clock
        now_s = clock.wall_s()
        if ahead_s is not None and abs(now_s - clock.boottime_s() - ahead_s) > SAME_S:
            now_s = clock.boottime_s() + ahead_s
        self._began_s = max(now_s, last_s)
        self._ahead_s = self._began_s - clock.boottime_s()

    def now_s(self) -> float:
        """Seconds since 1970 UTC; never less than before, in this term or an earlier one."""
        return max(self._began_s, self._clock.boottime_s() + self._ahead_s)  # the sum is rounded

    @property
    def step_s(self) -> float:
        """How far the machine's clock is ahead of this one."""
        return self._clock.wall_s() - self.now_s()
