"""A compute node for tests: a host of the sandbox with its own libvirtd, the real daemon in it, and beside the daemon, on the
host's loopback, a small controller and a storage node that the test plays itself.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import json
import os
import signal
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import grpc

from daemonkit import desired
from daemonkit.rpc import Server
from daemonkit.tls import Identity, TlsFiles
from daemonkit.transport import ControllerStream, GrpcControllerStream
from skyrack.sandbox import namespace
from skyrack.sandbox.host import Host
from skyrack.v1 import agent_pb2, agent_pb2_grpc, blob_pb2, blob_pb2_grpc

T = TypeVar("T")

PENDING, READY, RUNNING, STOPPED, PAUSED, FAILED, GONE = (
    agent_pb2.OBSERVED_STATE_PENDING,
    agent_pb2.OBSERVED_STATE_READY,
    agent_pb2.OBSERVED_STATE_RUNNING,
    agent_pb2.OBSERVED_STATE_STOPPED,
    agent_pb2.OBSERVED_STATE_PAUSED,
    agent_pb2.OBSERVED_STATE_FAILED,
    agent_pb2.OBSERVED_STATE_GONE,
)

NODE = "compute-1"
HANG_S = float(os.environ.get("HANG_S", "120"))  # far above what anything takes; a test that waits so long has found a fault
CHUNK_BYTES = 1 << 20
CLONE_NEWNET = 0x40000000


@contextmanager
def inside(namespace_name: str) -> Iterator[None]:
    """Sockets that this thread makes meanwhile belong to that network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(path: str) -> None:
        with open(path) as file:  # noqa: PTH123 - /proc and nsfs
            if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")

    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        enter(str(namespace.DIRECTORY / namespace_name))
        yield
    finally:
        enter(f"/proc/self/fd/{home}")
        os.close(home)


async def until(probe: Callable[[], T], what: str, timeout_s: float = HANG_S) -> T:
    """Waits for a true answer and gives it."""
    try:
        async with asyncio.timeout(timeout_s):
            while not (answer := probe()):  # noqa: ASYNC110 - what is probed has no event
                await asyncio.sleep(0.02)
            return answer
    except TimeoutError:
        raise AssertionError(f"never came: {what}") from None


