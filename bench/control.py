"""The controller under load: a process of its own on 127.0.0.1, simulated nodes (`nodes.py`) over real gRPC and mutual TLS.

    ./dev bench control [--quick] [--only PART,...] [--json]

Parts: reference, placement, launch, scale, cluster, cloud. --json prints one object on the last line, keys as in RESULTS; what
a part that was not run would tell is null. --quick: fewer nodes and rounds, to see that it works.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import grpc

from controllerd.domain.placement import Ratios
from controllerd.scheduler.stock import Stock
from scheduler import REQUESTS, rack
from skyrack.client.server import ServerNetwork
from skyrack.v1 import identity_pb2, identity_pb2_grpc, server_pb2, server_pb2_grpc
from stage import median, percentile, show
from stand import Controller, Process, Stand, lag_percentile_ms, stand

RESULTS = (
    "create_active_p50_ms", "burst_local_per_s", "burst_etcd_per_s", "failover_p50_s", "placement_p99_ms_10k",
    "list_1000_p99_ms", "idle_1000_nodes_cpu_pct", "idle_1000_nodes_pss_mib", "rehome_1000_s", "lag_p99_ms",
    "cloud_in_process_s", "cloud_in_process_mib",
)  # fmt: skip
IN_FLIGHT = 16
LIMIT_S = 600.0


@dataclass
class Scale:
    small_nodes: int = 10
    alone: int = 50
    burst: int = 200
    nodes: int = 1000
    servers: int = 10_000
    lists: int = 100
    settle_s: float = 45.0  # after all are in session: they were sent their state, and report
    idle_s: float = 30.0
    telemetry_s: float = 600.0
    failovers: int = 20
    rehomes: int = 3


QUICK = Scale(
    alone=10, burst=50, nodes=100, servers=1000, lists=20, settle_s=15.0, idle_s=10.0, telemetry_s=10.0, failovers=3, rehomes=1
)


@dataclass
class Run:
    """What was seen; `rows` are for people."""

    scale: Scale
    result: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(RESULTS))
    rows: list[tuple[str, object]] = field(default_factory=list)

    def saw(self, what: str, value: float | str, key: str = "", digits: int = 1) -> None:
        if isinstance(value, float):
            value = round(value, digits)
        if key and not isinstance(value, str):
            self.result[key] = value
        self.rows.append((what, value))
        print(f"  {what}: {value}", file=sys.stderr)

    def lagged(self, ms: float) -> None:
        """The worst of all parts counts."""
        self.result["lag_p99_ms"] = max(ms, self.result["lag_p99_ms"] or 0.0)


# ---------------------------------------------------------------- references


async def reference(run: Run) -> None:
    """What the machine does at best at this moment."""
    with tempfile.TemporaryDirectory(prefix="benchcontrol") as directory:
        run.saw("reference: SQLite, FULL, one row a commit, /s", _commits_per_s(Path(directory) / "raw.db"))
    began = time.thread_time()
    for _ in range(1_000_000):
        pass
    run.saw("reference: a million turns of an empty loop, ms of CPU", (time.thread_time() - began) * 1000)


def _commits_per_s(path: Path, seconds: float = 2.0) -> float:
    connection = apsw.Connection(str(path))
    for sql in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "CREATE TABLE t (id INTEGER PRIMARY KEY, data TEXT)"):
        connection.execute(sql)
    began, done = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        connection.execute("INSERT INTO t (data) VALUES (?)", ("x" * 500,))
        done += 1
    connection.close()
    return done / seconds


async def placement(run: Run) -> None:
    """One decision among 10,000 nodes, with what it changes entered."""
    stock, request, times = Stock(Ratios()), REQUESTS["fits"], []
    stock.fill(rack(10_000))
    for _ in range(2000):
        began = time.thread_time()
        chosen = stock.find(request)
        stock.put(_taken(chosen, request))
        times.append((time.thread_time() - began) * 1000)
    run.saw("placement at 10,000 nodes, p99 ms of CPU", percentile(times, 99), "placement_p99_ms_10k", 3)


def _taken(node: Any, request: Any) -> Any:
    values = {name: getattr(node, name) for name in type(node).__dataclass_fields__}
    values["vcpus_claimed"] += request.vcpus
    values["memory_mib_claimed"] += request.memory_mib
    values["disk_gib_claimed"] += request.disk_gib
    return type(node)(**values | {"servers": node.servers + 1})


# ---------------------------------------------------------------- launches


async def create(at: Stand, name: str) -> Any:
    networks = [ServerNetwork(network_id=at.seeded.network_ids[0])]
    return await at.cloud.servers.create(name, flavor=at.seeded.flavor_id, image=at.seeded.image_id, networks=networks)


async def create_active_ms(at: Stand, rounds: int) -> list[float]:
    """One server after another: from the call to the answer that says ACTIVE."""
    times = []
    for number in range(rounds):
        began = time.monotonic()
        server = await create(at, f"alone-{number}")
        while (await at.cloud.servers.get(server)).state != "ACTIVE":  # noqa: ASYNC110 - as a client sees it
            await asyncio.sleep(0.004)
        times.append((time.monotonic() - began) * 1000)
        await asyncio.sleep(0.05)
    return times


async def burst_per_s(at: Stand, servers: int) -> float:
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

    room, watching = asyncio.Semaphore(IN_FLIGHT), asyncio.create_task(watch())
    try:
        await asyncio.sleep(0.5)  # until it watches
        began = time.monotonic()
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*(one(number) for number in range(servers)))
        return servers / (time.monotonic() - began)
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def launch(run: Run) -> None:
    async with stand(run.scale.small_nodes, 0) as at:
        controller = at.controllers[0]
        await create_active_ms(at, 3)
        lag = controller.lag()
        times = await create_active_ms(at, run.scale.alone)
        run.saw("create to ACTIVE alone, p50 ms", median(times), "create_active_p50_ms")
        run.saw("create to ACTIVE alone, p90 ms", percentile(times, 90))
        cpu_s = controller.process.cpu_s()
        run.saw("burst, one controller, servers/s", await burst_per_s(at, run.scale.burst), "burst_local_per_s")
        run.saw("  CPU of the controller a server, ms", (controller.process.cpu_s() - cpu_s) / run.scale.burst * 1000)
        _lag(run, controller, lag, "launches")


def _lag(run: Run, controller: Controller, before: Sequence[tuple[float, int]], what: str) -> None:
    ms = lag_percentile_ms(before, controller.lag(), 99)
    run.saw(f"event loop lag, {what}, p99 ms at most", ms)
    run.lagged(ms)


# ---------------------------------------------------------------- a full cloud


async def scale(run: Run) -> None:
    async with stand(run.scale.nodes, run.scale.servers) as at:
        controller, size = at.controllers[0], f"{run.scale.nodes} nodes, {run.scale.servers} servers"
        await asyncio.sleep(run.scale.settle_s)
        begin, cpu_s = controller.lag(), controller.process.cpu_s()
        await asyncio.sleep(run.scale.idle_s)
        idle_pct = (controller.process.cpu_s() - cpu_s) / run.scale.idle_s * 100
        run.saw(f"idle with {size}, % of a core", idle_pct, "idle_1000_nodes_cpu_pct")
        run.saw(f"idle with {size}, PSS MiB", controller.process.pss_mib(), "idle_1000_nodes_pss_mib")
        _lag(run, controller, begin, "full cloud, idle")
        begin, times = controller.lag(), await list_ms(at, run.scale.lists)
        run.saw("list of 1,000 servers, p50 ms", median(times))
        run.saw("list of 1,000 servers, p99 ms", percentile(times, 99), "list_1000_p99_ms")
        _lag(run, controller, begin, "full cloud, lists")
        begin, alone = controller.lag(), await create_active_ms(at, run.scale.alone // 5)
        run.saw(f"create to ACTIVE alone with {size}, p50 ms", median(alone))
        run.saw(f"burst with {size}, servers/s", await burst_per_s(at, run.scale.burst))
        _lag(run, controller, begin, "full cloud, launches")
        begin = controller.lag()
        run.saw(f"telemetry of {run.scale.nodes}/s, 30 % of acks lost", await telemetry(at, run.scale.telemetry_s))
        _lag(run, controller, begin, "full cloud, telemetry")


async def list_ms(at: Stand, rounds: int) -> list[float]:
    environ = at.seeded.environment
    credentials = grpc.ssl_channel_credentials(at.certificate)
    options = [("grpc.max_receive_message_length", 16 << 20)]
    async with grpc.aio.secure_channel(environ["SKYRACK_ENDPOINT"], credentials, options=options) as channel:
        request = identity_pb2.CreateTokenRequest(
            user=environ["SKYRACK_USER"], password=environ["SKYRACK_PASSWORD"], project=environ["SKYRACK_PROJECT"]
        )
        token = (await identity_pb2_grpc.IdentityServiceStub(channel).CreateToken(request)).token
        servers, times = server_pb2_grpc.ServerServiceStub(channel), []
        metadata = (("authorization", f"Bearer {token}"),)
        for _ in range(rounds):
            began = time.monotonic()
            found = await servers.ListServers(server_pb2.ListServersRequest(page_size=1000), metadata=metadata)
            times.append((time.monotonic() - began) * 1000)
            assert len(found.servers) == 1000
    return times


async def telemetry(at: Stand, seconds: float) -> str:
    """Whether what was counted is what was sent."""
    status = await at.nodes.ask(f"sample {seconds} 0.3")
    connection = apsw.Connection(str(at.controllers[0].config.data_dir / "state.db"), flags=apsw.SQLITE_OPEN_READONLY)
    counted = next(iter(connection.execute("SELECT sum(cpu_ns) FROM usage_counter")))[0]
    connection.close()
    exact = "exact" if counted == status["cpu_ns"] else f"WRONG: {counted} of {status['cpu_ns']}"
    return f"{exact}: {status['samples']} samples, {status['batches_again']} batches sent again"


# ---------------------------------------------------------------- three controllers


async def cluster(run: Run) -> None:
    async with stand(run.scale.small_nodes, 0, members=3) as at, AsyncExitStack() as stack:
        await create_active_ms(at, 3)
        run.saw("create to ACTIVE alone, three etcd members, p50 ms", median(await create_active_ms(at, run.scale.alone // 2)))
        lag = (leader := await at.leader()).lag()
        run.saw("burst, three etcd members, servers/s", await burst_per_s(at, run.scale.burst), "burst_etcd_per_s")
        _lag(run, leader, lag, "three controllers")
        times = [(await failover_s(at, stack))[0] for _ in range(run.scale.failovers)]
        run.saw(f"leader killed to first write, median of {len(times)}, s", median(times), "failover_p50_s", 2)
        run.saw("leader killed to first write, worst, s", max(times))
    async with stand(run.scale.nodes, run.scale.servers, members=3) as at, AsyncExitStack() as stack:
        await asyncio.sleep(run.scale.settle_s)
        back = [await rehome_s(run, at, stack) for _ in range(run.scale.rehomes)]
        run.saw(f"first write to all agents of {run.scale.nodes} nodes back, worst, s", max(back), "rehome_1000_s")


async def rehome_s(run: Run, at: Stand, stack: AsyncExitStack) -> float:
    """From the first write on until the last agent was welcomed."""
    lags = {controller.name: controller.lag() for controller in at.controllers}
    back = (await failover_s(at, stack, run.scale.settle_s))[1]
    leader = await at.leader()
    _lag(run, leader, lags[leader.name], f"failover of {run.scale.nodes} nodes")
    return back


async def failover_s(at: Stand, stack: AsyncExitStack, rest_s: float = 3.0) -> tuple[float, float]:
    """(seconds from the leader's death to the first acknowledged write, from there until the last agent was welcomed).

    `rest_s`: afterwards, for the one that comes back to follow again, and for agents to feel at home.
    """
    leader = await at.leader()
    killed = time.monotonic()
    await leader.process.kill()
    await at.cloud.flavors.create(f"f{killed:.3f}", vcpus=1, memory_mib=64, disk_gib=1)
    wrote = time.monotonic()
    status = await at.all_in_session()
    await leader.start(stack)
    await at.leader()
    await asyncio.sleep(rest_s)
    return wrote - killed, max(0.0, status["last_welcome"] - wrote)


# ---------------------------------------------------------------- a cloud in a test

IN_PROCESS = """
import time; began = time.monotonic()
import asyncio, json, re, sys
async def main():
    from skyrack.testing import Cloud
    async with Cloud() as cloud:
        await cloud.client.tokens.current()
        took = time.monotonic() - began
        pss = re.search(r"^Pss:\\s+(\\d+)", open("/proc/self/smaps_rollup").read(), re.M)
        print(json.dumps({"s": took, "mib": int(pss[1]) / 1024}), flush=True)
asyncio.run(main())
"""


async def cloud(run: Run) -> None:
    """A fresh interpreter each time, from its first import to the first token in use."""
    seen = []
    for _ in range(5):
        async with AsyncExitStack() as stack:
            program = await Process.start(stack, Path("/dev/null"), sys.executable, "-c", IN_PROCESS)
            seen.append(await program.ask(""))
    run.saw("cloud in one process, median of 5, s", statistics.median(s["s"] for s in seen), "cloud_in_process_s", 2)
    run.saw("cloud in one process, PSS MiB", statistics.median(s["mib"] for s in seen), "cloud_in_process_mib")


PARTS: dict[str, Callable[[Run], Awaitable[None]]] = {
    "reference": reference, "placement": placement, "launch": launch, "scale": scale, "cluster": cluster, "cloud": cloud,
}  # fmt: skip


async def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the controller.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS), metavar="PART,...")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    run = Run(QUICK if options.quick else Scale())
    for name in options.only:
        await PARTS[name](run)
    show("controller", ("", "seen"), run.rows, run.result)


if __name__ == "__main__":
    asyncio.run(main())
