"""Finds daemons that go past their runtime: to the clock, to dice, to threads, processes or sockets."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

PACKAGES = ("daemonkit", "controllerd", "computed", "networkd", "storaged")
CLOCKS = ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "clock_gettime", "sleep")
DICE = ("random", "randrange", "randint", "uniform", "choice", "shuffle", "getrandbits", "randbytes")


@contextmanager
def tripwire() -> Iterator[list[str]]:
    """Gives what was touched: "module name". Clocks count only when a daemon asks: libraries time themselves."""
    touched: list[str] = []
    with ExitStack() as stack:
        for name in CLOCKS:
            stack.enter_context(_wire(touched, time, name, ours_only=True))
        for owner, names in (
            (random, DICE), (uuid, ("uuid1", "uuid4")), (os, ("urandom", "getrandom", "fork", "posix_spawn")),
            (threading.Thread, ("start",)), (subprocess.Popen, ("__init__",)), (socket.socket, ("bind", "connect")),
            (asyncio.BaseEventLoop, ("run_in_executor", "subprocess_exec", "subprocess_shell", "create_connection")),
        ):  # fmt: skip
            for name in names:
                stack.enter_context(_wire(touched, owner, name, ours_only=False))
        yield touched


def _wire(touched: list[str], owner: Any, name: str, *, ours_only: bool) -> Any:
    real = getattr(owner, name)

    def touch(*args: Any, **options: Any) -> Any:
        caller = str(sys._getframe(1).f_globals.get("__name__", ""))
        if not ours_only or caller.partition(".")[0] in PACKAGES:
            touched.append(f"{caller}: {name}")
        return real(*args, **options)

    return patch.object(owner, name, touch)
