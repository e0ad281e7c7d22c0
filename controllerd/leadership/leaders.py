"""Who leads, as those see it who do not: the port between the elector and the front."""

from __future__ import annotations

from typing import Protocol

from controllerd.leadership.member import Member


class Leaders(Protocol):
    @property
    def leader(self) -> Member | None:
        """Whoever holds the leader key, this controller itself included; None = nobody, or nobody knows."""

    async def changed(self) -> None:
        """Returns when `leader` is another one, or none, than at the call."""
