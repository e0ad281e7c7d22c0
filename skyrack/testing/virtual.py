"""Virtual time: waiting costs nothing, and a hundred hours pass when all have fallen asleep.

Whatever runs in a `RepeatableLoop` with nothing but a `Runtime` to reach the world through happens again exactly. Several
processes may live in one such loop, and each can be stopped and continued as by SIGSTOP and SIGCONT.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any

EPOCH_S = 1_800_000_000.0
_TASKS_KEPT = 1000
_PROCESS: ContextVar[str] = ContextVar("process", default="")


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


class _Call:
    """A callback on its way. `handle` is what its caller may cancel it by, also while its process is stopped."""

    handle: asyncio.Handle

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._callback, self._args = callback, args

    def make(self) -> None:
        self._callback(*self._args)

    def make_late(self) -> None:
        if not self.handle.cancelled():
            self.make()


class RepeatableLoop(VirtualLoop):
    """Virtual time, and the same order of everything each time.

    What a process is made of are the tasks begun by `spawn` and all that come of them. While it is stopped nothing of it
    runs; what falls due meanwhile runs when it continues, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made = 0
        self._stopped: dict[str, list[_Call]] = {}
        self._tasks: list[asyncio.Task[Any]] = []  # asyncio itself would let a task of a stopped process be collected
        self._tasks_kept = _TASKS_KEPT
        self.set_task_factory(self._task)

    # ---- processes

    def spawn(self, process: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """The first task of a process, or a further one."""
        context = copy_context()
        context.run(_PROCESS.set, process)
        return self.create_task(work, context=context)

    def freeze(self, process: str) -> None:
        self._stopped.setdefault(process, [])

    def thaw(self, process: str) -> None:
        for call in self._stopped.pop(process, ()):
            super().call_soon(call.make_late, context=call.handle._context)  # type: ignore[attr-defined]

    def _pass(self, call: _Call) -> None:
        waiting = self._stopped.get(_PROCESS.get())
        if waiting is None:
            call.make()
        else:
            waiting.append(call)

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        call = _Call(callback, args)
        call.handle = super().call_soon(self._pass, call, context=context)
        return call.handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        call = _Call(callback, args)
        handle = super().call_at(when, self._pass, call, context=context)
        call.handle = handle
        return handle

    # ---- the order of things

    def _next(self) -> int:
        self._made += 1
        return self._made

    def _task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> Any:
        if len(self._tasks) > self._tasks_kept:
            self._tasks = [task for task in self._tasks if not task.done()]
            self._tasks_kept = 2 * len(self._tasks) + _TASKS_KEPT
        task = _Task.__new__(_Task)
        self._tasks.append(task)
        task._number = self._next()
        task.__init__(work, loop=loop, **options)  # type: ignore[misc]
        return task

    def create_future(self) -> asyncio.Future[Any]:
        future = _Future(loop=self)
        future._number = self._next()
        return future
