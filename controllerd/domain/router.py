"""Router: joins subnets, and leads out by a gateway on an external network. Where it runs is decided here, purely."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controllerd.domain import check
from controllerd.domain.address import HostRoute
from controllerd.domain.port import state_of

ROUTES_MAX = 30


@dataclass(frozen=True)
class Router:
    id: str
    name: str
    project_id: str
    external_network_id: str  # "" = no gateway
    snat: bool
    routes: tuple[HostRoute, ...]
    node_id: str  # "" = no gateway node was there to take it
    created_at: float
    observed_state: str
    observed_fault: str
    observed_floating_ips: tuple[str, ...]  # addresses that the node has in force

    def __post_init__(self) -> None:
        """Errors: InvalidArgument."""
        check.name("name", self.name)

    @property
    def state(self) -> str:
        return state_of(self.node_id, self.observed_state)


@dataclass(frozen=True)
class GatewayNode:
    """A node that may take routers. `fit`: it says that it has an external device."""

    id: str
    name: str
    fit: bool
    routers: int


def plan_placement(router_ids: Iterable[str], nodes: Iterable[GatewayNode]) -> Mapping[str, str]:
    """Router -> node: each to the fit node that has the fewest. Empty without nodes."""
    load = {node.id: (not node.fit, node.routers, node.name) for node in nodes}
    placed: dict[str, str] = {}
    for router_id in router_ids:
        if not load:
            break
        node_id = min(load, key=lambda n: load[n])
        unfit, routers, name = load[node_id]
        load[node_id] = (unfit, routers + 1, name)
        placed[router_id] = node_id
    return placed
