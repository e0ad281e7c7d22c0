"""Life of a daemon: one data directory, readiness and watchdog for systemd, an orderly end.

A daemon's `main(life)` builds its rooms, calls `life.ready()` and awaits `life.stopping`. SIGTERM and SIGINT set it.
Two daemons on one data directory: the second refuses to start (flock), whatever host name or pid file says.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from daemonkit import heap
from daemonkit.errors import ConfigError

log = logging.getLogger(__name__)


class DataDirectory:
    """An exclusively held directory. Held until the process ends; the kernel drops the lock with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise ConfigError(f"{path} is in use by another process") from None

    def close(self) -> None:
        os.close(self._fd)


class Lifecycle:
    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.is_ready = False
        self._tasks: list[asyncio.Task[None]] = []

    def ready(self, status: str) -> None:
        """Tells systemd that the daemon serves, and starts feeding its watchdog (if it asked for one). Again: a new status."""
        notify(f"READY=1\nSTATUS={status}")
        if self.is_ready:
            log.info("now", extra={"status": status})
            return
        self.is_ready = True
        interval_us = int(os.environ.get("WATCHDOG_USEC", "0"))
        ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        if interval_us and ours:
            self._tasks.append(asyncio.get_running_loop().create_task(_feed_watchdog(interval_us / 3e6)))
        heap.settle()
        self._tasks.append(asyncio.get_running_loop().create_task(heap.tend()))
        log.info("ready", extra={"status": status})

    def tell(self, status: str) -> None:
        """What `systemctl status` shows."""
        notify(f"STATUS={status}")

    def stop(self) -> None:
        if not self.stopping.is_set():
            notify("STOPPING=1")
            self.stopping.set()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()


def run(main: Callable[[Lifecycle], Awaitable[None]]) -> int:
    """Runs a daemon to its end. Gives the process exit code: 0, or 1 when `main` raised.

    A ConfigError is one line on standard error; everything else is logged with its traceback. Tasks that `main` left behind
    are cancelled and waited for.
    """
    heap.give_memory_back()
    try:
        asyncio.run(_live(main))
    except Exception as error:
        if wrong := _config_error(error):
            print(f"cannot start: {wrong.message}", file=sys.stderr)
        else:
            log.critical("ended by an error", exc_info=error)
        return 1
    return 0


def _config_error(error: Exception) -> ConfigError | None:
    """`error`, or the first of a task group's errors, if it is one of configuration."""
    if isinstance(error, ExceptionGroup):
        return next(filter(None, map(_config_error, error.exceptions)), None)
    return error if isinstance(error, ConfigError) else None


async def _live(main: Callable[[Lifecycle], Awaitable[None]]) -> None:
    life = Lifecycle()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, life.stop)
    try:
        await main(life)
    finally:
        life.close()


async def _feed_watchdog(interval_s: float) -> None:
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval_s)


def notify(state: str) -> None:
    """sd_notify(3). Nothing happens without NOTIFY_SOCKET."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(1.0)  # a stuck service manager must not stop the loop for longer
        try:
            sock.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
        except OSError as error:
            log.warning("sd_notify failed", extra={"why": str(error)})
