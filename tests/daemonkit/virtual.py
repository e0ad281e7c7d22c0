"""A run under a virtual clock, as tests of one part want it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any, TypeVar

from daemonkit.runtime import InlineThreads, Runtime
from skyrack.testing.virtual import EPOCH_S, VirtualClock, VirtualLoop

__all__ = ["EPOCH_S", "VirtualClock", "VirtualLoop", "run", "runtime"]

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


def runtime(seed: int = 1) -> Runtime:
    return Runtime(VirtualClock(), random.Random(seed), lambda name, workers: InlineThreads())
