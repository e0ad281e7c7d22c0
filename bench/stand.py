"""What `control.py` measures on: controllerd as processes on 127.0.0.1, one or three with etcd, and simulated nodes.

Everything lies below one temporary directory and is ended by its process id, whatever happens.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

sys.path.insert(0, str(Path(__file__).parents[1]))

from controllerd.config import ClusterConfig, ControllerConfig
from controllerd.peers.front import LEADER
from daemonkit import rpc
from daemonkit.command import run
from seeded import Seeded, seed
from skyrack.client.cloud import Cloud
from tests.etcd import EtcdCluster, free_port
from tests.torture.process import toml

HERE = Path(__file__).parent
START_LIMIT_S = 300.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Process:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, stack: AsyncExitStack, log: Path, *argv: str | Path) -> Process:
        pipe = asyncio.subprocess.PIPE
        with log.open("ab") as errors:
            made = cls(await asyncio.create_subprocess_exec(*map(str, argv), stdin=pipe, stdout=pipe, stderr=errors))
        stack.push_async_callback(made.end)
        return made

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, line: str) -> dict[str, Any]:
        """One line to its standard input, one of JSON back. Errors: RuntimeError when it ended."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(line.encode() + b"\n")
        answer = await self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the simulated nodes ended")
        return dict(json.loads(answer))

    def cpu_s(self) -> float:
        user, system = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / TICKS_PER_S

    def pss_mib(self) -> float:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{self.pid}/smaps_rollup").read_text(), re.MULTILINE)
        assert found
        return int(found[1]) / 1024

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), 15)
            except TimeoutError:
                await self.kill()


class Controller:
    """controllerd with its configuration, on ports of its own."""

    process: Process

    def __init__(self, home: Path, name: str, cluster: ClusterConfig) -> None:
        home.mkdir()
        self.home, self.name = home, name
        self.metrics = free_port()
        api, agents = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self.config = ControllerConfig(
            node=name, data_dir=home / "data", tls_dir=home / "tls", api_listen=api, agents_listen=agents,
            metrics_listen=f"127.0.0.1:{self.metrics}", advertise_api=api, advertise_agents=agents,
            cluster=replace(cluster, etcd_tls_dir=home / "etcd"),
        )  # fmt: skip
        plain = ("node", "data_dir", "tls_dir", "api_listen", "agents_listen", "metrics_listen", "advertise_api")
        keys: dict[str, object] = {field: str(getattr(self.config, field)) for field in (*plain, "advertise_agents")}
        inner = {"cluster": {"etcd": cluster.etcd, "etcd_tls_dir": str(home / "etcd")}} if cluster.etcd else {}
        (home / "controllerd.toml").write_text(toml({**keys, "log_level": "warning"}, **inner))

    def argv(self, *words: str | Path) -> list[str]:
        program = os.environ.get("CONTROLLERD", f"{sys.executable} -m controllerd.daemon").split()  # or one that profiles it
        return [*program, "--config", str(self.home / "controllerd.toml"), *map(str, words)]

    async def start(self, stack: AsyncExitStack) -> None:
        self.process = await Process.start(stack, self.home / "log", *self.argv())

    async def leads(self) -> bool:
        credentials = grpc.ssl_channel_credentials((self.home / "tls/ca.pem").read_bytes())
        async with rpc.channel(self.config.api_listen, credentials) as channel:
            try:
                request = health_pb2.HealthCheckRequest(service=LEADER)
                answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=1.0)
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def lag(self) -> list[tuple[float, int]]:
        """(upper bound in seconds, how often the event loop was at most so late) since the start."""
        url = f"http://127.0.0.1:{self.metrics}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        return [(float(b), int(float(n))) for b, n in re.findall(r'loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)', text)]


def lag_percentile_ms(before: Sequence[tuple[float, int]], after: Sequence[tuple[float, int]], percent: float) -> float:
    """Between two looks; the upper bound of the histogram's bucket."""
    counts = [(bound, now - then) for (bound, now), (_bound, then) in zip(after, before, strict=True)]
    return next((bound * 1000 for bound, count in counts if count >= counts[-1][1] * percent / 100), 0.0)


class Stand:
    """`controllers`: the first was bootstrapped and seeded."""

    nodes: Process
    cloud: Cloud
    seeded: Seeded

    def __init__(self, home: Path, controllers: list[Controller]) -> None:
        self.home, self.controllers = home, controllers

    @property
    def certificate(self) -> bytes:
        """Of the authority that the API's certificate is from."""
        return (self.home / "c1/tls/ca.pem").read_bytes()

    async def leader(self) -> Controller:
        """Who leads now; waits for one. Errors: RuntimeError."""
        began = time.monotonic()
        while time.monotonic() - began < START_LIMIT_S:
            for controller in self.controllers:
                if await controller.leads():
                    return controller
            await asyncio.sleep(0.02)
        raise RuntimeError("nobody leads")

    async def all_in_session(self) -> dict[str, Any]:
        """When every agent is: what the nodes say of themselves. Errors: RuntimeError."""
        began = time.monotonic()
        while (status := await self.nodes.ask("status"))["in_session"] < 2 * len(self.seeded.nodes):
            if time.monotonic() - began > START_LIMIT_S:
                raise RuntimeError(f"not all nodes come into session: {status}")
            await asyncio.sleep(0.1)
        return status


@asynccontextmanager
async def stand(nodes: int, servers: int, members: int = 0) -> AsyncIterator[Stand]:
    """`members`: of etcd, and as many controllers; 0 = one controller with its log on its own disk."""
    home = Path(tempfile.mkdtemp(prefix="benchcontrol"))
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        cluster = ClusterConfig()
        if members:
            etcd = EtcdCluster(home / "members", members=members, tls=True)
            await asyncio.to_thread(stack.enter_context, etcd)
            cluster = ClusterConfig(etcd=etcd.endpoints)
        made = Stand(home, [Controller(home / f"c{n + 1}", f"c{n + 1}", cluster) for n in range(members or 1)])
        made.seeded = await seed(made.controllers[0].config, home, nodes, servers)
        await _bundle(made)
        for controller in made.controllers:
            if members:
                assert etcd.tls_dir is not None
                shutil.copytree(etcd.tls_dir, controller.home / "etcd", dirs_exist_ok=True)
            await controller.start(stack)
        await _enter(stack, made)
        try:
            yield made
        finally:
            for log in (*(c.home / "log" for c in made.controllers), home / "nodes.log"):
                print(log.read_text()[-1000:], end="", file=sys.stderr)


async def _bundle(made: Stand) -> None:
    """What the further controllers need comes from the first."""
    first, *others = made.controllers
    for other in others:
        bundle = made.home / f"{other.name}.bundle"
        await run(*first.argv("bundle", other.name, "--address", "127.0.0.1", "-o", bundle))
        await run(*other.argv("bootstrap", "--bundle", bundle))


async def _enter(stack: AsyncExitStack, made: Stand) -> None:
    """Nodes and the SDK."""
    await made.leader()
    agents = ",".join(c.config.agents_listen for c in made.controllers)
    made.nodes = await Process.start(
        stack, made.home / "nodes.log", sys.executable, HERE / "nodes.py", "--tls", made.seeded.tls,
        "--nodes", str(len(made.seeded.nodes)), "--controllers", agents,
    )  # fmt: skip
    endpoints = ",".join(c.config.api_listen for c in made.controllers)
    environ = made.seeded.environment | {"SKYRACK_ENDPOINT": endpoints}
    made.cloud = await stack.enter_async_context(Cloud.connect(environ=environ))
    await made.all_in_session()
