"""Deleting a server, in whatever state it and its node are.

It takes over a task that is under way (see `controllerd.tasks.operation.overtake`) and cleans up all that one may have
begun. A node that is lost is not waited for: a tombstone goes on telling it, and holds the claim until it answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from controllerd.domain.server import DELETING, ERROR, POWER_ABSENT, Server
from controllerd.domain.task import Task
from controllerd.store import claim, event, node, tombstone, usage
from controllerd.store import server as server_store
from controllerd.store.database import Tx
from controllerd.store.server import SERVERS
from controllerd.tasks.operation import Operation, Step

KIND = "server_delete"
DEADLINE_S = 600.0


@dataclass(frozen=True)
class TakeBack:
    """How the nouns that own them take back what a server has: (tx, server id). Twice is once."""

    ports: Callable[[Tx, str], None]  # those made for the server go, others become free
    volumes: Callable[[Tx, str], None]  # detached and kept


def tell_absent(tx: Tx, server: Server) -> None:
    """Nothing of the server shall be on its node. Twice is once."""
    if server.node_id and server.power not in ("", POWER_ABSENT):
        server_store.command(tx, server, POWER_ABSENT)


def is_gone(tx: Tx, server: Server) -> bool:
    """Whether nothing of it is on its node, as far as anybody can wait for that."""
    if not server.node_id or not server.power or server.observed_state == "GONE":
        return True
    if not node.is_lost(tx, server.node_id, "computed"):
        return False
    tombstone.bury_server(tx, server.node_id, server.id)
    return True


class Remove(Step):
    name = "remove"

    def do(self, tx: Tx, task: Task) -> None:
        server = SERVERS.get(tx, task.resource_id)
        usage.close_interval(tx, server.id)
        tell_absent(tx, server_store.change(tx, server, state=DELETING))

    def done(self, tx: Tx, task: Task) -> bool:
        return is_gone(tx, SERVERS.get(tx, task.resource_id))

    # Nothing to undo: a deletion is not taken back.


class Release(Step):
    """Everything the server held, and its row, at once."""

    name = "release"

    def __init__(self, take_back: TakeBack) -> None:
        self._take_back = take_back

    def do(self, tx: Tx, task: Task) -> None:
        server = SERVERS.get(tx, task.resource_id)
        self._take_back.volumes(tx, server.id)
        self._take_back.ports(tx, server.id)
        claim.release(tx, server.id)
        server_store.delete(tx, server)

    # Nothing to undo: as above.


@dataclass(frozen=True)
class ServerDelete(Operation):
    def finish(self, tx: Tx, task: Task) -> None:
        event.record(tx, "server.deleted", task.project_id, task.resource_id)

    def fail(self, tx: Tx, task: Task) -> None:
        """Its node is there but can't remove it. It may be deleted again."""
        if server := SERVERS.find(tx, task.resource_id):
            server_store.change(
                tx, server, state=ERROR, fault_reason=task.fault_reason, fault_message=task.fault_message,
                fault_details=(server.observed_fault,) if server.observed_fault else (),
            )  # fmt: skip


def server_delete(take_back: TakeBack) -> Operation:
    return ServerDelete(KIND, DEADLINE_S, (Remove(), Release(take_back)))
