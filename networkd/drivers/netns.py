"""Network namespaces: making, removing, and doing something in one.

A thread changes its namespace and ends; no thread of a pool ever does. Names are files below /run/netns, as iproute2 has them.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
DIRECTORY = Path("/run/netns")
CLONE_NEWNET = 0x40000000
MS_BIND, MS_REC, MS_SHARED, MNT_DETACH = 0x1000, 0x4000, 1 << 20, 2

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def path(name: str) -> Path:
    return DIRECTORY / name


def names(prefix: str) -> list[str]:
    """Namespaces with that prefix that are really mounted (a crash may leave an empty file)."""
    if not DIRECTORY.is_dir():
        return []
    device = DIRECTORY.stat().st_dev
    return sorted(e.name for e in DIRECTORY.iterdir() if e.name.startswith(prefix) and e.stat().st_dev != device)


def sweep(prefix: str) -> None:
    """Removes names without a namespace."""
    if DIRECTORY.is_dir():
        mounted = set(names(prefix))
        for entry in list(DIRECTORY.iterdir()):
            if entry.name.startswith(prefix) and entry.name not in mounted:
                entry.unlink(missing_ok=True)


def inside(name: str, fn: Callable[[], T]) -> T:
    """Runs `fn` in a thread of its own in namespace `name` ("" = where we are). Errors: OSError, what `fn` raises."""
    if not name:
        return fn()

    def enter() -> None:
        descriptor = os.open(path(name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(descriptor, CLONE_NEWNET), f"setns {name}")
        finally:
            os.close(descriptor)

    return _in_thread(enter, fn)


def _in_thread(enter: Callable[[], None], fn: Callable[[], T]) -> T:
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            enter()
            results.append(fn())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def create(name: str, sysctls: Iterable[tuple[str, str]], prepare: Callable[[], None]) -> None:
    """A namespace appears under its name only when its sysctls are set and `prepare` ran in it."""
    _shared_directory()
    target = path(name)

    def build() -> None:
        for key, value in sysctls:
            set_sysctl(key, value)
        prepare()
        target.touch(mode=0o444)
        source = f"/proc/self/task/{threading.get_native_id()}/ns/net"
        _check(_libc.mount(source.encode(), str(target).encode(), b"none", MS_BIND, None), f"mount {target}")

    _in_thread(lambda: _check(_libc.unshare(CLONE_NEWNET), "unshare"), build)


def _shared_directory() -> None:
    """As `ip netns add` does it, so that namespaces made here are seen by `ip netns` elsewhere."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    if not _is_mounted(DIRECTORY):
        place = str(DIRECTORY).encode()
        _check(_libc.mount(place, place, b"none", MS_BIND | MS_REC, None), "mount /run/netns")
        _check(_libc.mount(b"", place, b"none", MS_SHARED | MS_REC, None), "share /run/netns")


def _is_mounted(directory: Path) -> bool:
    """Asks the kernel: a bind of a directory on its own file system looks like no mount to stat(2). Mounting it on itself
    once more, shared, would double every mount below it each time."""
    with Path("/proc/self/mountinfo").open() as mounts:
        return any(line.split(" ", 5)[4] == str(directory) for line in mounts)


def delete(name: str) -> None:
    target = path(name)
    _libc.umount2(str(target).encode(), MNT_DETACH)
    with suppress(FileNotFoundError):
        target.unlink()


def set_sysctl(key: str, value: str) -> None:
    """In the namespace of the calling thread. Dots in a device name are not supported."""
    Path("/proc/sys", *key.split(".")).write_text(value)
