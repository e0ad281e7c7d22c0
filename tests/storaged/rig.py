"""The stage of the functional tests: the real daemon as a process, a scripted controller, NBD clients. All on 127.0.0.1."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

from daemonkit import command, desired, rpc
from daemonkit.errors import CommandFailed
from daemonkit.tls import TlsFiles
from daemonkit.transport import GrpcControllerStream
from skyrack.v1 import agent_pb2, agent_pb2_grpc, blob_pb2, blob_pb2_grpc
from storaged.drivers.qsd.disk import MARK
from tests.pki import Pki

REPOSITORY = Path(__file__).resolve().parents[2]
HANG_S = 60.0
READY, FAILED, GONE = agent_pb2.OBSERVED_STATE_READY, agent_pb2.OBSERVED_STATE_FAILED, agent_pb2.OBSERVED_STATE_GONE
PENDING = agent_pb2.OBSERVED_STATE_PENDING


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def new_id() -> str:
    return str(uuid.uuid4())


def volume(
    volume_id: str, gib: int = 1, absent: bool = False, image: agent_pb2.ImageRef | None = None
) -> agent_pb2.DesiredObject:
    return agent_pb2.DesiredObject(id=volume_id, volume=agent_pb2.VolumeSpec(size_gib=gib, absent=absent, image=image))


def export(attachment_id: str, volume_id: str, name: str, client: str = "host-1") -> agent_pb2.DesiredObject:
    spec = agent_pb2.ExportSpec(volume_id=volume_id, export_name=name, client_node=client)
    return agent_pb2.DesiredObject(id=attachment_id, export=spec)


def blob(sha256: str, absent: bool = False) -> agent_pb2.DesiredObject:
    return agent_pb2.DesiredObject(id=sha256, blob=agent_pb2.BlobSpec(absent=absent))


class Controller(agent_pb2_grpc.AgentServiceServicer):
    """Says what is wanted, keeps what is reported: `seen` maps "kind/id" to the last observation."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}
        self.hello: agent_pb2.Hello | None = None
        self.sessions = 0
        self._wanted: dict[str, agent_pb2.DesiredObject] = {}
        self._generation = 0
        self._news = asyncio.Event()
        self._seen = asyncio.Event()

    def want(self, *objects: agent_pb2.DesiredObject, forget: tuple[str, ...] = ()) -> None:
        for spec in objects:
            self._wanted[desired.key_of(spec)] = spec
        for key in forget:
            self._wanted.pop(key, None)
        self._generation += 1
        self._news.set()

    async def until(self, key: str, *states: int) -> Any:
        """The observation of `key`, once it is in one of these states."""
        async with asyncio.timeout(HANG_S):
            while key not in self.seen or self.seen[key].state not in states:
                self._seen.clear()
                await self._seen.wait()
        return self.seen[key]

    async def until_settled(self) -> None:
        """Everything wanted is READY, everything wanted absent is GONE."""
        for key, spec in self._wanted.items():
            body = getattr(spec, spec.WhichOneof("spec") or "")
            await self.until(key, GONE if getattr(body, "absent", False) else READY)

    async def Session(self, request_iterator: AsyncIterator[agent_pb2.AgentMessage], context: Any) -> None:  # type: ignore[override]
        hello = await anext(request_iterator)
        self.hello, self.sessions = hello.hello, self.sessions + 1
        stream = GrpcControllerStream(context)
        welcome = agent_pb2.Welcome(heartbeat_interval_ms=1000, nodes=1)
        await stream.send(agent_pb2.ControllerMessage(epoch=1, welcome=welcome))
        sending = asyncio.create_task(self._send(stream))
        try:
            async for message in request_iterator:
                if message.WhichOneof("body") == "report":
                    self._take(message.report)
                    ack = agent_pb2.ReportAck(seq=message.report.seq)
                    await stream.send(agent_pb2.ControllerMessage(epoch=1, report_ack=ack))
        finally:
            sending.cancel()

    def _take(self, report: agent_pb2.Report) -> None:
        if report.whole:
            self.seen.clear()
        for told in report.objects:
            kind = told.WhichOneof("observed") or ""
            self.seen[f"{kind}/{told.id}"] = getattr(told, kind)
        self._seen.set()

    async def _send(self, stream: GrpcControllerStream) -> None:
        while True:
            self._news.clear()
            if self._generation:
                bodies = {key: desired.encode(spec) for key, spec in self._wanted.items()}
                state = agent_pb2.DesiredState(
                    base=0, generation=self._generation, put=self._wanted.values(), hash=desired.state_hash(bodies)
                )
                await stream.send(agent_pb2.ControllerMessage(epoch=1, desired=state))
            await self._news.wait()


