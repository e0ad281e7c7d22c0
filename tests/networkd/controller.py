"""A controller for tests: holds desired state per node, sends deltas, collects reports. Speaks the real protocol over mTLS."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from daemonkit import desired, tls
from daemonkit.errors import Unavailable
from daemonkit.rpc import Server
from daemonkit.transport import GrpcControllerStream
from skyrack.v1 import agent_pb2, agent_pb2_grpc
from tests.pki import Pki

READY, FAILED, GONE = agent_pb2.OBSERVED_STATE_READY, agent_pb2.OBSERVED_STATE_FAILED, agent_pb2.OBSERVED_STATE_GONE


class Node:
    def __init__(self) -> None:
        self.mirror = desired.Mirror()
        self.stream: GrpcControllerStream | None = None
        self.observed: dict[str, agent_pb2.ObservedObject] = {}
        self.reported_s: dict[str, float] = {}
        self.changed = asyncio.Event()


class Controller(agent_pb2_grpc.AgentServiceServicer):
    def __init__(self, sock: Path, pki: Pki) -> None:
        self._sock, self._pki = sock, pki
        self._nodes: dict[str, Node] = defaultdict(Node)
        self._server: Server | None = None
        self._epoch = 0
        self._ids = iter(range(1 << 30))

    @property
    def running(self) -> bool:
        return self._server is not None

    async def start(self) -> None:
        """Each start is a new epoch."""
        self._epoch += 1
        self._sock.unlink(missing_ok=True)
        self._server = Server(lambda: f"r{next(self._ids)}")
        agent_pb2_grpc.add_AgentServiceServicer_to_server(self, self._server.grpc)
        files = tls.TlsFiles(self._pki.node(self._sock.name, "controller"))
        self._server.bind(f"unix:{self._sock}", files.server(clients_must_show_certificate=True))
        await self._server.start([])

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0.1)
            self._server = None
            for node in self._nodes.values():
                node.stream = None

    async def Session(self, request_iterator: object, context: object) -> None:
        with suppress(asyncio.CancelledError, Unavailable):
            await self._converse(GrpcControllerStream(context))  # type: ignore[arg-type]

    async def _converse(self, stream: GrpcControllerStream) -> None:
        hello = (await stream.receive()).hello
        node = self._nodes[hello.node]
        await self._send(stream, welcome=agent_pb2.Welcome(heartbeat_interval_ms=5000))
        await self._send(stream, desired=self._whole(node))
        node.stream = stream
        node.changed.set()
        while True:
            message = await stream.receive()
            if message.HasField("report"):
                self._take(node, message.report)
                await self._send(stream, report_ack=agent_pb2.ReportAck(seq=message.report.seq))

    async def _send(self, stream: GrpcControllerStream, **body: object) -> None:
        await stream.send(agent_pb2.ControllerMessage(epoch=self._epoch, **body))  # type: ignore[arg-type]

    def _whole(self, node: Node) -> agent_pb2.DesiredState:
        node.mirror.epoch = self._epoch
        node.mirror.generation += 1
        return agent_pb2.DesiredState(
            generation=node.mirror.generation, put=node.mirror.objects.values(), hash=node.mirror.hash()
        )

    def _take(self, node: Node, report: agent_pb2.Report) -> None:
        for item in report.objects:
            kind = "port" if item.HasField("port") else "router"
            node.observed[f"{kind}/{item.id}"] = item
            node.reported_s[f"{kind}/{item.id}"] = time.perf_counter()
        node.changed.set()

    async def session(self, name: str, timeout_s: float = 30.0) -> None:
        await self._until(self._nodes[name], lambda node: node.stream is not None, timeout_s, "session")

    async def put(self, name: str, *objects: agent_pb2.DesiredObject, remove: tuple[str, ...] = ()) -> float:
        """Sends a delta; gives the moment before it was sent."""
        node = self._nodes[name]
        after = desired.Mirror(node.mirror.epoch, node.mirror.generation, dict(node.mirror.objects), dict(node.mirror.bodies))
        for key in remove:
            after.objects.pop(key, None)
            after.bodies.pop(key, None)
        for item in objects:
            after.objects[desired.key_of(item)], after.bodies[desired.key_of(item)] = item, desired.encode(item)
        after.generation += 1
        delta = agent_pb2.DesiredState(
            base=node.mirror.generation, generation=after.generation, put=objects, remove=remove, hash=after.hash()
        )
        node.mirror = after
        began_s = time.perf_counter()
        if node.stream is not None:
            await self._send(node.stream, desired=delta)
        return began_s

    async def state(self, name: str, key: str, state: int = READY, timeout_s: float = 20.0) -> agent_pb2.ObservedObject:
        """Waits until `key` was reported as `state`."""
        node = self._nodes[name]
        await self._until(node, lambda n: key in n.observed and _state(n.observed[key]) == state, timeout_s, f"{key} {state}")
        return node.observed[key]

    def forget(self, name: str) -> None:
        self._nodes[name].observed.clear()

    def reported_s(self, name: str, key: str) -> float:
        return self._nodes[name].reported_s[key]

    async def _until(self, node: Node, condition: Callable[[Node], bool], timeout_s: float, what: str) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition(node):
                node.changed.clear()
                try:
                    async with asyncio.timeout(timeout_s - 0.1):
                        await node.changed.wait()
                except TimeoutError:
                    raise AssertionError(f"no {what}; observed: {node.observed}") from None


def _state(item: agent_pb2.ObservedObject) -> int:
    return int(item.port.state if item.HasField("port") else item.router.state)
