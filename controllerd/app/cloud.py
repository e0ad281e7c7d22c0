"""What every verb needs: the store, the runtime, and once-only creation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from controllerd.domain import check
from controllerd.domain.policy import Caller
from controllerd.store import idempotency
from controllerd.store.database import Database, Tx
from daemonkit.errors import InvalidArgument, NotFound
from daemonkit.runtime import Runtime

T = TypeVar("T")

KEY_LENGTH_MAX = 128


@dataclass(frozen=True)
class Cloud:
    database: Database
    runtime: Runtime


@dataclass(frozen=True)
class Once:
    """A create's idempotency key, the method it was given to, and the fingerprint of the request without the key."""

    key: str
    method: str
    fingerprint: str

    def __post_init__(self) -> None:
        check.text("idempotency_key", self.key, length_max=KEY_LENGTH_MAX)

    def run(self, tx: Tx, caller: Caller, make: Callable[[], T], again: Callable[[str], T], id_of: Callable[[T], str]) -> T:
        """`make()` the first time, `again(id)` for a retry. Errors: InvalidArgument for the same key on another request."""
        if not self.key:
            return make()
        known = idempotency.find(tx, caller.project_id, caller.user_id, self.key)
        if known is None:
            made = make()
            idempotency.remember(tx, caller.project_id, caller.user_id, self.key, self.method, self.fingerprint, id_of(made))
            return made
        method, fingerprint, resource_id = known
        if (method, fingerprint) != (self.method, self.fingerprint):
            raise InvalidArgument("idempotency_key", "was used with another request")
        return again(resource_id)


def owned(caller: Caller, kind: str, resource_id: str, project_id: str) -> None:
    """Errors: NotFound when the resource is another project's."""
    if not caller.owns(project_id):
        raise NotFound(kind, resource_id)