class Storage(blob_pb2_grpc.BlobServiceServicer):
    """Holds images. `break_after` ends every stream after so many bytes; `served` counts the bytes given."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.break_after: int | None = None
        self.served = 0
        self.requests: list[int] = []  # offsets

    async def Get(self, request: blob_pb2.GetBlobRequest, context: Any) -> AsyncIterator[blob_pb2.BlobChunk]:
        content = self.blobs[request.sha256]
        self.requests.append(request.offset)
        end = len(content) if self.break_after is None else min(len(content), request.offset + self.break_after)
        for start in range(request.offset, end, CHUNK_BYTES):
            chunk = content[start : min(start + CHUNK_BYTES, end)]
            self.served += len(chunk)
            yield blob_pb2.BlobChunk(data=chunk)
        if end < len(content):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "cable pulled")


class Controller(agent_pb2_grpc.AgentServiceServicer):
    """Just enough of a controller: holds desired state, keeps what it is told, acknowledges everything."""

    def __init__(self) -> None:
        self.epoch, self.generation = 1, 0
        self.desired: dict[str, agent_pb2.DesiredObject] = {}
        self.observed: dict[str, agent_pb2.ObservedServer] = {}
        self.history: list[tuple[str, agent_pb2.ObservedServer]] = []
        self.arrived: dict[str, float] = {}  # server id -> when it was first reported running
        self.results: dict[str, agent_pb2.TaskResult] = {}
        self.answers: dict[str, agent_pb2.Answer] = {}
        self.samples: dict[tuple[str, int], agent_pb2.Sample] = {}
        self.hello: agent_pb2.Hello | None = None
        self.acknowledge_telemetry = True
        self._stream: ControllerStream | None = None

    async def Session(self, _requests: Any, context: Any) -> None:
        await self.converse(GrpcControllerStream(context), None)

    async def converse(self, stream: ControllerStream, _peer: Identity | None) -> None:
        self.hello = (await stream.receive()).hello
        welcome = agent_pb2.Welcome(heartbeat_interval_ms=1000, nodes=1)
        await stream.send(agent_pb2.ControllerMessage(epoch=self.epoch, welcome=welcome))
        self._stream = stream
        await self._tell()
        while True:
            await self._take(await stream.receive(), stream)

    async def _take(self, message: agent_pb2.AgentMessage, stream: ControllerStream) -> None:
        match message.WhichOneof("body"):
            case "report":
                for seen in message.report.objects:
                    if seen.server.state == RUNNING:
                        self.arrived.setdefault(seen.id, time.perf_counter())
                    self.observed[seen.id] = seen.server
                    self.history.append((seen.id, seen.server))
                ack = agent_pb2.ReportAck(seq=message.report.seq)
                await stream.send(agent_pb2.ControllerMessage(epoch=self.epoch, report_ack=ack))
            case "task_result":
                self.results[message.task_result.task_id] = message.task_result
                ack = agent_pb2.ReportAck(task_ids=[message.task_result.task_id])
                await stream.send(agent_pb2.ControllerMessage(epoch=self.epoch, report_ack=ack))
            case "answer":
                self.answers[message.answer.query_id] = message.answer
            case "telemetry":
                await self._count(message.telemetry, stream)

    async def _count(self, telemetry: agent_pb2.Telemetry, stream: ControllerStream) -> None:
        for sample in telemetry.samples:
            self.samples[telemetry.incarnation, sample.seq] = sample
        if self.acknowledge_telemetry:
            ack = agent_pb2.TelemetryAck(incarnation=telemetry.incarnation, seq=telemetry.samples[-1].seq)
            await stream.send(agent_pb2.ControllerMessage(epoch=self.epoch, telemetry_ack=ack))

    async def _tell(self) -> None:
        """The whole desired state, whatever the agent holds."""
        if self._stream is None:
            return
        self.generation += 1
        bodies = {key: desired.encode(held) for key, held in self.desired.items()}
        state = agent_pb2.DesiredState(generation=self.generation, put=self.desired.values(), hash=desired.state_hash(bodies))
        with suppress(Exception):
            await self._stream.send(agent_pb2.ControllerMessage(epoch=self.epoch, desired=state))

    async def put(self, server_id: str, spec: agent_pb2.ServerSpec) -> None:
        held = agent_pb2.DesiredObject(id=server_id)
        held.server.CopyFrom(spec)
        self.desired[f"server/{server_id}"] = held
        await self._tell()

    async def forget(self, server_id: str) -> None:
        self.desired.pop(f"server/{server_id}", None)
        await self._tell()

    async def remove(self, server_id: str) -> None:
        """Tells it absent and waits until it is gone."""
        await self.put(server_id, agent_pb2.ServerSpec(absent=True))
        await self.wait(server_id, agent_pb2.OBSERVED_STATE_GONE)

    async def wait(self, server_id: str, state: int, probe: Callable[[Any], bool] = lambda seen: True) -> Any:
        """Until it is reported in that state; gives the report."""

        def reported() -> agent_pb2.ObservedServer | None:
            seen = self.observed.get(server_id)
            return seen if seen is not None and seen.state == state and probe(seen) else None

        try:
            return await until(reported, "")
        except AssertionError:
            name = agent_pb2.ObservedState.Name(state)
            raise AssertionError(f"{server_id} is not {name} but {self.observed.get(server_id)}") from None

    async def task(self, task_id: str, task: agent_pb2.Task) -> agent_pb2.TaskResult:
        assert self._stream is not None
        task.task_id = task_id
        await self._stream.send(agent_pb2.ControllerMessage(epoch=self.epoch, task=task))
        return await until(lambda: self.results.get(task_id), f"result of {task_id}")

    async def ask(self, query_id: str, query: agent_pb2.Query) -> agent_pb2.Answer:
        assert self._stream is not None
        query.query_id = query_id
        await self._stream.send(agent_pb2.ControllerMessage(epoch=self.epoch, query=query))
        return await until(lambda: self.answers.get(query_id), f"answer to {query_id}")


class Rig:
    """`settings` are written to the daemon's configuration file; the daemon is started and killed at will."""

    def __init__(self, host: Host, tls_dir: Path, settings: dict[str, Any]) -> None:
        self.host, self.tls_dir, self.settings = host, tls_dir, settings
        self.controller, self.storage = Controller(), Storage()
        self.directory = Path(settings["data_dir"])
        self._server: Server | None = None
        self._agent: asyncio.subprocess.Process | None = None

    async def listen(self) -> str:
        """Controller and storage node, on the host's loopback; gives their address."""
        self._server = Server(lambda: "test")
        agent_pb2_grpc.add_AgentServiceServicer_to_server(self.controller, self._server.grpc)
        blob_pb2_grpc.add_BlobServiceServicer_to_server(self.storage, self._server.grpc)
        with inside(self.host.namespace):
            port = self._server.bind("127.0.0.1:0", TlsFiles(self.tls_dir).server(clients_must_show_certificate=True))
        await self._server.start([])
        self.address = f"127.0.0.1:{port}"
        self.settings["controllers"] = [self.address]
        return self.address

    async def start_agent(self, **environment: str) -> None:
        path = self.directory / "computed.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in self.settings.items()))
        assert tomllib.loads(path.read_text())
        argv = self.host.enter(sys.executable, "-m", "computed.daemon", "--config", str(path))
        with (self.directory / "computed.log").open("ab") as log:
            self._agent = await asyncio.create_subprocess_exec(
                *argv, stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL, env={**os.environ, **environment}
            )

    def agent_pid(self) -> int:
        """Of the daemon itself, as the machine numbers it."""
        assert self._agent is not None
        children = Path(f"/proc/{self._agent.pid}/task/{self._agent.pid}/children").read_text().split()
        return int(children[0])

    async def kill_agent(self) -> None:
        if self._agent is not None and self._agent.returncode is None:
            with suppress(OSError, IndexError):
                os.kill(self.agent_pid(), signal.SIGKILL)
            await self._agent.wait()
        self._agent = None

    async def agent_ended(self) -> int:
        assert self._agent is not None
        return await asyncio.wait_for(self._agent.wait(), HANG_S)

    def log(self) -> str:
        return (self.directory / "computed.log").read_text()

    def console(self, server_id: str) -> bytes:
        path = self.directory / "console" / f"{server_id}.log"
        return path.read_bytes() if path.exists() else b""

    def files(self, server_id: str) -> list[Path]:
        """Everything on the node's disks that bears the server's name."""
        return [path for name in ("disks", "console") for path in (self.directory / name).glob(f"{server_id}*")]

    def new_server(self, image: bytes, power: int = agent_pb2.POWER_RUNNING, **more: Any) -> agent_pb2.ServerSpec:
        """A small one; its image is put on the storage node."""
        digest = hashlib.sha256(image).hexdigest()
        self.storage.blobs.setdefault(digest, image)
        spec = agent_pb2.ServerSpec(name="web-1", vcpus=1, memory_mib=128, root_disk_gib=1, power=power, **more)
        spec.image.sha256, spec.image.format, spec.image.size_bytes = digest, "qcow2", len(image)
        spec.image.sources.append(self.address)
        return spec

    async def close(self) -> None:
        await self.kill_agent()
        if self._server is not None:
            await self._server.stop(0)


def _toml(value: Any) -> str:
    return json.dumps(str(value) if isinstance(value, Path) else value)
