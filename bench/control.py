"""The controller under load, as a process of its own on 127.0.0.1, with simulated nodes (`nodes.py`) over real gRPC.

    ./dev bench control [--quick] [--only PART,...] [--json]

Parts: reference, launch, scale, cluster, cloud. --json prints one object on the last line (see RESULTS); what a part that was
not run would tell is null. --quick: fewer nodes and rounds, to see that it works.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controllerd.config import ControllerConfig
from seeded import Seeded, seed
from skyrack.client.cloud import Cloud
from skyrack.client.server import ServerNetwork
from stage import median, percentile

BIN = Path(sys.executable).parent
HERE = Path(__file__).parent
START_LIMIT_S = 240.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---------------------------------------------------------------- processes


class Process:
    """One of ours; ended by its pid whatever happens."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(line.encode() + b"\n")
        return dict(json.loads(await self._process.stdout.readline()))

    def cpu_s(self) -> float:
        user, system = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / TICKS_PER_S

    def pss_mib(self) -> float:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{self.pid}/smaps_rollup").read_text(), re.MULTILINE)
        assert found
        return int(found[1]) / 1024

    async def end(self, how: str = "terminate") -> None:
        if self._process.returncode is None:
            getattr(self._process, how)()
            try:
                await asyncio.wait_for(self._process.wait(), 15)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()


async def start(stack: AsyncExitStack, log: Path, *argv: str | Path) -> Process:
    with log.open("ab") as errors:
        pipe = asyncio.subprocess.PIPE
        process = Process(await asyncio.create_subprocess_exec(*map(str, argv), stdin=pipe, stdout=pipe, stderr=errors))
    stack.push_async_callback(process.end)
    return process


class Controller:
    """controllerd with its configuration, on ports of its own."""

    def __init__(self, home: Path, name: str = "controller") -> None:
        self.home, self.name = home, name
        self.api, self.agents, self.metrics = free_port(), free_port(), free_port()
        self.config = ControllerConfig(
            node=name, data_dir=home / "data", tls_dir=home / "tls", api_listen=f"127.0.0.1:{self.api}",
            agents_listen=f"127.0.0.1:{self.agents}", metrics_listen=f"127.0.0.1:{self.metrics}",
        )  # fmt: skip
        self.process: Process

    def write_config(self, *lines: str) -> None:
        config = self.config
        plain = ("node", "data_dir", "tls_dir", "api_listen", "agents_listen", "metrics_listen")
        text = [f'{field} = "{getattr(config, field)}"' for field in plain] + ['log_level = "warning"', *lines]
        (self.home / "controllerd.toml").write_text("\n".join(text) + "\n")

    async def start(self, stack: AsyncExitStack) -> None:
        argv = (
            *os.environ.get("CONTROLLERD", str(BIN / "skyrack-controllerd")).split(),
            "--config",
            self.home / "controllerd.toml",
        )
        self.process = await start(stack, self.home / "log", *argv)

    def lag(self) -> list[tuple[float, int]]:
        """(upper bound in seconds, events so far at most as late) of the event loop."""
        url = f"http://127.0.0.1:{self.metrics}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        return [(float(b), int(float(n))) for b, n in re.findall(r'loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)', text)]


def lag_percentile_ms(before: list[tuple[float, int]], after: list[tuple[float, int]], percent: float) -> float:
    """The bucket's upper bound, between two looks."""
    counts = [(bound, now - then) for (bound, now), (_bound, then) in zip(after, before, strict=True)]
    total = counts[-1][1]
    return next((bound * 1000 for bound, count in counts if count >= total * percent / 100), 0.0)


@dataclass
class Stage:
    home: Path
    controller: Controller
    seeded: Seeded
    nodes: Process
    cloud: Cloud

    async def all_in_session(self) -> float:
        """Seconds until every agent is."""
        began = time.monotonic()
        while (await self.nodes.ask("status"))["in_session"] < 2 * len(self.seeded.nodes):
            if time.monotonic() - began > START_LIMIT_S:
                raise RuntimeError("not all nodes come into session")
            await asyncio.sleep(0.1)
        return time.monotonic() - began


