"""What the controller asks of this node, and the answers: the Agent of daemonkit.session."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.metadata import version

from daemonkit import desired
from daemonkit.errors import InvalidArgument
from skyrack.v1 import agent_pb2
from storaged import wire
from storaged.drivers.base import VolumeDriver
from storaged.images.store import ImageStore
from storaged.reconcile import Reconciler
from storaged.wire import GIB

log = logging.getLogger(__name__)

VERSION = version("skyrack")
FREE_STEP_BYTES = 64 << 20  # free space is told in steps, or it would be news at every heartbeat


@dataclass(frozen=True)
class Addresses:
    """Where others reach this node: its own gRPC "host:port", and its volumes."""

    grpc: str
    nbd_host: str
    nbd_port: int


class StorageAgent:
    kind = agent_pb2.AGENT_KIND_STORAGED
    version = VERSION

    def __init__(self, addresses: Addresses, driver: VolumeDriver, images: ImageStore, reconciler: Reconciler) -> None:
        self._addresses, self._driver, self._images, self._reconciler = addresses, driver, images, reconciler

    async def inventory(self) -> agent_pb2.Inventory:
        space, free_bytes = self._driver.space(), self._images.free_bytes()
        storage = agent_pb2.StorageInventory(
            volumes_total_gib=space.total_bytes // GIB,
            volumes_free_gib=space.free_bytes // GIB,
            images_free_bytes=free_bytes - free_bytes % FREE_STEP_BYTES,
            nbd_host=self._addresses.nbd_host,
            nbd_port=self._addresses.nbd_port,
        )
        return agent_pb2.Inventory(address=self._addresses.grpc, storage=storage)

    def desired_changed(self, mirror: desired.Mirror, changed: set[str]) -> None:
        ours = {key for key in changed if key.partition("/")[0] in wire.KINDS}
        wanted = self._reconciler.desired
        former = {i: wanted.exports[i] for i in (key.partition("/")[2] for key in ours) if i in wanted.exports}
        wire.take(wanted, ours, mirror.objects)
        for key in ours & wanted.refused.keys():
            log.error("desired state that can't be", extra={"key": key[:100], "why": wanted.refused[key]})
        self._reconciler.desire(ours, former)

    def observe(self) -> list[agent_pb2.ObservedObject]:
        return [wire.observed(key, told) for key, told in self._reconciler.observe().items()]

    async def run_task(self, task: agent_pb2.Task) -> agent_pb2.TaskResult:
        raise InvalidArgument("action", "is not known to this agent")

    async def answer(self, query: agent_pb2.Query) -> bytes:
        raise InvalidArgument("question", "is not known to this agent")
