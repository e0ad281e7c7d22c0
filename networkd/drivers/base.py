"""What the reconciler needs of a machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from networkd.spec.picture import Picture, Step

NOT_IN_FORCE = "not done: the rules are not in force"
Answer = Callable[[str, str, str], tuple[str, bytes] | None]  # (network id, source IP, path) -> (content type, body)


class Driver(Protocol):
    async def open(self) -> list[str]:
        """Checks that the machine can do it; gives warnings for people. Errors: ConfigError."""

    def watch(self, trouble: Callable[[], None]) -> None:
        """`trouble` is called when something that we made ended by itself (a dnsmasq)."""

    async def observe(self) -> Picture:
        """All that is ours, and devices named like ports. Rules that others touched since we loaded them are left out."""

    async def carry_out(self, steps: Sequence[Step]) -> list[str | None]:
        """In order; for each step None or why it failed. Never retries.

        Goes on after a failure, but not after rules that could not be loaded: nothing may forward without them.
        """

    async def close(self) -> None:
        """Ends what lives in this process; what forwards packets stays."""