class Node:
    """One storage node. `start` and `kill` as often as wanted; `clear` ends whatever runs of it."""

    def __init__(self, pki: Pki, controller_port: int, images_dir: Path | None = None, reserve_mib: int = 0) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="stor-"))
        self.data, self.volumes = self.directory / "data", self.directory / "volumes"
        self.images = images_dir or self.directory / "images"
        self.port, self.nbd_port = free_port(), free_port()
        self.process: asyncio.subprocess.Process | None = None
        self._config = self.directory / "storaged.toml"
        self._config.write_text(
            f'node = "store-1"\ncontrollers = ["127.0.0.1:{controller_port}"]\ndata_dir = "{self.data}"\n'
            f'tls_dir = "{pki.node("store-1", "storage")}"\nlisten = "127.0.0.1:{self.port}"\nmetrics_listen = ""\n'
            f'images_dir = "{self.images}"\nvolumes_dir = "{self.volumes}"\nnbd_listen = "127.0.0.1:{self.nbd_port}"\n'
            f"images_reserve_mib = {reserve_mib}\n"
        )

    async def start(self, failpoint: str = "") -> None:
        environment = os.environ | {"SKYRACK_FAILPOINT": failpoint}
        with (self.directory / "log").open("a") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "storaged.daemon", "--config", str(self._config),
                cwd=REPOSITORY, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    async def ended(self) -> int:
        assert self.process is not None
        async with asyncio.timeout(HANG_S):
            return await self.process.wait()

    async def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        assert self.process is not None
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        return await self.ended()

    def qsd_pid(self) -> int:
        return int((self.data / "qsd" / "pid").read_text())

    def log(self) -> str:
        return (self.directory / "log").read_text()

    async def clear(self) -> None:
        if self.process and self.process.returncode is None:
            await self.kill()
        with suppress(OSError, ValueError):
            pid = self.qsd_pid()
            kill_if_of(pid, self.data)
        shutil.rmtree(self.directory, ignore_errors=True)


class NbdClient:
    """A compute node's QEMU, by its certificate."""

    def __init__(self, pki: Pki, node: str, port: int, *roles: str) -> None:
        files = pki.node(node, *(roles or ("compute",)))
        self.directory, self.port = files / "nbd", port
        self.directory.mkdir(exist_ok=True)
        for name, file in (("ca-cert.pem", "ca.pem"), ("client-cert.pem", "node.pem"), ("client-key.pem", "node.key")):
            with suppress(FileExistsError):
                (self.directory / name).symlink_to(files / file)

    def arguments(self, export_name: str, *commands: str) -> list[str]:
        credentials = f"tls-creds-x509,id=tls,dir={str(self.directory).replace(',', ',,')},endpoint=client"
        options = (
            f"driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={self.port},export={export_name},tls-creds=tls"
        )
        shell = [argument for text in commands for argument in ("-c", text)]
        return ["qemu-io", "--object", credentials, "--image-opts", options, *shell]

    async def io(self, export_name: str, *commands: str) -> str:
        """Runs qemu-io commands. Errors: CommandFailed."""
        return await command.run(*self.arguments(export_name, *commands), timeout_s=HANG_S)


def kill_if_of(pid: int, data: Path) -> None:
    if str(data).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
        os.kill(pid, signal.SIGKILL)


async def eventually(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """Until it does; a client that is refused counts as not yet."""
    async with asyncio.timeout(HANG_S):
        while True:
            with suppress(CommandFailed, OSError, ValueError):
                answer = holds()
                if answer is True or (not isinstance(answer, bool) and await answer):
                    return
            await asyncio.sleep(0.02)


class BlobClient:
    """Uploads and downloads as one node."""

    def __init__(self, directory: Path, port: int) -> None:
        self._files, self._address = TlsFiles(directory), f"127.0.0.1:{port}"

    @asynccontextmanager
    async def stub(self) -> AsyncIterator[blob_pb2_grpc.BlobServiceAsyncStub]:
        async with rpc.channel(self._address, self._files.client()) as connection:
            yield blob_pb2_grpc.BlobServiceStub(connection)  # type: ignore[misc]

    async def put(self, content: bytes, declared: str, sha256: str = "", size_bytes_max: int = 0) -> blob_pb2.Blob:
        """Errors: those of the node, as SkyrackError."""

        async def parts() -> AsyncIterator[blob_pb2.PutBlobRequest]:
            yield blob_pb2.PutBlobRequest(begin=blob_pb2.PutBlobBegin(format=declared, size_bytes_max=size_bytes_max))
            for at in range(0, len(content), 1 << 20):
                yield blob_pb2.PutBlobRequest(chunk=content[at : at + (1 << 20)])
            yield blob_pb2.PutBlobRequest(commit=blob_pb2.PutBlobCommit(sha256=sha256))

        async with self.stub() as stub:
            try:
                return await stub.Put(parts(), timeout=HANG_S, wait_for_ready=True)
            except grpc.RpcError as error:
                raise rpc.from_rpc_error(error) from None

    async def get(self, sha256: str, offset: int = 0) -> bytes:
        async with self.stub() as stub:
            try:
                request = blob_pb2.GetBlobRequest(sha256=sha256, offset=offset)
                return b"".join([part.data async for part in stub.Get(request, timeout=HANG_S, wait_for_ready=True)])
            except grpc.RpcError as error:
                raise rpc.from_rpc_error(error) from None


@asynccontextmanager
async def controller(pki: Pki) -> AsyncIterator[tuple[Controller, int]]:
    servicer, server = Controller(), grpc.aio.server(options=rpc.SERVER_OPTIONS)
    agent_pb2_grpc.add_AgentServiceServicer_to_server(servicer, server)
    credentials = TlsFiles(pki.node("controller-1", "controller")).server(clients_must_show_certificate=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield servicer, port
    finally:
        await server.stop(None)


def residue(node: Node) -> Mapping[str, list[str]]:
    """Names of files that should not be there when nothing is wanted."""
    return {
        "volumes": [path.name for path in node.volumes.iterdir() if path.name != MARK],
        "incoming": [path.name for path in (node.images / "incoming").iterdir()],
    }
