"""What the controller is told: the state of each port and router, and only what changed. Metrics of the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import Gauge

from daemonkit.metrics import REGISTRY
from networkd.spec.desired import Desired
from skyrack.v1 import agent_pb2

PORTS = Gauge("skyrack_networkd_ports", "ports on this node", ["state"], registry=REGISTRY)
SEGMENTS = Gauge("skyrack_networkd_segments", "networks on this node", registry=REGISTRY)
ROUTERS = Gauge("skyrack_networkd_routers", "routers on this node", ["state"], registry=REGISTRY)

PENDING, READY = agent_pb2.OBSERVED_STATE_PENDING, agent_pb2.OBSERVED_STATE_READY
FAILED, GONE = agent_pb2.OBSERVED_STATE_FAILED, agent_pb2.OBSERVED_STATE_GONE


Send = Callable[[Sequence[agent_pb2.ObservedObject]], None]


class Reporter:
    """What the reconciler tells, kept and sent on. Pure memory: after a restart everything is PENDING until looked at."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._objects: dict[str, agent_pb2.ObservedObject] = {}  # "port/<id>" or "router/<id>"

    def all(self) -> list[agent_pb2.ObservedObject]:
        return list(self._objects.values())

    def expect(self, changed: set[str], desired: Desired) -> None:
        """Changed objects are PENDING until the next pass has seen them."""
        for key in sorted(changed):
            kind, _, identity = key.partition("/")
            if kind in ("port", "router") and (identity in desired.ports or identity in desired.routers):
                self._objects[key] = _object(key, PENDING, "", ())

    def settle(self, kind: str, desired: Desired, faults: Mapping[str, str]) -> None:
        """After a pass over all of `kind`; sends what changed. `faults`: owner -> why."""
        fresh = _fresh(kind, desired, faults)
        changed = [o for key, o in fresh.items() if self._objects.get(key) != o]
        for key in [k for k in self._objects if k.startswith(kind + "/") and k not in fresh]:
            del self._objects[key]
            changed.append(_object(key, GONE, "", ()))
        self._objects |= fresh
        self._count(kind)
        SEGMENTS.set(len(desired.segments))
        if changed:
            self._send(changed)

    def _count(self, kind: str) -> None:
        gauge = PORTS if kind == "port" else ROUTERS
        states = [(o.port if kind == "port" else o.router).state for k, o in self._objects.items() if k.startswith(kind + "/")]
        for label, state in (("ready", READY), ("pending", PENDING), ("failed", FAILED)):
            gauge.labels(label).set(states.count(state))


def _fresh(kind: str, desired: Desired, faults: Mapping[str, str]) -> dict[str, agent_pb2.ObservedObject]:
    refused = {k: why for k, why in desired.faults.items() if k.startswith(kind + "/")}
    fresh = {key: _object(key, FAILED, why, ()) for key, why in refused.items()}
    for identity in desired.ports if kind == "port" else desired.routers:
        key = f"{kind}/{identity}"
        why = _fault(key, desired, faults)
        ips: list[str] = []
        if kind == "router" and not why and desired.routers[identity].admin_up:
            ips = [f.ip for f in desired.routers[identity].floating_ips]
        fresh[key] = _object(key, FAILED if why else READY, why, ips)
    return fresh


def _fault(key: str, desired: Desired, faults: Mapping[str, str]) -> str:
    """Its own fault, or one of what it stands on."""
    kind, _, identity = key.partition("/")
    under = ["rules/"]
    if kind == "port":
        under.append(f"segment/{desired.ports[identity].network_id}")
    return next((faults[k] for k in (key, *under) if k in faults), "")


def _object(key: str, state: agent_pb2.ObservedState.ValueType, fault: str, ips: Iterable[str]) -> agent_pb2.ObservedObject:
    kind, _, identity = key.partition("/")
    if kind == "port":
        return agent_pb2.ObservedObject(id=identity, port=agent_pb2.ObservedPort(state=state, fault=fault))
    router = agent_pb2.ObservedRouter(state=state, fault=fault, floating_ips=ips)
    return agent_pb2.ObservedObject(id=identity, router=router)
