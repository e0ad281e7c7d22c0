"""Volumes as qcow2 files, served over NBD with TLS by one qemu-storage-daemon."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import combinations
from typing import Any

from daemonkit import failpoint
from daemonkit.errors import ConfigError, SkyrackError, Unavailable
from daemonkit.tls import ROLES
from storaged.drivers.qsd import process
from storaged.drivers.qsd.disk import Extent, VolumeFiles
from storaged.drivers.qsd.monitor import Monitor
from storaged.drivers.qsd.process import QsdSettings
from storaged.spec import Export, HeldVolume, ImageFile, Space, Volume

log = logging.getLogger(__name__)

PAUSE_MAX_S = 5.0
ADDRESS_WAIT_S = 8.0


def node_of(volume_id: str) -> str:
    """Block nodes have names of at most 31 characters; a volume's id is longer."""
    return "v" + hashlib.sha256(volume_id.encode()).hexdigest()[:30]


def distinguished_names(nodes: frozenset[str]) -> list[str]:
    """Every name that a certificate of these compute nodes can have, as GnuTLS writes it and daemonkit.tls.subject makes it.

    Whole names, not patterns: a common name "x,CN=host-1" is written with a backslash that a pattern would take for anything.
    """
    others = sorted(set(ROLES) - {"compute"})
    choices = [chosen for count in range(len(others) + 1) for chosen in combinations(others, count)]
    units = [",".join(f"OU={role}" for role in sorted(("compute", *chosen))) for chosen in choices]
    return [f"O=skyrack,{unit},CN={node}" for node in sorted(nodes) for unit in units]


class QsdVolumes:
    def __init__(self, settings: QsdSettings, files: VolumeFiles) -> None:
        self._settings, self._files = settings, files
        self._monitor: Monitor | None = None
        self._serving: dict[str, str] = {}  # tag -> node
        self._open: set[str] = set()  # nodes
        self.restarts = 0
        self._was_up = False

    # ---- the daemon's life

    async def run(self, lost: Callable[[], None]) -> None:
        failures, began_s = 0, asyncio.get_running_loop().time()
        while True:
            try:
                watched, monitor = await self._up()
            except SkyrackError as error:
                # Our address may be held by a daemon that a killed storaged was just starting: soon it can be taken over.
                waited_s = asyncio.get_running_loop().time() - began_s
                if isinstance(error, ConfigError) and not self._was_up and waited_s > ADDRESS_WAIT_S:
                    raise
                log.error("no storage daemon", extra={"why": error.message})
                failures += 1
                await asyncio.sleep(min(0.1 * 2**failures, PAUSE_MAX_S))
                continue
            failures, self._was_up = 0, True
            self._monitor = monitor
            lost()
            try:
                await _first(watched.wait(), monitor.lost())
            finally:
                self._monitor = None
                watched.close()
                await monitor.close()
            if watched.ended:
                self._serving, self._open = {}, set()
                self.restarts += 1
            log.warning("the storage daemon is lost", extra={"pid": watched.pid, "ended": watched.ended})

    async def _up(self) -> tuple[process.Exit, Monitor]:
        """Takes over the daemon that runs, or starts one."""
        found = process.running(self._settings)
        if found:
            pid, as_configured = found
            if as_configured and (monitor := await self._adopt()):
                log.info("storage daemon taken over", extra={"pid": pid, "exports": len(self._serving)})
                return process.Exit(pid), monitor
            log.warning("the storage daemon is not fit to be taken over", extra={"pid": pid, "as_configured": as_configured})
            await process.end(pid)
        pid = await process.start(self._settings)
        monitor = Monitor()
        await monitor.connect(self._settings.qmp)
        self._serving, self._open = {}, set()
        return process.Exit(pid), monitor

    async def _adopt(self) -> Monitor | None:
        monitor = Monitor()
        try:
            await monitor.connect(self._settings.qmp)
            self._serving = await monitor.exports()
            self._open = set(await monitor.nodes())
            for unused in self._open - set(self._serving.values()):
                await monitor.close_node(unused)
                self._open.discard(unused)
        except SkyrackError as error:
            log.warning("the storage daemon does not answer", extra={"why": error.message})
            await monitor.close()
            return None
        return monitor

    def _reached(self) -> Monitor:
        if self._monitor is None:
            raise Unavailable("the storage daemon is not running")
        return self._monitor

    # ---- looking: while the daemon can't be reached, what it served last is taken as served still

    async def held(self) -> dict[str, HeldVolume]:
        return {volume_id: self._held(volume_id, extent) for volume_id, extent in (await self._files.extents()).items()}

    async def look(self, volume_id: str) -> HeldVolume | None:
        extent = await self._files.extent(volume_id)
        return self._held(volume_id, extent) if extent else None

    def _held(self, volume_id: str, extent: Extent) -> HeldVolume:
        node = node_of(volume_id)
        tags = frozenset(tag for tag, served in self._serving.items() if served == node)
        return HeldVolume(extent.size_bytes, extent.allocated_bytes, tags)

    def space(self) -> Space:
        return self._files.space()

    # ---- doing

    async def make(self, volume: Volume, image: ImageFile | None) -> None:
        await self._files.make(volume, image)

    async def grow(self, volume_id: str, size_bytes: int) -> None:
        await self._close_unused(self._reached(), node_of(volume_id))
        await self._files.grow(volume_id, size_bytes)

    async def remove(self, volume_id: str) -> None:
        await self._close_unused(self._reached(), node_of(volume_id))
        await self._files.remove(volume_id)

    async def serve(self, export: Export) -> None:
        if export.tag in self._serving:
            return
        monitor, node = self._reached(), node_of(export.volume_id)
        if node not in self._open:
            await monitor.open(node, self._files.path(export.volume_id))
            self._open.add(node)
            failpoint.hit("export-opened")
        try:
            await monitor.export(export.tag, node, export.name)
            self._serving[export.tag] = node
        finally:
            with suppress(SkyrackError):
                await self._close_unused(monitor, node)
        failpoint.hit("export-served")

    async def unexport(self, volume_id: str, tag: str) -> None:
        monitor = self._reached()
        if tag in self._serving:
            await monitor.unexport(tag)
            self._serving.pop(tag, None)
            failpoint.hit("export-cut")
        await self._close_unused(monitor, node_of(volume_id))

    async def _close_unused(self, monitor: Monitor, node: str) -> None:
        """A volume is open only while it is served: its file is then nobody's but ours to change or remove."""
        if node in self._open and node not in self._serving.values():
            await monitor.close_node(node)
            self._open.discard(node)

    async def allow(self, nodes: frozenset[str]) -> None:
        await self._reached().authorize(distinguished_names(nodes))


async def _first(*waits: Coroutine[Any, Any, None]) -> None:
    """Until one of them is over."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