@asynccontextmanager
async def stage(nodes: int, servers: int) -> AsyncIterator[Stage]:
    home = Path(tempfile.mkdtemp(prefix="h6bench"))
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        controller = Controller(home / "c1")
        controller.home.mkdir()
        seeded = await seed(controller.config, controller.home, nodes, servers)
        controller.write_config()
        await controller.start(stack)
        simulated = await start(
            stack, home / "nodes.log", sys.executable, HERE / "nodes.py", "--tls", seeded.tls, "--nodes", str(nodes),
            "--controllers", controller.config.agents_listen,
        )  # fmt: skip
        cloud = await stack.enter_async_context(Cloud.connect(environ=seeded.environment))
        made = Stage(home, controller, seeded, simulated, cloud)
        try:
            await made.all_in_session()
            yield made
        finally:
            for log in (controller.home / "log", home / "nodes.log"):
                print(log.read_text()[-2000:], end="", file=sys.stderr)


# ---------------------------------------------------------------- launches


async def create_active_ms(at: Stage, rounds: int) -> list[float]:
    """One server after another: from the call to the answer that says ACTIVE."""
    times = []
    for number in range(rounds):
        began = time.monotonic()
        server = await create(at, f"alone-{number}")
        while (await at.cloud.servers.get(server)).state != "ACTIVE":
            await asyncio.sleep(0.004)
        times.append((time.monotonic() - began) * 1000)
    return times


async def create(at: Stage, name: str) -> Any:
    networks = [ServerNetwork(network_id=at.seeded.network_ids[0])]
    return await at.cloud.servers.create(name, flavor=at.seeded.flavor_id, image=at.seeded.image_id, networks=networks)


async def burst_per_s(at: Stage, servers: int, in_flight: int = 16) -> float:
    """Servers a second, from the first call to the last one ACTIVE; a further one is asked for when one is ACTIVE."""
    active: dict[str, asyncio.Event] = {}

    async def watch() -> None:
        async for event in at.cloud.events.watch():
            if event.kind == "server.running":
                active.setdefault(event.resource_id, asyncio.Event()).set()

    async def one(number: int) -> None:
        async with room:
            server = await create(at, f"burst-{number}")
            await active.setdefault(server.id, asyncio.Event()).wait()

    room, watching = asyncio.Semaphore(in_flight), asyncio.create_task(watch())
    try:
        await asyncio.sleep(0.5)  # until it watches
        began = time.monotonic()
        async with asyncio.timeout(300):
            await asyncio.gather(*(one(number) for number in range(servers)))
        return servers / (time.monotonic() - began)
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--servers", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    began = time.monotonic()
    async with stage(options.nodes, options.servers) as at:
        print("up", time.monotonic() - began)
        lag, cpu = at.controller.lag(), at.controller.process.cpu_s()
        times = await create_active_ms(at, 20)
        print(
            "alone p50",
            median(times),
            "p90",
            percentile(times, 90),
            "cpu ms each",
            (at.controller.process.cpu_s() - cpu) / 20 * 1000,
        )
        cpu = at.controller.process.cpu_s()
        print("burst", await burst_per_s(at, 200), "cpu ms each", (at.controller.process.cpu_s() - cpu) / 200 * 1000)
        print("lag p99", lag_percentile_ms(lag, at.controller.lag(), 99))
        await asyncio.sleep(3)
        cpu = at.controller.process.cpu_s()
        await asyncio.sleep(10)
        print("idle", (at.controller.process.cpu_s() - cpu) * 10, "%", at.controller.process.pss_mib())
        print(await at.nodes.ask("status"))


if __name__ == "__main__":
    asyncio.run(main())
