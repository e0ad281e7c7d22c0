"""What leadership needs of a consensus store, as a port: etcd in production, memory in a simulation.

Keys are text. Revisions count up by one with each change of the whole store, so a key's create revision tells one holder of
a key from the next. Every call may raise Unavailable: nothing is known then, the change may have been made or may still be.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from daemonkit.errors import SkyrackError, Unavailable


class Compacted(SkyrackError):
    """What a watch asked for is no longer kept: read the present state and watch from there."""

    reason = "COMPACTED"


class Impossible(Unavailable):
    """The store does not take such a request at all, most likely since it is too large. Nothing was done, this time."""

    reason = "IMPOSSIBLE"


@dataclass(frozen=True)
class KeyValue:
    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int = 0


@dataclass(frozen=True)
class Created:
    """Condition: the key's create revision is `revision`; 0 = there is no such key."""

    key: str
    revision: int


@dataclass(frozen=True)
class Put:
    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True)
class Delete:
    """The key, or every key from it up to but not including `end`."""

    key: str
    end: str = ""


@dataclass(frozen=True)
class TxnResult:
    """`found`: what there is under each looked-up key, only when it did not succeed. `revision`: of the store, after it."""

    succeeded: bool
    revision: int
    found: tuple[KeyValue | None, ...] = ()


@dataclass(frozen=True)
class Page:
    """`items` in ascending order of keys; `more`: the limit cut it short. `revision`: of the store when it was read."""

    items: tuple[KeyValue, ...]
    revision: int
    more: bool


@dataclass(frozen=True)
class Change:
    """`value` is None for a key that was deleted (also by the end of its lease)."""

    key: str
    value: bytes | None
    revision: int


@dataclass(frozen=True)
class Health:
    """Of the member that answered. `full`: the store is over its quota and takes nothing (alarm NOSPACE)."""

    bytes_used: int
    bytes_max: int
    full: bool
    members: int
    members_answering: int


class Kv(Protocol):
    async def txn(self, conditions: Sequence[Created], changes: Sequence[Put | Delete], look: Sequence[str] = ()) -> TxnResult:
        """All `changes` if all `conditions` hold, else a look at the keys `look`; atomic. Errors: Unavailable, Impossible."""

    async def range(self, first: str, end: str = "", limit: int = 0) -> Page:
        """Linearizable. One key, or all from `first` up to but not including `end`. Errors: Unavailable."""

    async def grant(self, ttl_s: int) -> int:
        """A new lease's id. Errors: Unavailable."""

    async def keep_alive(self, lease: int) -> float:
        """Seconds that the lease has from the moment the request was sent, at least; 0 = it is gone. Errors: Unavailable."""

    async def revoke(self, lease: int) -> None:
        """Its keys go with it. Errors: Unavailable."""

    def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[list[Change], None]:
        """Changes of keys that begin with `prefix`, in order, without gaps. Errors: Compacted, Unavailable (it broke)."""

    async def compact(self, revision: int) -> None:
        """Forget what was before. Errors: Unavailable."""

    async def health(self) -> Health:
        """Errors: Unavailable."""

    async def close(self) -> None: ...
