"""Three controllers, three members of etcd and one node with fake drivers, all real processes on 127.0.0.1.

Between every two of them that talk is a proxy port, so that each link can be frozen or cut by itself. Everything is below one
directory; `async with World(...)` ends every process. Each controller's data is on a small file system of its own, mounted
here: the caller must be in a mount namespace of its own.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from controllerd.peers.front import LEADER
from daemonkit import rpc
from skyrack.client import Cloud
from tests.etcd import EtcdCluster, free_port
from tests.proxy import ProxyProcess
from tests.torture.load import PATIENCE
from tests.torture.process import Process, program, toml

NAMES = ("c1", "c2", "c3")
NODE = "k1"
FENCED, UNFENCED = "tests.torture.fenced", "tests.torture.unfenced"
SETTLE_S = 90.0
DISK_MIB = 128  # of a controller; so little that it can be filled
ACT_S = 120.0
APART = "TORTURE_APART"


@dataclass(frozen=True)
class Doors:
    """Of one controller. What others dial goes through the proxy; `to_etcd`: its own ways to each member."""

    api: int
    agents: int
    metrics: int
    api_listen: int
    agents_listen: int
    to_etcd: tuple[int, ...]

    @property
    def inward(self) -> tuple[int, ...]:
        return self.api, self.agents


class World:
    """`module`: the program that runs as controllerd."""

    def __init__(self, module: str = FENCED) -> None:
        self._module = module
        self._stack = AsyncExitStack()
        self.controllers: dict[str, Process] = {}
        self.doors: dict[str, Doors] = {}
        self._agents: list[Process] = []

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torture-")))
            self.etcd = EtcdCluster(self.directory / "etcd", members=3, tls=True)
            await asyncio.to_thread(stack.enter_context, self.etcd)
            self._lay_doors()
            ways = {out: port.client for d in self.doors.values() for out, port in zip(d.to_etcd, self.etcd.ports, strict=True)}
            ways |= {d.api: d.api_listen for d in self.doors.values()} | {
                d.agents: d.agents_listen for d in self.doors.values()
            }
            self.proxy = ProxyProcess(ways)
            stack.callback(self.proxy.close)
            stack.callback(self._unmount)
            stack.push_async_callback(self.end)
            await asyncio.to_thread(self._install)
            for process in self.controllers.values():
                process.start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _unmount(self) -> None:
        for name in NAMES:
            subprocess.run(["umount", str(self.home(name) / "data")], check=False, capture_output=True)

    async def end(self) -> None:
        """Every process of ours, agents first."""
        await self.end_agents()
        await asyncio.gather(*(process.end() for process in self.controllers.values()))

    async def end_agents(self) -> None:
        await asyncio.gather(*(agent.end() for agent in self._agents))

    # ---- installing

    def _lay_doors(self) -> None:
        for name in NAMES:
            ports = [free_port() for _ in range(5 + len(self.etcd.ports))]
            self.doors[name] = Doors(*ports[:5], tuple(ports[5:]))

    def home(self, name: str) -> Path:
        return self.directory / name

    def clock_file(self, name: str) -> Path:
        """Seconds to add to that controller's wall clock."""
        return self.home(name) / "clock"

    def _install(self) -> None:
        for name in NAMES:
            self._configure(name)
        self.act("c1", "bootstrap", "--admin-env", str(self.directory / "admin.env"))
        for name in NAMES[1:]:
            bundle = str(self.directory / f"{name}.bundle")
            self.act("c1", "bundle", name, "--address", "127.0.0.1", "-o", bundle)
            self.act(name, "bootstrap", "--bundle", bundle)
        assert self.etcd.tls_dir is not None
        for name in NAMES:
            shutil.copytree(self.etcd.tls_dir, self.home(name) / "etcd", dirs_exist_ok=True)

    def _configure(self, name: str) -> None:
        home, doors = self.home(name), self.doors[name]
        (home / "data").mkdir(parents=True)
        _run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "torture", str(home / "data")])
        keys: dict[str, object] = {
            "node": name, "data_dir": f"{home}/data", "tls_dir": f"{home}/tls",
            "api_listen": f"127.0.0.1:{doors.api_listen}", "agents_listen": f"127.0.0.1:{doors.agents_listen}",
            "metrics_listen": f"127.0.0.1:{doors.metrics}",
            "advertise_api": f"127.0.0.1:{doors.api}", "advertise_agents": f"127.0.0.1:{doors.agents}",
        }  # fmt: skip
        cluster = {"etcd": [f"127.0.0.1:{port}" for port in doors.to_etcd], "etcd_tls_dir": f"{home}/etcd"}
        (home / "controllerd.toml").write_text(toml(keys, cluster=cluster))
        self.install(name, self._module)

    def install(self, name: str, module: str) -> None:
        """What runs as that controller from its next start on. It does not run now."""
        argv = program(module, "--config", str(self.home(name) / "controllerd.toml"))
        self.controllers[name] = Process(name, self.directory, argv, {"TORTURE_CLOCK": str(self.clock_file(name))})

    def act(self, name: str, *words: str) -> str:
        """An act of skyrack-controllerd on that controller's data. Errors: CalledProcessError."""
        return _run(self._controllerd(name, *words))

    def _controllerd(self, name: str, *words: str) -> list[str]:
        return program("controllerd.daemon", "--config", str(self.home(name) / "controllerd.toml"), *words)

    # ---- using

    def connect(self) -> Cloud:
        """The SDK, as the admin, with every controller's address."""
        return Cloud.connect(environ=self._access(), patience=PATIENCE)

    def skyrack(self, *words: str) -> str:
        """Output of the CLI, so too. Errors: CalledProcessError."""
        return _run(program("skyrack.cli.main", *words), **self._access())

    def _access(self) -> dict[str, str]:
        words = shlex.split((self.directory / "admin.env").read_text())
        environ = dict(word.split("=", 1) for word in words if "=" in word)
        environ["SKYRACK_ENDPOINT"] = ",".join(f"127.0.0.1:{doors.api}" for doors in self.doors.values())
        return environ

    async def leader(self) -> str:
        """Who serves as the leader now, asked at every controller itself; "" = none that answers."""
        answers = await asyncio.gather(*(self._leads(name) for name in NAMES))
        return next((name for name, leads in zip(NAMES, answers, strict=True) if leads), "")

    async def _leads(self, name: str) -> bool:
        credentials = grpc.ssl_channel_credentials((self.home("c1") / "tls/ca.pem").read_bytes())
        async with rpc.channel(f"127.0.0.1:{self.doors[name].api_listen}", credentials) as channel:
            try:
                request = health_pb2.HealthCheckRequest(service=LEADER)
                answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=1.0)
            except grpc.RpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def prepare(self, cloud: Cloud) -> dict[str, str]:
        """One node in session, an image, a network, no quotas. Gives what a new server needs."""
        await self._join(cloud)
        project = (await cloud.tokens.current()).project_id
        await cloud.quotas.update(project, {"servers": -1, "vcpus": -1, "memory_mib": -1, "ports": -1})
        network = await cloud.networks.create("inside")
        await cloud.subnets.create("inside", network=network, cidr="10.1.0.0/16")
        flavor = await cloud.flavors.create("speck", vcpus=1, memory_mib=64, disk_gib=1)
        image = await cloud.images.create("nothing", format="raw")
        content = self.directory / "image"
        content.write_bytes(bytes(1 << 20))
        await cloud.images.upload(image, content)
        return {"flavor": flavor.id, "image": image.id}

    async def _join(self, cloud: Cloud) -> None:
        home = self.home(NODE)
        home.mkdir()
        roles = ["compute", "edge", "storage"]
        token = (await cloud.nodes.create_join_token(NODE, roles=roles)).token
        words = ["node", "join", "-", "--name", NODE, "--address", "127.0.0.1", "--tls-dir", f"{home}/tls"]
        await asyncio.to_thread(_run, program("skyrack.cli.main", *words), token)
        for daemon in ("networkd", "computed", "storaged"):
            self._agents.append(self._agent(daemon, home))
        for agent in self._agents:
            agent.start()
        async with asyncio.timeout(SETTLE_S):
            while (await cloud.nodes.get(NODE)).state != "UP":  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.2)

    def _agent(self, daemon: str, home: Path) -> Process:
        data = home / daemon
        keys: dict[str, object] = {
            "node": NODE, "controllers": [f"127.0.0.1:{doors.agents}" for doors in self.doors.values()],
            "data_dir": str(data), "tls_dir": f"{home}/tls", "driver": "fake", "listen": f"127.0.0.1:{free_port()}",
            "metrics_listen": "",
        }  # fmt: skip
        keys |= {
            "networkd": {"run_dir": f"{home}/run", "vtep": "127.0.0.1"},
            "computed": {"images_dir": f"{data}/images", "disks_dir": f"{data}/disks", "console_dir": f"{home}/con"},
            "storaged": {"images_dir": f"{data}/images", "volumes_dir": f"{data}/volumes", "images_reserve_mib": 0},
        }[daemon]
        path = home / f"{daemon}.toml"
        path.write_text(toml(keys))
        return Process(daemon, self.directory, program(f"{daemon}.daemon", "--config", str(path)))


def _run(argv: list[str], given: str = "", **environ: str) -> str:
    environment = {**os.environ, **environ}
    done = subprocess.run(argv, input=given, capture_output=True, text=True, timeout=ACT_S, check=False, env=environment)
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        done.check_returncode()
    return done.stdout


def apart(module: str) -> None:
    """This program, begun again in a mount namespace of its own, so that the controllers' small file systems go with it."""
    if os.environ.get(APART) != "1":
        os.environ[APART] = "1"
        argv = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", module, *sys.argv[1:]]
        os.execvp(argv[0], argv)
