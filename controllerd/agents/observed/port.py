"""What networkd reports of servers' ports."""

from __future__ import annotations

from controllerd.agents.intake import FAULT_LENGTH_MAX, Taker
from controllerd.agents.observed.storage import state_name
from controllerd.domain.node import Node
from controllerd.domain.port import SERVER
from controllerd.store import port
from controllerd.store.database import Tx
from skyrack.v1 import agent_pb2 as pb


def take(tx: Tx, node: Node, port_id: str, observed: pb.ObservedPort) -> None:
    port.observe(tx, node.id, port_id, state_name(observed.state), observed.fault[:FAULT_LENGTH_MAX])


def missing(tx: Tx, node: Node, present: set[str]) -> None:
    """A port that the node does not name has yet to be put in place there."""
    for port_id in port.observed_on(tx, node.id, SERVER):
        if port_id not in present:
            port.observe(tx, node.id, port_id, "", "")


TAKERS = {"port": Taker("networkd", take, missing)}
