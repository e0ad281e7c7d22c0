"""Programs that the launcher starts, and the lock that tells whether any of them is still at work.

The lock of a sandbox is inherited by every program started under it. It is free only when the launcher and all it started
have ended, however the launcher died; so a `down` that holds the lock sees every effect there will ever be. What is meant to
outlive the launcher (a host, the relay) lets go of it as soon as it can be found by name.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from daemonkit import command
from daemonkit.errors import Conflict

_POLL_S = 0.05
_held: ContextVar[int | None] = ContextVar("sandbox_lock", default=None)


def held() -> int | None:
    """Descriptor of the lock that is held here; None outside `alone` (a host by itself, in a test)."""
    return _held.get()


async def run(*argv: str, stdin: bytes | None = None, timeout_s: float = 30.0) -> str:
    """`daemonkit.command.run` under the lock."""
    lock = held()
    return await command.run(*argv, stdin=stdin, timeout_s=timeout_s, pass_fds=() if lock is None else (lock,))


@asynccontextmanager
async def alone(path: Path, patience_s: float) -> AsyncIterator[None]:
    """One launcher at a time; `path` is removed by whoever clears the sandbox. Errors: Conflict after `patience_s`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = await _take(path, patience_s)
    token = _held.set(lock)
    try:
        yield
    finally:
        _held.reset(token)
        os.close(lock)


async def _take(path: Path, patience_s: float) -> int:
    deadline = asyncio.get_running_loop().time() + patience_s
    while (lock := _try(path)) is None:
        if asyncio.get_running_loop().time() > deadline:
            raise Conflict(f"another command is changing this sandbox ({path})")
        await asyncio.sleep(_POLL_S)
    return lock


def _try(path: Path) -> int | None:
    """None while somebody has it, or when the file was removed just before we got it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), path.stat()):
            return lock
    os.close(lock)
    return None
