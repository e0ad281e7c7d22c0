"""Simulated nodes: a computed and a networkd session each, over real gRPC and mutual TLS, in one process.

    nodes.py --tls DIR --controllers HOST:PORT,... --nodes N [--verify]

They do at once what they are told and report it, hold desired state as agents do, and dial as `daemonkit.session` does. What
they leave out is what real agents spend on themselves: the ledger, and (without --verify) hashing what they hold.

Commands on standard input, each answered by one JSON line: `status`, `sample SECONDS LOSS` (every node sends a usage sample
a second for each of its servers, in turn, for so long; each acknowledgement is lost with that probability), `quit`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from google.protobuf.json_format import ParseDict

from daemonkit.desired import encode, key_of, state_hash
from daemonkit.errors import NotLeader, SkyrackError
from daemonkit.rpc import CLIENT_OPTIONS, from_rpc_error
from daemonkit.session import BACKOFF_FIRST_S, BACKOFF_MAX_S, GOOD_SESSION_S, SPREAD_S
from seeded import inventory_of
from skyrack.v1 import agent_pb2 as pb
from skyrack.v1 import agent_pb2_grpc

KINDS = {"computed": pb.AGENT_KIND_COMPUTED, "networkd": pb.AGENT_KIND_NETWORKD}
POWERS = {
    pb.POWER_PREPARED: pb.OBSERVED_STATE_READY,
    pb.POWER_RUNNING: pb.OBSERVED_STATE_RUNNING,
    pb.POWER_STOPPED: pb.OBSERVED_STATE_STOPPED,
}
SAMPLES_A_BATCH = 10
RESENT_AFTER_S = 15.0
GREETING_MAX_S = 60.0  # more than agents have: here a thousand nodes share one machine with the controller


@dataclass
class Totals:
    """Of all nodes of this process."""

    in_session: int = 0
    deltas: int = 0
    objects: int = 0
    resyncs: int = 0
    mismatches: int = 0
    epochs: set[int] = field(default_factory=set)
    leaders_dialled: int = 0
    welcomed_at: list[float] = field(default_factory=list)  # monotonic
    samples: int = 0
    batches_again: int = 0
    cpu_ns: dict[str, int] = field(default_factory=dict)  # server -> counter that was told last


class Agent:
    """One session after another."""

    def __init__(self, number: int, kind: str, options: argparse.Namespace, totals: Totals) -> None:
        self._kind, self._options, self._totals = kind, options, totals
        self._name = f"n{number:04}"
        self._inventory = ParseDict(inventory_of(number, kind), pb.Inventory())
        self._pems = [(options.tls / file).read_bytes() for file in ("ca.pem", "node.key", f"{self._name}.pem")]
        self._controllers = list(options.controllers)
        self._bodies: dict[str, bytes] = {}
        self._hash = state_hash({})  # of the bodies, as the controller says
        self._guests: dict[str, pb.ServerSpec] = {}
        self._ports: set[str] = set()
        self._epoch = self._generation = self._report_seq = self._nodes = 0
        self._spool: list[pb.Sample] = []
        self._sample_seq = 0
        self._loss = 0.0
        self._acked = asyncio.Event()
        self._spooled = asyncio.Event()
        self._last_said_s = 0.0

    # ---- dialling, as daemonkit.session does

    async def run(self) -> None:
        backoff_s, turn, hint = BACKOFF_FIRST_S, 0, ""
        await asyncio.sleep(random.uniform(0.0, self._options.nodes * len(KINDS) * SPREAD_S))
        while True:
            address = hint or self._controllers[turn % len(self._controllers)]
            turn += not hint
            self._began_s: float | None = None
            error: SkyrackError | None = None
            try:
                await self._converse(address)
            except SkyrackError as why:
                error = why
            except Exception as why:
                print(f"{self._name}/{self._kind}: {why!r}", file=sys.stderr)
            lasted_s = 0.0 if self._began_s is None else time.monotonic() - self._began_s
            hint = error.leader if isinstance(error, NotLeader) and error.leader != address and not hint else ""
            if hint:
                continue
            if lasted_s >= GOOD_SESSION_S:
                turn = 1
                wait_s, backoff_s = max(BACKOFF_FIRST_S, self._nodes * SPREAD_S), BACKOFF_FIRST_S
            else:
                wait_s, backoff_s = backoff_s, min(backoff_s * 2, BACKOFF_MAX_S)
            await asyncio.sleep(random.uniform(0.0, wait_s))

    async def _converse(self, address: str) -> None:
        ca, key, certificate = self._pems
        channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(ca, key, certificate), options=CLIENT_OPTIONS)
        try:
            async with channel:
                self._call = agent_pb2_grpc.AgentServiceStub(channel).Session()
                self._writing = asyncio.Lock()
                async with asyncio.timeout(GREETING_MAX_S):
                    await self._greet()
                await self._talk()
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        except (asyncio.InvalidStateError, TimeoutError):
            raise SkyrackError("the call is over, or nobody answers") from None

    async def _say(self, **body: object) -> None:
        async with self._writing:
            await self._call.write(pb.AgentMessage(**body))  # type: ignore[arg-type]
        self._last_said_s = time.monotonic()

    async def _hear(self) -> pb.ControllerMessage:
        message = await self._call.read()
        if not isinstance(message, pb.ControllerMessage):
            raise SkyrackError("the stream ended")
        return message

    async def _greet(self) -> None:
        await self._say(hello=pb.Hello(
            kind=KINDS[self._kind], node=self._name, version="0", highest_epoch=self._epoch, boot_id="simulated",
            inventory=self._inventory, desired_epoch=self._epoch, desired_generation=self._generation,
            desired_hash=self._hash,
        ))  # fmt: skip
        first = await self._hear()
        self._welcome, self._epoch = first.welcome, first.epoch
        self._nodes = first.welcome.nodes
        self._controllers = list(dict.fromkeys([*first.welcome.controllers, *self._options.controllers]))
        self._began_s = time.monotonic()
        self._totals.welcomed_at.append(self._began_s)
        self._totals.epochs.add(first.epoch)

    async def _talk(self) -> None:
        self._totals.in_session += 1
        tasks = [asyncio.create_task(work) for work in (self._listen(), self._beat(), self._ship())]
        try:
            await self._report(list(self._observed(self._bodies)), whole=True)
            done, _rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._totals.in_session -= 1
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _beat(self) -> None:
        interval_s = self._welcome.heartbeat_interval_ms / 1000
        while True:
            await asyncio.sleep(max(0.01, self._last_said_s + interval_s - time.monotonic()))
            if time.monotonic() - self._last_said_s >= interval_s:
                await self._say(heartbeat=pb.Heartbeat())

    async def _listen(self) -> None:
        while True:
            message = await self._hear()
            match message.WhichOneof("body"):
                case "desired":
                    await self._obey(message.desired)
                case "task":
                    await self._say(task_result=pb.TaskResult(task_id=message.task.task_id, ok=True))
                case "telemetry_ack" if random.random() >= self._loss:
                    self._spool = [s for s in self._spool if s.seq > message.telemetry_ack.seq]
                    self._acked.set()

    # ---- what is desired is done at once

    async def _obey(self, delta: pb.DesiredState) -> None:
        self._totals.deltas += 1
        self._totals.objects += len(delta.put) + len(delta.remove)
        if delta.base and delta.base != self._generation:
            self._totals.resyncs += 1
            await self._say(resync=pb.Resync(why="a delta is missing"))
            return
        if not delta.base and not delta.same:
            self._bodies.clear()
            self._guests.clear()
            self._ports.clear()
        for key in delta.remove:
            self._bodies.pop(key, None)
            self._ports.discard(key.removeprefix("port/"))
        changed = {}
        for spec in delta.put:
            changed[key_of(spec)] = self._bodies[key_of(spec)] = encode(spec)
        self._generation, self._hash = delta.generation, delta.hash
        if self._options.verify and state_hash(self._bodies) != delta.hash:
            self._totals.mismatches += 1
        if observed := list(self._observed(changed)):
            await self._report(observed)

    def _observed(self, bodies: dict[str, bytes]) -> list[pb.ObservedObject]:
        found = []
        for key, body in bodies.items():
            kind, _, name = key.partition("/")
            if kind == "server":
                found.append(self._guest(name, pb.DesiredObject.FromString(body).server))
            elif kind == "port":
                self._ports.add(name)
                found.append(pb.ObservedObject(id=name, port=pb.ObservedPort(state=pb.OBSERVED_STATE_READY)))
        return found

    def _guest(self, name: str, spec: pb.ServerSpec) -> pb.ObservedObject:
        if spec.absent:
            self._guests.pop(name, None)
            return pb.ObservedObject(id=name, server=pb.ObservedServer(state=pb.OBSERVED_STATE_GONE))
        seen = pb.ObservedServer(state=POWERS[spec.power], attached=[d.attachment_id for d in spec.disks])
        if name not in self._guests and spec.power == pb.POWER_RUNNING:
            for milestone in ("image", "disk", "defined", "running"):
                seen.milestones.add(name=milestone).time.GetCurrentTime()
        self._guests[name] = spec
        return pb.ObservedObject(id=name, server=seen)

    async def _report(self, objects: list[pb.ObservedObject], whole: bool = False) -> None:
        self._report_seq += 1
        report = pb.Report(seq=self._report_seq, epoch=self._epoch, generation=self._generation, whole=whole, objects=objects)
        await self._say(report=report)

    # ---- telemetry, exactly once

    async def sample(self, seconds: float, loss: float) -> None:
        """One sample a second; all of them are acknowledged when this returns."""
        if self._kind != "computed" or not self._guests:
            return
        self._loss = loss
        guests, until = sorted(self._guests), time.monotonic() + seconds
        await asyncio.sleep(random.random())
        while time.monotonic() < until:
            self._sample_seq += 1
            server_id = guests[self._sample_seq % len(guests)]
            cpu_ns = self._totals.cpu_ns[server_id] = self._totals.cpu_ns.get(server_id, 0) + random.randrange(1_000_000)
            sample = pb.Sample(seq=self._sample_seq, server_id=server_id, cpu_ns=cpu_ns, memory_kib=1024)
            sample.wall_time.GetCurrentTime()
            self._spool.append(sample)
            self._totals.samples += 1
            if len(self._spool) >= SAMPLES_A_BATCH:
                self._spooled.set()
            await asyncio.sleep(1.0)
        self._loss = 0.0
        while self._spool:
            self._spooled.set()
            await asyncio.sleep(0.5)

    async def _ship(self) -> None:
        while True:
            await self._spooled.wait()
            self._spooled.clear()
            if not self._spool:
                continue
            self._acked.clear()
            await self._say(telemetry=pb.Telemetry(incarnation="simulated", samples=self._spool))
            try:
                async with asyncio.timeout(RESENT_AFTER_S):
                    await self._acked.wait()
            except TimeoutError:
                self._totals.batches_again += 1
                self._spooled.set()


def status(totals: Totals) -> dict[str, object]:
    values = {name: getattr(totals, name) for name in Totals.__dataclass_fields__ if name not in ("welcomed_at", "cpu_ns")}
    recent = sorted(totals.welcomed_at)[-totals.in_session or len(totals.welcomed_at) :]
    return {
        **values, "epochs": sorted(totals.epochs), "now": time.monotonic(), "last_welcome": recent[-1] if recent else 0.0,
        "cpu_ns": sum(totals.cpu_ns.values()), "welcomes": len(totals.welcomed_at),
    }  # fmt: skip


async def main(options: argparse.Namespace) -> None:
    gc.disable()  # it would look at a thousand nodes again and again
    totals = Totals()
    agents = [Agent(number, kind, options, totals) for number in range(options.nodes) for kind in KINDS]
    running = [asyncio.create_task(agent.run()) for agent in agents]
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().split():
        if line[0] == "quit":
            break
        if line[0] == "sample":
            await asyncio.gather(*(agent.sample(float(line[1]), float(line[2])) for agent in agents))
        print(json.dumps(status(totals)), flush=True)
    for task in running:
        task.cancel()
    await asyncio.wait(running)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tls", type=Path, required=True)
    parser.add_argument("--controllers", type=lambda text: text.split(","), required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--verify", action="store_true", help="hash what is held after every delta")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
