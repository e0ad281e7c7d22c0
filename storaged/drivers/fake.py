"""Volumes that are only remembered: for simulations. No files, threads or sockets; delays and faults by the runtime's dice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from daemonkit.errors import Unavailable
from daemonkit.runtime import Runtime
from storaged.spec import Export, HeldVolume, ImageFile, Space, Volume

TOTAL_BYTES = 1 << 40


class FakeVolumes:
    """`delay_s_max`: of each call. `fault_rate`: share of the calls that raise Unavailable."""

    def __init__(self, runtime: Runtime, delay_s_max: float = 0.0, fault_rate: float = 0.0) -> None:
        self._runtime = runtime
        self.delay_s_max, self.fault_rate = delay_s_max, fault_rate
        self.sizes: dict[str, int] = {}
        self.exports: dict[str, dict[str, Export]] = {}  # volume id -> tag -> export
        self.allowed: frozenset[str] = frozenset()
        self.restarts = 0
        self._lost: Callable[[], None] = lambda: None

    async def run(self, lost: Callable[[], None]) -> None:
        self._lost = lost
        lost()
        try:
            await asyncio.Event().wait()
        finally:
            self._lost = lambda: None

    def crash(self) -> None:
        """The storage daemon dies and is started again: volumes stay, exports are gone."""
        self.exports.clear()
        self.allowed = frozenset()
        self.restarts += 1
        self._lost()

    async def _work(self) -> None:
        if self.delay_s_max:
            await asyncio.sleep(self._runtime.rng.uniform(0.0, self.delay_s_max))
        if self.fault_rate and self._runtime.rng.random() < self.fault_rate:
            raise Unavailable("the fake storage daemon is unwell")

    async def held(self) -> dict[str, HeldVolume]:
        return {volume_id: self._held(volume_id) for volume_id in self.sizes}

    async def look(self, volume_id: str) -> HeldVolume | None:
        return self._held(volume_id) if volume_id in self.sizes else None

    def _held(self, volume_id: str) -> HeldVolume:
        return HeldVolume(self.sizes[volume_id], 0, frozenset(self.exports.get(volume_id, ())))

    async def make(self, volume: Volume, image: ImageFile | None) -> None:
        await self._work()
        self.sizes.setdefault(volume.id, volume.size_bytes)

    async def grow(self, volume_id: str, size_bytes: int) -> None:
        await self._work()
        assert not self.exports.get(volume_id), "grown while served"
        self.sizes[volume_id] = max(size_bytes, self.sizes[volume_id])

    async def remove(self, volume_id: str) -> None:
        await self._work()
        assert not self.exports.get(volume_id), "removed while served"
        self.sizes.pop(volume_id, None)

    async def serve(self, export: Export) -> None:
        await self._work()
        self.exports.setdefault(export.volume_id, {})[export.tag] = export

    async def unexport(self, volume_id: str, tag: str) -> None:
        await self._work()
        self.exports.get(volume_id, {}).pop(tag, None)

    async def allow(self, nodes: frozenset[str]) -> None:
        await self._work()
        self.allowed = nodes

    def space(self) -> Space:
        return Space(TOTAL_BYTES, TOTAL_BYTES - sum(self.sizes.values()))
