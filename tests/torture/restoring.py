"""Three controllers are brought back from a backup that was made under load, while their node goes on.

    python -m tests.torture.restoring [--seed S]

Ends with 1, and says why, when something that was acknowledged before the backup is missing, something from after it is there,
or the cloud does not work as before: agents, followers, a change of the leader.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from skyrack.client import Cloud
from tests.torture.history import UNKNOWN, End, Operation, Verdict, judge
from tests.torture.load import Load
from tests.torture.run import CLIENTS, SETTLE_S, led, progress, settle, working
from tests.torture.world import NAMES, NODE, World, apart

LEADS_S = 60.0
ENOUGH = 60  # calls, before the backup and between it and the loss


@dataclass
class Backup:
    """Taken at some moment between two, on the monotonic clock."""

    file: Path
    began_s: float
    ended_s: float = 0.0


@dataclass
class Found:
    """`before`, `after`: verdicts on what was acknowledged before the backup, and after the restore."""

    before: Verdict
    after: Verdict
    undone: list[str] = field(default_factory=list)
    """What began after the backup and is there all the same."""


async def story(seed: int) -> Found:
    async with World() as world, world.connect() as cloud:
        needs = await world.prepare(cloud)
        first, second = Load(needs), Load(needs)
        async with working(world, first, seed):
            await _answered(first, ENOUGH)
            backup = await _back_up(world, cloud)
            await _answered(first, len(first.answered_after(0.0)) + ENOUGH)
        epoch = (await cloud.cluster.get()).epoch
        await _restore(world, str(backup.file))
        for controller in world.controllers.values():
            controller.start()
        await _let_go(world, cloud, epoch)
        async with working(world, second, seed, first=CLIENTS):
            await progress(second, time.monotonic())
            await _hand_over(world)
            await progress(second, time.monotonic())
        await _launched(cloud, second)
        end = await settle(world, second, SETTLE_S)
        return _judge(first, second, backup, end)


async def _back_up(world: World, cloud: Cloud) -> Backup:
    backup = Backup(world.directory / "cloud.backup", time.monotonic())
    await cloud.cluster.backup(backup.file)
    backup.ended_s = time.monotonic()
    return backup


async def _answered(load: Load, count: int) -> None:
    async with asyncio.timeout(SETTLE_S):
        while len(load.answered_after(0.0)) < count:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.1)


async def _restore(world: World, file: str) -> None:
    """As docs/backup.md says, with the mistakes that one can make."""
    await world.controllers["c1"].end()
    await led(world)
    await asyncio.to_thread(_refused, world, "c1", "restore", file, "--replace")  # another one leads
    await asyncio.gather(*(world.controllers[name].end() for name in NAMES[1:]))
    await asyncio.to_thread(_refused, world, "c1", "restore", file)
    await asyncio.to_thread(world.act, "c1", "restore", file, "--replace")
    await _ends_by_itself(world, "c2")  # it has a copy of the former cloud
    for name in NAMES[1:]:
        await asyncio.to_thread(world.act, name, "restore", "--from-leader")


async def _ends_by_itself(world: World, name: str) -> None:
    controller = world.controllers[name]
    controller.start()
    async with asyncio.timeout(LEADS_S):
        while controller.alive:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.2)
    assert await controller.end() != 0 and "restore --from-leader" in controller.log, controller.log[-2000:]


def _refused(world: World, name: str, *words: str) -> None:
    try:
        world.act(name, *words)
    except subprocess.CalledProcessError:
        return
    raise AssertionError(f"{name} did what it must refuse: {' '.join(words)}")


async def _let_go(world: World, cloud: Cloud, epoch_before: int) -> None:
    """Until the node is told what to do again. It has servers that were made after the backup: somebody has to say so."""
    assert await led(world) == "c1", "no other has a state"
    async with asyncio.timeout(LEADS_S):
        while True:
            view = await cloud.cluster.get()
            assert view.recovery is not None and view.epoch > epoch_before
            if not view.recovery.held_nodes:
                return
            differing = [d async for d in cloud.cluster.differences()]
            if all(d.owner == "operator" for d in differing if d.kind == "node_held"):
                assert any(d.kind == "foreign_server" for d in differing), "the load after the backup made none"
                await cloud.cluster.release()
            await asyncio.sleep(0.5)


async def _hand_over(world: World) -> None:
    """`skyrack cluster transfer` returns when the other one leads."""
    before = await led(world)
    successor = next(name for name in NAMES if name != before)
    told = json.loads(await asyncio.to_thread(world.skyrack, "cluster", "transfer", successor, "--json"))
    assert told["leader"] == successor and await world.leader() == successor, told
    anybody = json.loads(await asyncio.to_thread(world.skyrack, "cluster", "transfer", "--json"))
    assert anybody["leader"] != successor and anybody["epoch"] > told["epoch"]


async def _launched(cloud: Cloud, load: Load) -> None:
    """The node does what the restored cloud tells it."""
    assert (await cloud.nodes.get(NODE)).state == "UP"
    made = {o.name for o in load.operations if o.kind == "server"}
    async with asyncio.timeout(SETTLE_S):
        while True:
            states = {s.state async for s in cloud.servers.list() if s.name in made}
            if states <= {"ACTIVE"}:
                return
            assert "ERROR" not in states
            await asyncio.sleep(0.3)


# ---- the end


def _judge(first: Load, second: Load, backup: Backup, end: End) -> Found:
    known = [_as_of(o, backup) for o in first.operations if o.sent_s < backup.ended_s]
    after = judge(second.operations, end)
    return Found(judge(known, end), after, list(_undone(first.operations, backup, end)))


def _as_of(operation: Operation, backup: Backup) -> Operation:
    """What was answered while the backup was made may be in it or not."""
    return operation if operation.answered_s < backup.began_s else replace(operation, outcome=UNKNOWN)


def _undone(operations: Iterable[Operation], backup: Backup, end: End) -> Iterable[str]:
    events = {(event.kind, event.name) for event in end.events}
    for o in operations:
        if o.sent_s > backup.ended_s and (f"{o.kind}.{o.act}", o.name) in events:
            yield f"{o.act} of {o.kind} {o.name}"


def main() -> int:
    apart("tests.torture.restoring")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=7)
    found = asyncio.run(story(parser.parse_args().seed))
    told = f"{found.before.acknowledged} acknowledged before the backup, {found.after.acknowledged} after the restore"
    print(told, found, sep="\n", file=sys.stderr)
    return 0 if found.before.good and found.after.good and not found.undone else 1


if __name__ == "__main__":
    sys.exit(main())
