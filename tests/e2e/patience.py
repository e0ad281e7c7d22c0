"""Waiting for what takes its time: guests boot under emulation, on machines that have other things to do."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

from skyrack.client import CloudError

T = TypeVar("T")

LIMIT_S = 180.0
"""A hang, not a slow machine."""

_NOT_YET = (AssertionError, CloudError, subprocess.CalledProcessError, subprocess.TimeoutExpired)


def until(attempt: Callable[[], T], what: str, limit_s: float = LIMIT_S, pause_s: float = 0.5) -> T:
    """The first true answer of `attempt`. Fails with `what` and the last answer or error."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            last: object = (answer := attempt())
            if answer:
                return answer
        except _NOT_YET as error:
            last = f"{error} {getattr(error, 'stderr', '') or ''}"
        assert time.monotonic() < deadline, f"{what}: not within {limit_s:.0f} s; last: {last}"
        time.sleep(pause_s)
