"""What compute nodes report of servers, and what follows where no task is at work.

A guest that ended by itself is STOPPED from then on, one that somebody started at the node is ACTIVE; what the node is told
follows, so that it does not undo what happened. Silence says nothing: an agent that has just started has yet to look, so
only an explicit GONE counts as gone.
"""

from __future__ import annotations

from controllerd.agents.intake import FAULT_LENGTH_MAX, Taker
from controllerd.agents.observed.storage import state_name
from controllerd.domain.node import Node
from controllerd.domain.server import (
    ACTIVE,
    NODE_MILESTONES,
    POWER_RUNNING,
    POWER_STOPPED,
    STOPPED,
    VOLUMES_MAX,
    Server,
    settled,
)
from controllerd.store import attachment, event, foreign, task, tombstone
from controllerd.store import server as server_store
from controllerd.store.database import Tx
from controllerd.store.server import SERVERS
from skyrack.v1 import agent_pb2

ATTACHED_MAX = 2 * VOLUMES_MAX  # one may be going while another comes


def take_server(tx: Tx, node: Node, server_id: str, observed: agent_pb2.ObservedServer) -> None:
    state = state_name(observed.state)
    if state == "GONE":
        tombstone.lift(tx, node.id, "server", server_id)
    before = SERVERS.find(tx, server_id)
    if before is None or before.node_id != node.id or not before.power:
        _note_stranger(tx, node, server_id, state)
        return
    foreign.forget(tx, node.id, "server", server_id)
    milestones = {m.name: m.time.ToMicroseconds() / 1e6 for m in observed.milestones if m.name in NODE_MILESTONES}
    fault, attached = observed.fault[:FAULT_LENGTH_MAX], tuple(observed.attached[:ATTACHED_MAX])
    if observed.foreign:  # the node forgot what it was told, and with it the names of the attachments
        attached = before.observed_attached
    server = server_store.observe(tx, before, state=state, fault=fault, attached=attached, milestones=milestones)
    if server.observed_attached != before.observed_attached:
        tx.touch(*(a.volume_id for a in attachment.of_server(tx, server_id)))
    if server.observed_state != before.observed_state and task.of_resource(tx, server_id) is None:
        _follow(tx, before, server)


def _note_stranger(tx: Tx, node: Node, server_id: str, state: str) -> None:
    if state == "GONE":
        foreign.forget(tx, node.id, "server", server_id)
    else:
        foreign.report(tx, node.id, "server", server_id, state)


def _follow(tx: Tx, before: Server, server: Server) -> None:
    """A change that no task brought about."""
    if server.observed_state == "PAUSED":
        event.record(tx, "server.paused", server.project_id, server.id, server.observed_fault)
    elif before.observed_state == "PAUSED" and server.observed_state == "RUNNING":
        event.record(tx, "server.resumed", server.project_id, server.id)
    elif server.observed_state == "FAILED":
        event.record(tx, "server.fault", server.project_id, server.id, server.observed_fault)
    settle(tx, server)


def settle(tx: Tx, server: Server) -> None:
    """Where a server rests in one state and its node reports the other, the node is right."""
    state = settled(server)
    if state == server.state or server.state not in (ACTIVE, STOPPED):
        return
    power = POWER_RUNNING if state == ACTIVE else POWER_STOPPED
    server_store.change(tx, server, state=state, power=power)
    message = "started at its node" if state == ACTIVE else "the guest ended by itself"
    event.record(tx, f"server.{'started' if state == ACTIVE else 'stopped'}", server.project_id, server.id, message)


def missing_servers(tx: Tx, node: Node, present: set[str]) -> None:
    """Of servers that it shall have, nothing: see above. What nobody owns was there only while it is told."""
    foreign.forget_missing(tx, node.id, "server", present)


TAKERS = {"server": Taker("computed", take_server, missing_servers)}
