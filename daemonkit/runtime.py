"""The outside world, handed in: time, randomness, ids, blocking work.

Every composition root makes one `Runtime` and gives it to its rooms; nothing else calls `time.time`, `random`, `uuid4` or
starts a thread. Sleeping is `asyncio.sleep`: the loop itself is virtual in a simulation.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Clock(Protocol):
    def wall_s(self) -> float:
        """Seconds since 1970 UTC: for people and records, never for waiting or leases."""

    def boottime_s(self) -> float:
        """Seconds that only rise, counting suspension (CLOCK_BOOTTIME): for deadlines and leases."""


class SystemClock:
    def wall_s(self) -> float:
        return time.time()

    def boottime_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)


class Threads(Protocol):
    async def run(self, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        """Runs blocking `fn` off the event loop. Cancelling the wait does not stop the thread."""

    def close(self) -> None: ...


class ThreadPool:
    """At most `workers` blocking calls at once; further ones queue."""

    def __init__(self, name: str, workers: int) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=name)

    async def run(self, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, fn, *args)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class InlineThreads:
    """For simulation and unit tests: runs at once, on the loop."""

    async def run(self, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        return fn(*args)

    def close(self) -> None:
        return None


@dataclass(frozen=True)
class Runtime:
    """What a room may know of the world. `threads(name, workers)` makes a pool; its maker closes it."""

    clock: Clock
    rng: random.Random
    threads: Callable[[str, int], Threads]

    def new_id(self) -> str:
        """A random UUID (RFC 9562, version 4) in text form."""
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def new_secret(self, nbytes: int = 32) -> str:
        """`nbytes` of randomness in URL-safe base64 without padding."""
        return urlsafe_b64encode(self.rng.randbytes(nbytes)).rstrip(b"=").decode()

    def jitter_s(self, up_to_s: float) -> float:
        return self.rng.uniform(0.0, up_to_s)


def system_runtime() -> Runtime:
    return Runtime(SystemClock(), random.SystemRandom(), ThreadPool)
