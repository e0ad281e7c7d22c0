"""The port to this controller's own copy of the state while it does not lead: `store.replica.Replica`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from controllerd.leadership.entry import Entry


class Position(Protocol):
    """How far a copy is: the last entry in it, the epoch that wrote it, and the cloud it belongs to ("" = it is blank)."""

    @property
    def seq(self) -> int: ...

    @property
    def epoch(self) -> int: ...

    @property
    def cluster_id(self) -> str: ...


class Copy(Protocol):
    """Open while its controller follows, closed while it leads: then the database has the file."""

    @property
    def position(self) -> Position:
        """While it is open."""

    async def open(self) -> None:
        """Errors: ConfigError."""

    async def apply(self, entries: Sequence[Entry]) -> None:
        """All of them or none, in ascending order, the first right after `position`. Errors: Diverged."""

    async def install(self, snapshot: Path) -> None:
        """Takes the place of all there was; the file is consumed. Errors: Diverged when it is none of ours."""

    async def close(self) -> None: ...
