"""The commit log: what makes a group of transactions durable and fenced.

`LocalLog` is the embedded default: the SQLite file itself (synchronous=FULL) is the log, an flock on the data directory keeps
others out, and the epoch is raised once at each start. `ReplicatedLog` is the one of several controllers: a quorum
holds the entry when `append` returns, or Fenced tells that it certainly never will.
"""

from __future__ import annotations

from typing import Protocol

from controllerd.leadership.entry import Entry


class CommitLog(Protocol):
    """Used by the store on the event loop: one `append` at a time, before the local COMMIT."""

    replicated: bool  # False: the local COMMIT is the durable act, nothing is appended, no changeset is recorded

    @property
    def ahead_s(self) -> float | None:
        """How far the time that earlier terms went by is ahead of this machine's boot-time clock; None: not known."""

    def next_epoch(self, last: int) -> int:
        """The epoch to write under, higher than `last`: asked once, before the first write."""

    async def append(self, entry: Entry) -> None:
        """Returns when the entry is durable.

        Errors: Fenced (it never will be: step down), Unavailable (unknown: step down), TooLarge (it is not: go on without it).
        """

    def assert_leading(self) -> None:
        """Asked after a read, before its answer is used: what was read was then the newest there is.

        Errors: Unavailable when this controller cannot prove that it still leads.
        """


class LocalLog:
    replicated = False
    ahead_s: float | None = None

    def next_epoch(self, last: int) -> int:
        return last + 1

    async def append(self, entry: Entry) -> None:
        raise AssertionError("a local log is not appended to")

    def assert_leading(self) -> None:
        """Always: the lock on the data directory ends with the process."""
