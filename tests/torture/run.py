"""Torture: faults under load, and a verdict on what clients were told.

    python -m tests.torture.run --rounds 14 [--seed S] [--faults killed,stopped] [--minutes M] [--json] [--unfenced]

Ends with 1 when anything acknowledged was lost, doubled or reordered, or the three copies differ. `--unfenced` runs controllers
without their fences: there it must end with 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass

import apsw

from controllerd.store.migration import Migration
from controllerd.store.replica import Replica
from daemonkit.runtime import system_runtime
from skyrack.client import Cloud
from skyrack.client.errors import CloudError
from tests.torture.fault import FAULTS
from tests.torture.history import End, Event, Verdict, judge
from tests.torture.load import Client, Load
from tests.torture.world import FENCED, NAMES, UNFENCED, World, apart

CLIENTS = 6
CALM_S = 1.5  # between faults
PROGRESS_S = 90.0
SETTLE_S = 120.0
UNFENCED_SETTLE_S = 10.0  # they will hardly settle
TABLES = {"server": "server", "keypair": "keypair"}


@dataclass(frozen=True)
class Round:
    """`gap_s`: the longest time without an acknowledged call, from the fault until two seconds after its end."""

    fault: str
    leader: str
    next_leader: str
    acknowledged: int
    gap_s: float


@dataclass(frozen=True)
class Report:
    seed: int
    rounds: Sequence[Round]
    unknown: int
    verdict: Verdict


async def torture(seed: int, faults: Sequence[str], module: str = FENCED, minutes: float = 0.0) -> Report:
    """One round for each of `faults`, again from the first while `minutes` are not over."""
    dice, began_s = random.Random(seed), time.monotonic()
    async with World(module) as world, world.connect() as cloud:
        load = Load(await world.prepare(cloud))
        rounds: list[Round] = []
        async with working(world, load, seed):
            while not rounds or time.monotonic() - began_s < minutes * 60:
                for name in faults:
                    rounds.append(await _round(world, load, name, dice))
                    print(_line(rounds[-1]), file=sys.stderr, flush=True)
                if minutes == 0:
                    break
            await progress(load, time.monotonic())
        end = await settle(world, load, SETTLE_S if module == FENCED else UNFENCED_SETTLE_S)
        unknown = sum(o.outcome != "done" for o in load.operations)
        return Report(seed, rounds, unknown, judge(load.operations, end))


@asynccontextmanager
async def working(world: World, load: Load, seed: int, first: int = 0) -> AsyncIterator[None]:
    """Clients, each with a connection of its own, until the end of the block; what they are at then is finished. `first`: the
    lowest of their numbers, which are in the names that they give."""
    async with AsyncExitStack() as stack:
        work = []
        for number in range(first, first + CLIENTS):
            cloud = await stack.enter_async_context(world.connect())
            work.append(asyncio.ensure_future(Client(number, seed, cloud, load).run()))
        try:
            yield
        finally:
            load.stopping = True
            await asyncio.gather(*work)


async def _round(world: World, load: Load, name: str, dice: random.Random) -> Round:
    leader = await led(world)
    began_s = time.monotonic()
    await FAULTS[name](world, leader, dice)
    await progress(load, time.monotonic())
    await asyncio.sleep(CALM_S)
    answered = sorted(o.answered_s for o in load.answered_after(began_s))
    gap_s = max(later - earlier for earlier, later in zip([began_s, *answered], answered, strict=False))
    return Round(name, leader, await led(world), len(answered), round(gap_s, 2))


async def led(world: World) -> str:
    async with asyncio.timeout(PROGRESS_S):
        while not (leader := await world.leader()):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.2)
    return leader


async def progress(load: Load, moment_s: float) -> None:
    """Until calls that began after `moment_s` are answered. Errors: TimeoutError: the cloud did not come back."""
    async with asyncio.timeout(PROGRESS_S):
        while sum(o.sent_s > moment_s for o in load.answered_after(moment_s)) < CLIENTS:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.1)


# ---- the end


async def settle(world: World, load: Load, limit_s: float, known: Sequence[Migration] | None = None) -> End:
    """Lets unfinished work end, stops everything, and reads the three copies. `known`: of the software that wrote them."""
    with suppress(TimeoutError, CloudError):  # what is not finished shows in the copies
        async with world.connect() as cloud, asyncio.timeout(limit_s):
            await _idle(cloud)
            await world.end_agents()
            await _level(cloud)
    await world.end()
    copies = {name: await _copy(world, name, known) for name in NAMES}
    newest = max(copies, key=lambda name: copies[name][0])
    connection = apsw.Connection(str(world.home(newest) / "data/state.db"), flags=apsw.SQLITE_OPEN_READONLY)
    sql = "SELECT seq, kind, resource_id, message FROM event WHERE resource_kind IN ('server', 'keypair') ORDER BY seq"
    events = [Event(*row) for row in connection.execute(sql)]
    alive = {kind: [row[0] for row in connection.execute(f"SELECT name FROM {table}")] for kind, table in TABLES.items()}
    connection.close()
    return End(events, alive, {name: f"seq {seq} {digest}" for name, (seq, digest) in copies.items()})


async def _idle(cloud: Cloud) -> None:
    while [task async for task in cloud.tasks.list(all_projects=True, unfinished=True)]:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.3)


async def _level(cloud: Cloud) -> None:
    """Until no controller is behind, twice in a row the same."""
    last: object = None
    while True:
        view = await cloud.cluster.get()
        seqs = {controller.name: controller.applied_seq for controller in view.controllers}
        if len(seqs) == len(NAMES) and len(set(seqs.values())) == 1 and seqs == last:
            return
        last = seqs
        await asyncio.sleep(2.5)


async def _copy(world: World, name: str, known: Sequence[Migration] | None) -> tuple[int, str]:
    """(last entry, digest) of what is on its disk."""
    replica = Replica(world.home(name) / "data/state.db", system_runtime(), known)
    await replica.open()
    try:
        return replica.position.seq, (await replica.digest())[:16]
    finally:
        await replica.close()


def _line(one: Round) -> str:
    return f"{one.fault:20} {one.leader} -> {one.next_leader}  {one.acknowledged:5} acknowledged, longest gap {one.gap_s:.2f} s"


def main() -> int:
    apart("tests.torture.run")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=len(FAULTS))
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--unfenced", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 31) if arguments.seed is None else arguments.seed
    print(f"torture: seed {seed}", file=sys.stderr)
    names = arguments.faults.split(",")
    rounds = [names[number % len(names)] for number in range(arguments.rounds)]
    report = asyncio.run(torture(seed, rounds, UNFENCED if arguments.unfenced else FENCED, arguments.minutes))
    verdict = report.verdict
    if arguments.json:
        print(json.dumps(asdict(report)))
    found = {"lost": verdict.lost, "doubled": verdict.doubled, "reordered": verdict.reordered, "diverged": verdict.diverged}
    for what, lines in found.items():
        for line in lines[:10]:
            print(f"{what}: {line}", file=sys.stderr)
    counts = ", ".join(f"{len(lines)} {what}" for what, lines in found.items())
    print(
        f"{len(report.rounds)} rounds, {verdict.acknowledged} acknowledged, {report.unknown} unknown: {counts}", file=sys.stderr
    )
    return 0 if verdict.good else 1


if __name__ == "__main__":
    sys.exit(main())
