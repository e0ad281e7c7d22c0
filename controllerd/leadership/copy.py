"""The port to this controller's own copy of the state while it does not lead: `store.replica.Replica`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from controllerd.leadership.entry import Entry


class Position(Protocol):
    """How far a copy is: the last entry in it, and the cloud it belongs to ("" = it is blank)."""

    @property
    def seq(self) -> int: ...

    @property
    def cluster_id(self) -> str: ...


class Copy(Protocol):
    """Open while its controller follows, closed while it leads: then the database has the file."""

    @property
    def position(self) -> Position:
        """While it is open."""

    @property
    def needed_schema(self) -> int:
        """What the software of every other controller must know before this one may lead, since it then migrates; 0 = nothing
        that it does not know. While it is open."""

    async def open(self) -> None:
        """Errors: ConfigError."""

    async def apply(self, entries: Sequence[Entry]) -> None:
        """In ascending order, the first right behind `position`; one at `position` is compared, not applied.

        Errors: Diverged; ConfigError; Unavailable (what was applied is told by `position`).
        """

    async def install(self, snapshot: Path) -> None:
        """Takes the place of all there was; the file is consumed. Errors: Diverged when it is none of ours; ConfigError."""

    async def close(self) -> None: ...
