"""The commit log: what makes a group of transactions durable and fenced.

`LocalLog` is the embedded default: the SQLite file itself (synchronous=FULL) is the log, an flock on the data directory keeps
others out, and the epoch is raised once at each start. A replicated log fits behind the same port: its `append` returns
when a quorum holds the changeset, or raises Fenced when it certainly never will.
"""

from __future__ import annotations

from typing import Protocol


class CommitLog(Protocol):
    """Called from the store's writer thread, once a commit group, before the local COMMIT."""

    wants_changesets: bool  # False: `entry` is b"" and need not be computed

    def next_epoch(self, last: int) -> int:
        """The epoch to write under, higher than `last`: called once, before the first write. Errors: Fenced, Unavailable."""

    def append(self, seq: int, epoch: int, entry: bytes) -> None:
        """Returns when entry `seq` is durable. Errors: Fenced (never will be: step down), Unavailable (unknown: step down)."""


class LocalLog:
    wants_changesets = False

    def next_epoch(self, last: int) -> int:
        return last + 1

    def append(self, seq: int, epoch: int, entry: bytes) -> None:
        """Nothing to do: the COMMIT that follows is the durable act."""
