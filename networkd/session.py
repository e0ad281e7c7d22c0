"""networkd as an agent: hands desired state to the reconciler and its observations to the controller."""

from __future__ import annotations

from importlib.metadata import version
from typing import NoReturn

from daemonkit import desired
from daemonkit.errors import InvalidArgument
from networkd import wire
from networkd.reconcile import Reconciler
from networkd.report import Reporter
from networkd.spec.desired import Node
from skyrack.v1 import agent_pb2

VERSION = version("skyrack")


class NetworkAgent:
    kind = agent_pb2.AGENT_KIND_NETWORKD
    version = VERSION

    def __init__(self, reconciler: Reconciler, reporter: Reporter, node: Node, listen: str, *, gateway: bool) -> None:
        self._reconciler, self._reporter = reconciler, reporter
        network = agent_pb2.NetworkInventory(vtep=node.vtep, gateway=gateway, underlay_mtu=node.underlay_mtu)
        self._inventory = agent_pb2.Inventory(address=listen, network=network)

    async def inventory(self) -> agent_pb2.Inventory:
        return self._inventory

    def desired_changed(self, mirror: desired.Mirror, changed: set[str]) -> None:
        self._reconciler.want(wire.update(self._reconciler.desired, mirror.objects, changed), changed)

    def observe(self) -> list[agent_pb2.ObservedObject]:
        return self._reporter.all()

    async def run_task(self, task: agent_pb2.Task) -> agent_pb2.TaskResult:
        _unknown("task.action")

    async def answer(self, query: agent_pb2.Query) -> bytes:
        _unknown("query.question")


def _unknown(field: str) -> NoReturn:
    raise InvalidArgument(field, "networkd knows none of these")
