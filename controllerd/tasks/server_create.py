"""Creating a server: placed, wired, prepared, started.

The first transaction goes as far as telling the nodes: the server's node fetches the image and makes the disk while its
network is put in place and its volumes are exported. A guest must not run before its ports' filters are there, so the node
is told to start as soon as ports and exports are ready, without waiting for its word that the disk is made: it prepares
and starts in one go. Whatever fails, the node is told to remove all of it, and the row stays with the fault.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

from controllerd.domain.placement import Candidate, Ratios, Request
from controllerd.domain.server import ACTIVE, BUILD, ERROR, POWER_PREPARED, POWER_RUNNING, Server, launch_times
from controllerd.domain.task import Task
from controllerd.scheduler.placement import place, refusals
from controllerd.scheduler.stock import Stock
from controllerd.store import attachment, claim, event, node, port, usage
from controllerd.store import server as server_store
from controllerd.store.database import Tx
from controllerd.store.server import SERVERS
from controllerd.tasks.operation import Operation, Step
from controllerd.tasks.server_delete import TakeBack, is_gone, tell_absent
from daemonkit.errors import NodeFailed, NodeLost, NoValidHost, Unavailable

log = logging.getLogger(__name__)

KIND = "server_create"
DEADLINE_S = 300.0
FAILED_FINAL_S = 5.0  # a node goes on trying what failed; after so long its word is taken as final
POLL_S = 2.0


class Place(Step):
    name = "place"

    def __init__(self, ratios: Ratios) -> None:
        self._ratios = ratios

    def do(self, tx: Tx, task: Task) -> None:
        """Errors: NoValidHost; Unavailable while a node that would do is away for a moment."""
        server = SERVERS.get(tx, task.resource_id)
        stock, request = claim.board(tx, lambda: Stock(self._ratios)), request_of(tx, server)
        try:
            chosen = stock.find(request)
        except NoValidHost:
            self._wait_for_absent(stock, request)
            raise
        if not claim.hold(tx, server, chosen.node_id, self._ratios):
            log.error("a node has less left than the scheduler thought", extra={"node": chosen.name, "server": server.id})
            raise Unavailable("the node that was chosen is full")
        server_store.change(tx, server, node_id=chosen.node_id)
        event.record(tx, "server.scheduled", task.project_id, server.id)

    def _wait_for_absent(self, candidates: Iterable[Candidate], request: Request) -> None:
        away = [replace(c, in_session=True) for c in candidates if not c.in_session and not c.lost]
        try:
            place(away, request, self._ratios)
        except NoValidHost:
            return
        raise Unavailable("the nodes that have room are not in session now")

    def undo(self, tx: Tx, task: Task) -> None:
        server = SERVERS.get(tx, task.resource_id)
        claim.release(tx, server.id)
        server_store.command(tx, server, "", node_id="")


def request_of(tx: Tx, server: Server) -> Request:
    """Errors: Unavailable while the server it shall be apart from is not placed yet."""
    apart_from = SERVERS.find(tx, server.placement.get("different_node_than", ""))
    if apart_from is not None and not apart_from.node_id and apart_from.state == BUILD:
        raise Unavailable(f"server {apart_from.id}, which it shall be apart from, is not placed yet")
    return Request(
        vcpus=server.vcpus, memory_mib=server.memory_mib, disk_gib=server.disk_gib, image_sha256=server.image_sha256,
        node_id=server.placement.get("node", ""), not_node_id=apart_from.node_id if apart_from else "",
    )  # fmt: skip


class Connect(Step):
    """Ports to the node, exports for the node. Nothing is waited for here: the node can prepare meanwhile."""

    name = "connect"

    def do(self, tx: Tx, task: Task) -> None:
        server = SERVERS.get(tx, task.resource_id)
        port.bind(tx, server.id, server.node_id)
        attachment.touch_ends_of_server(tx, server.id)

    def undo(self, tx: Tx, task: Task) -> None:
        """The ports keep their addresses until the server is deleted."""
        port.unbind(tx, task.resource_id)


class Prepare(Step):
    name = "prepare"
    poll_s = POLL_S

    def do(self, tx: Tx, task: Task) -> None:
        server_store.command(tx, SERVERS.get(tx, task.resource_id), POWER_PREPARED)

    def done(self, tx: Tx, task: Task) -> bool:
        """Errors: NodeLost, NodeFailed, NetworkFailed, StorageFailed."""
        refuse_failure(tx, SERVERS.get(tx, task.resource_id))
        return port.ready(tx, task.resource_id) and attachment.exports_ready(tx, task.resource_id)

    def undo(self, tx: Tx, task: Task) -> None:
        tell_absent(tx, SERVERS.get(tx, task.resource_id))

    def undone(self, tx: Tx, task: Task) -> bool:
        return is_gone(tx, SERVERS.get(tx, task.resource_id))


class Start(Step):
    name = "start"
    poll_s = POLL_S

    def do(self, tx: Tx, task: Task) -> None:
        event.record(tx, "server.network", task.project_id, task.resource_id)
        server_store.command(tx, SERVERS.get(tx, task.resource_id), POWER_RUNNING)

    def done(self, tx: Tx, task: Task) -> bool:
        """Errors: NodeLost, NodeFailed."""
        server = SERVERS.get(tx, task.resource_id)
        refuse_failure(tx, server)
        return server.observed_state in ("RUNNING", "PAUSED")

    # Nothing to undo: the undo of `prepare` removes a running guest too.


def refuse_failure(tx: Tx, server: Server) -> None:
    """Errors: NodeLost; NodeFailed when what the server was last told has kept failing."""
    if node.is_lost(tx, server.node_id, "computed"):
        raise NodeLost("the node of the server was lost")
    if server.observed_state == "FAILED" and tx.now - server.observed_at >= FAILED_FINAL_S:
        raise NodeFailed(server.observed_fault or "the node gives no reason")


@dataclass(frozen=True)
class ServerCreate(Operation):
    ratios: Ratios
    take_back: TakeBack

    def finish(self, tx: Tx, task: Task) -> None:
        server = server_store.change(tx, SERVERS.get(tx, task.resource_id), state=ACTIVE, launched_at=tx.now)
        usage.open_interval(tx, server)
        attachment.mark_attached(tx, server.id)
        times = launch_times(server.observed_milestones, task.step_times.get("place", server.created_at), server.observed_at)
        for name, time in sorted({"running": server.observed_at, **times}.items(), key=lambda step: step[1]):
            event.record_at(tx, time, f"server.{name}", task.project_id, server.id)

    def fail(self, tx: Tx, task: Task) -> None:
        """The row stays with its fault and its ports; its volumes are free for others."""
        self.take_back.volumes(tx, task.resource_id)
        server = SERVERS.get(tx, task.resource_id)
        server_store.change(
            tx, server, state=ERROR, fault_reason=task.fault_reason, fault_message=task.fault_message,
            fault_details=task.fault_details,
        )  # fmt: skip
        if task.fault_reason == NoValidHost.reason:
            self._tell_admins(tx, server)

    def _tell_admins(self, tx: Tx, server: Server) -> None:
        """Names of nodes are not for tenants: the full refusal is an event of the cloud, not of the project."""
        found = refusals(claim.candidates(tx), request_of(tx, server), self.ratios)
        event.record(tx, "server.no_valid_host", "", server.id, "\n".join(r.told(with_names=True) for r in found))


def server_create(ratios: Ratios, take_back: TakeBack) -> Operation:
    return ServerCreate(KIND, DEADLINE_S, (Place(ratios), Connect(), Prepare(), Start()), ratios, take_back)
