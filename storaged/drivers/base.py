"""The port below the reconciler: who keeps volumes and serves them.

Drivers never retry. Every method is idempotent: what is there already is made no second time, what is gone is no error.
The caller never runs two of them for one volume at once. Errors: Unavailable when the storage daemon can't be reached (it
will be back: `lost` is called), OutOfSpace, InvalidArgument (the image does not fit), Conflict (what is
there can't be what it should), CommandFailed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from storaged.spec import Export, HeldVolume, ImageFile, Space, Volume


class VolumeDriver(Protocol):
    async def run(self, lost: Callable[[], None]) -> None:
        """Takes over what is served already, and keeps the storage daemon alive until cancelled; exports then stay served.

        `lost` is called on the loop when it can be reached for the first time, and whenever exports may have gone since.
        """

    async def held(self) -> dict[str, HeldVolume]:
        """Every volume on this node, by id."""

    async def look(self, volume_id: str) -> HeldVolume | None: ...

    async def make(self, volume: Volume, image: ImageFile | None) -> None:
        """Whole or not at all."""

    async def grow(self, volume_id: str, size_bytes: int) -> None:
        """The volume must not be served at the moment."""

    async def remove(self, volume_id: str) -> None: ...

    async def serve(self, export: Export) -> None: ...

    async def unexport(self, volume_id: str, tag: str) -> None:
        """When it returns, nobody writes through this export any more."""

    async def allow(self, nodes: frozenset[str]) -> None:
        """The certificates of exactly these nodes may connect from now on."""

    def space(self) -> Space: ...

    @property
    def restarts(self) -> int:
        """How often the storage daemon had to be started again."""
