"""Virtual time: waiting costs nothing, and a hundred hours pass when all have fallen asleep.

Whatever runs in a `RepeatableLoop` with nothing but a `Runtime` to reach the world through happens again exactly.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

EPOCH_S = 1_800_000_000.0


class _Selector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "nobody will ever wake up"
            self.now_s += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now_s


class VirtualClock:
    """Of one machine. `stepped_s`: how far its wall clock was set wrong."""

    def __init__(self) -> None:
        self.stepped_s = 0.0

    def wall_s(self) -> float:
        return EPOCH_S + self.boottime_s() + self.stepped_s

    def boottime_s(self) -> float:
        return asyncio.get_running_loop().time()


class _Numbered:
    """Sets of tasks and futures (asyncio has some) are walked in an order that the memory's addresses have no part in."""

    _number = 0

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _Task(_Numbered, asyncio.Task):  # type: ignore[type-arg]
    pass


class _Future(_Numbered, asyncio.Future):  # type: ignore[type-arg]
    pass


class RepeatableLoop(VirtualLoop):
    """Virtual time, and the same order of everything each time."""

    def __init__(self) -> None:
        super().__init__()
        self._made = 0
        self.set_task_factory(self._task)

    def _next(self) -> int:
        self._made += 1
        return self._made

    def _task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> Any:
        task = _Task.__new__(_Task)
        task._number = self._next()
        task.__init__(work, loop=loop, **options)  # type: ignore[misc]
        return task

    def create_future(self) -> asyncio.Future[Any]:
        future = _Future(loop=self)
        future._number = self._next()
        return future
