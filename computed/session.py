"""What the controller asks of this node, and the answers: the Agent of daemonkit.session."""

from __future__ import annotations

import logging
from importlib.metadata import version

from computed import wire
from computed.drivers.base import Hypervisor, Store
from computed.reconcile import Reconciler
from computed.spec import GIB, Observed, ObservedState, Server
from daemonkit import desired
from daemonkit.errors import InvalidArgument, NotFound
from skyrack.v1 import agent_pb2

log = logging.getLogger(__name__)

VERSION = version("skyrack")
CONSOLE_BYTES_MAX = 1 << 20
KIND = "server"


class ComputeAgent:
    kind = agent_pb2.AGENT_KIND_COMPUTED
    version = VERSION

    def __init__(
        self,
        address: str,
        hypervisor: Hypervisor,
        store: Store,
        reconciler: Reconciler,
        *,
        stop_grace_s: float,
    ) -> None:
        """`address`: "host:port" of this daemon's own gRPC."""
        self._address, self._hypervisor, self._store = address, hypervisor, store
        self._reconciler, self._stop_grace_s = reconciler, stop_grace_s

    async def inventory(self) -> agent_pb2.Inventory:
        """Without capacity until libvirtd was reached once: nothing is placed here before."""
        message = agent_pb2.Inventory(address=self._address)
        if capacity := self._hypervisor.capacity():
            message.compute.vcpus = capacity.vcpus
            message.compute.memory_mib = capacity.memory_mib
            message.compute.disk_gib = self._store.disk_bytes() // GIB
            message.compute.virt_type = capacity.virt_type
            message.compute.hypervisor = capacity.hypervisor
        message.compute.images_cached.extend(self._store.images())
        return message

    def desired_changed(self, mirror: desired.Mirror, changed: set[str]) -> None:
        orders: dict[str, Server | InvalidArgument | None] = {}
        for key in sorted(changed):
            kind, _, server_id = key.partition("/")
            if kind != KIND:
                continue
            try:
                held = mirror.objects.get(key)
                orders[server_id] = wire.server(server_id, held.server) if held is not None else None
            except InvalidArgument as error:
                log.error("desired state that can't be", extra={"server": server_id, "why": error.message})
                orders[server_id] = error
        self._reconciler.desire(orders)

    def observe(self) -> list[agent_pb2.ObservedObject]:
        """Servers that nobody could look at yet are pending: left out, they would be taken for gone."""
        unseen = Observed(ObservedState.PENDING, fault="the hypervisor was not reached yet")
        seen = dict.fromkeys(self._reconciler.wanted(), unseen) | self._reconciler.observed
        return [wire.observed(server_id, observed) for server_id, observed in seen.items()]

    async def run_task(self, task: agent_pb2.Task) -> agent_pb2.TaskResult:
        if task.WhichOneof("action") != "reboot_server":
            raise InvalidArgument("action", "is not known to this agent")
        order = task.reboot_server
        if self._reconciler.server(order.server_id) is None:
            raise NotFound("server", order.server_id)
        await self._hypervisor.reboot(order.server_id, hard=order.hard, grace_s=self._stop_grace_s)
        return agent_pb2.TaskResult(ok=True)

    async def answer(self, query: agent_pb2.Query) -> bytes:
        if query.WhichOneof("question") != "read_console_log":
            raise InvalidArgument("question", "is not known to this agent")
        question = query.read_console_log
        if self._reconciler.server(question.server_id) is None:
            raise NotFound("server", question.server_id)
        bytes_max = min(question.bytes_max or CONSOLE_BYTES_MAX, CONSOLE_BYTES_MAX)
        return await self._store.console_log(question.server_id, bytes_max)
