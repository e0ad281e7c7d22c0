"""One lasting connection to libvirtd from asyncio.

libvirt's own event loop runs in one thread for the life of the process; its callbacks only hand a word over to our loop.
Every call runs in a bounded pool of threads (libvirt-python lets go of the interpreter lock meanwhile). Keepalive ends calls
to a libvirtd that hangs: an asyncio time-out would leave the thread stuck. When the connection breaks, calls fail with
Unavailable and it is made anew with growing pauses; events were lost then, and `on_connect` says so.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import libvirt

from computed import metric
from computed.drivers.base import HypervisorError
from daemonkit.errors import Unavailable
from daemonkit.runtime import Runtime

log = logging.getLogger(__name__)
T = TypeVar("T")

CALLS_MAX = 8  # at the same time
KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_MISSES_MAX = 3
OPEN_TIMEOUT_S = 20.0
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0

EVENTS = ("LIFECYCLE", "IO_ERROR_REASON", "DEVICE_ADDED", "DEVICE_REMOVED", "DEVICE_REMOVAL_FAILED", "REBOOT")
# What libvirt and QEMU say names files, addresses and options (export names!) of this machine: not for tenants.
_HIDDEN = (
    (re.compile(r"\{.*\}"), "(...)"),
    (re.compile(r"(?<![\w:/])/[\w.+:@%-]+(?:/[\w.+:@%-]+)+"), "(file)"),
    (re.compile(r"\b\d+\.\d+\.\d+\.\d+(:\d+)?\b|\[[0-9a-f:]+\](:\d+)?"), "(address)"),
    (re.compile(r"[\d-]+T[\d:.]+Z qemu-[\w-]+: "), ""),
    (re.compile(r"export[ -]name[ :]+\S+|export '[^']*'"), "(export)"),
)

_event_loop_lock = threading.Lock()
_event_loop_runs = False


def _ensure_event_loop() -> None:
    """Must come before the first connection. A daemon thread: libvirt has no way to end it."""
    global _event_loop_runs
    with _event_loop_lock:
        if _event_loop_runs:
            return
        libvirt.registerErrorHandler(lambda _context, _error: None, None)  # else every error is printed
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_run_events, name="libvirt-events", daemon=True).start()
        _event_loop_runs = True


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def tenant_text(message: str) -> str:
    """What libvirt said, in one line, without what is nobody's business."""
    text = " ".join(message.split())
    for pattern, instead in _HIDDEN:
        text = pattern.sub(instead, text)
    return text[:300]


class LibvirtConnection:
    """`on_event(kind, domain uuid)` and `on_connect()` are called on the event loop."""

    def __init__(
        self, uri: str, runtime: Runtime, on_event: Callable[[str, str], None], prepare: Callable[[Any], None]
    ) -> None:
        """`prepare(connection)` runs in a thread on each new connection, before anybody else may use it."""
        self._uri, self._runtime, self._on_event, self._prepare = uri, runtime, on_event, prepare
        self._threads = runtime.threads("libvirt", CALLS_MAX)
        self._connection: Any = None
        self._lost = asyncio.Event()

    async def run(self, on_connect: Callable[[], None]) -> None:
        """Until cancelled."""
        _ensure_event_loop()
        loop = asyncio.get_running_loop()
        pause_s = BACKOFF_FIRST_S
        try:
            while True:
                try:
                    connection, callbacks = await self._open_in_time(loop)
                except libvirt.libvirtError as error:
                    log.warning("no connection to libvirtd", extra={"why": str(error), "retry_s": pause_s})
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 2, BACKOFF_MAX_S)
                    continue
                pause_s = BACKOFF_FIRST_S
                metric.RECONNECTS.inc()
                await self._use(connection, callbacks, on_connect)
        finally:
            self._threads.close()

    async def _use(self, connection: Any, callbacks: list[int], on_connect: Callable[[], None]) -> None:
        self._lost.clear()
        self._connection = connection
        try:
            on_connect()
            await self._lost.wait()
            log.warning("connection to libvirtd lost")
        finally:
            self._connection = None
            await self._threads.run(_close, connection, callbacks)

    async def _open_in_time(self, loop: asyncio.AbstractEventLoop) -> tuple[Any, list[int]]:
        """Opening has no keepalive yet: begun on a libvirtd that hangs, it may never end, even when libvirtd goes on.

        The library is of no more use to this process then: it ends at once, and whoever watches over it starts it anew.
        Guests go on, the ledger is durable. Errors: libvirtError.
        """
        opened: asyncio.Future[tuple[Any, list[int]]] = loop.create_future()

        def settle(act: Callable[[Any], None], result: object) -> None:
            if not opened.done():
                act(result)

        def work() -> None:
            try:
                _post(loop, settle, opened.set_result, self._open(loop))
            except libvirt.libvirtError as error:
                _post(loop, settle, opened.set_exception, error)

        threading.Thread(target=work, name="libvirt-open", daemon=True).start()
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                return await opened
        except TimeoutError:
            log.critical("libvirt hangs, starting anew", extra={"after_s": OPEN_TIMEOUT_S})
            os._exit(1)  # an orderly end would wait for its threads

    def _open(self, loop: asyncio.AbstractEventLoop) -> tuple[Any, list[int]]:
        connection = libvirt.open(self._uri)
        connection.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_MISSES_MAX)
        connection.registerCloseCallback(lambda *_: _post(loop, self._lost.set), None)

        def listener(kind: str) -> Callable[..., None]:
            return lambda _connection, domain, *_: _post(loop, self._on_event, kind, domain.UUIDString())

        callbacks = [
            connection.domainEventRegisterAny(None, getattr(libvirt, f"VIR_DOMAIN_EVENT_ID_{kind}"), listener(kind), None)
            for kind in EVENTS
        ]
        self._prepare(connection)
        return connection, callbacks

    async def call(self, fn: Callable[..., T], *args: object) -> T:
        """Runs `fn(connection, *args)` in a thread. Errors: Unavailable, HypervisorError."""
        connection = self._connection
        if connection is None or self._lost.is_set():
            raise Unavailable("libvirtd does not answer")
        try:
            return await self._threads.run(fn, connection, *args)
        except libvirt.libvirtError as error:
            text = str(error)
            if not await self._threads.run(_alive, connection):
                if self._connection is connection:
                    self._lost.set()  # the close callback stays silent when keepalive ends it under a call
                raise Unavailable("the connection to libvirtd broke") from error
            log.warning("libvirt refused", extra={"why": text})
            raise HypervisorError(f"the hypervisor refused: {tenant_text(text)}") from error


def _alive(connection: Any) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _post(loop: asyncio.AbstractEventLoop, fn: Callable[..., None], *args: object) -> None:
    """From libvirt's thread. A loop that has ended needs no more words."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(fn, *args)


def _close(connection: Any, callbacks: list[int]) -> None:
    """Each part for itself: on a broken connection some of them fail."""
    parts: list[Callable[[], Any]] = [partial(connection.domainEventDeregisterAny, number) for number in callbacks]
    for part in (*parts, connection.unregisterCloseCallback, connection.close):
        with suppress(libvirt.libvirtError):
            part()
