"""What networkd reports of routers on gateway nodes, and which floating IPs they have in force."""

from __future__ import annotations

from controllerd.agents.intake import FAULT_LENGTH_MAX, Taker
from controllerd.agents.observed.storage import state_name
from controllerd.domain.node import Node
from controllerd.store import foreign, router
from controllerd.store.database import Tx
from skyrack.v1 import agent_pb2 as pb

FLOATING_IPS_MAX = 4096  # that one router is believed to have in force


def take(tx: Tx, node: Node, router_id: str, observed: pb.ObservedRouter) -> None:
    state, floating_ips = state_name(observed.state), tuple(sorted(observed.floating_ips[:FLOATING_IPS_MAX]))
    ours = router.observe(tx, node.id, router_id, state, observed.fault[:FAULT_LENGTH_MAX], floating_ips)
    if ours or state == "GONE":
        foreign.forget(tx, node.id, "router", router_id)
    else:
        foreign.report(tx, node.id, "router", router_id, state)


def missing(tx: Tx, node: Node, present: set[str]) -> None:
    """A router that the node does not name has yet to be set up there."""
    foreign.forget_missing(tx, node.id, "router", present)
    for held in router.on_node(tx, node.id):
        if held.id not in present:
            router.observe(tx, node.id, held.id, "", "", ())


TAKERS = {"router": Taker("networkd", take, missing)}
