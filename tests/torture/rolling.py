"""Three controllers under load are upgraded and rolled back, one after the other.

    python -m tests.torture.rolling [--seed S]

Prints what was done, how long calls stood still in each restart, and a verdict. Ends with 1 when a call failed, an acknowledged
one was lost, the copies differ, or software led that should have waited.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from contextlib import suppress

import apsw

from controllerd.store.migration import migrations
from skyrack.client import Cloud
from skyrack.client.errors import Conflict
from tests.torture.history import DONE, End, judge
from tests.torture.load import Load
from tests.torture.run import progress, settle, working
from tests.torture.upgraded import PRESENT, RENAMED, WIDER
from tests.torture.world import FENCED, NAMES, World, apart

UPGRADED, INCOMPATIBLE = "tests.torture.upgraded", "tests.torture.incompatible"
KNOWS = {FENCED: PRESENT, UPGRADED: PRESENT + 1, INCOMPATIBLE: PRESENT + 2}
CAUGHT_UP_S = 60.0
SETTLE_S = 60.0
REFUSED_S = 30.0
HAND_OVERS_MAX = 5
LOG_SHOWN = 4000


class Rolling:
    """`gaps_s`: the longest time without an answer, for each restart or hand-over of a leader."""

    def __init__(self, world: World, cloud: Cloud, load: Load) -> None:
        self._world, self._cloud, self._load = world, cloud, load
        self.gaps_s: list[float] = []

    async def restart(self, name: str, module: str) -> None:
        """As `systemctl restart` after the new software was put in place."""
        led = (await self._cloud.cluster.get()).leader == name
        began_s = time.monotonic()
        process = self._world.controllers[name]
        code = await process.end(signal.SIGTERM)
        assert code == 0, f"{name} ended with {code}: {process.log[-LOG_SHOWN:]}"
        took = f", had led, ended in {time.monotonic() - began_s:.1f} s" if led else ""
        await self.start(name, module)
        await self._tell(f"{name} restarted as {module}{took}", began_s, led)

    async def start(self, name: str, module: str) -> None:
        self._world.install(name, module)
        self._world.controllers[name].start()
        await self._caught_up(name, KNOWS[module])

    async def hand_over(self, name: str) -> None:
        """However often a machine that is very busy moves the lead elsewhere."""
        began_s = time.monotonic()
        for _ in range(HAND_OVERS_MAX):
            with suppress(Conflict):  # it leads by now
                await self._cloud.cluster.transfer(name)
            await self._tell(f"handed over to {name}", began_s, True)
            if await self.leader() == name:
                return
        raise AssertionError(f"{name} does not take the lead")

    async def leader(self) -> str:
        return (await self._cloud.cluster.get()).leader

    async def schema(self) -> int:
        return (await self._cloud.cluster.get()).schema

    async def refused(self, name: str, module: str) -> None:
        """Software that is too old ends at once and says why."""
        self._world.install(name, module)
        process = self._world.controllers[name]
        before, began_s = len(process.log), time.monotonic()
        process.start()
        code = await process.ended(REFUSED_S)
        said = process.log[before:]
        assert code == 1 and "install the newer software" in said, f"{name} ended with {code}: {said}"
        await self._tell(f"{name} as {module} refused", began_s, False)

    async def _caught_up(self, name: str, schema: int) -> None:
        async with asyncio.timeout(CAUGHT_UP_S):
            while True:
                view = await self._cloud.cluster.get()
                here = [c for c in view.controllers if c.name == name and c.schema == schema]
                if here and here[0].applied_seq >= view.seq - 200:
                    return
                await asyncio.sleep(0.1)

    async def _tell(self, what: str, began_s: float, led: bool) -> None:
        await progress(self._load, time.monotonic())
        answers = sorted(o.answered_s for o in self._load.answered_after(began_s))
        gap_s = max(later - earlier for earlier, later in zip([began_s, *answers], answers, strict=False))
        if led:
            self.gaps_s.append(gap_s)
        view = await self._cloud.cluster.get()
        told = f"{what}; {view.leader} leads, schema {view.schema}; longest gap {gap_s:.2f} s"
        print(told, file=sys.stderr, flush=True)


async def readable(rolling: Rolling) -> None:
    """Up and down again, while the state goes to the newer schema and stays there."""
    leader = await rolling.leader()
    first, other = (name for name in NAMES if name != leader)
    await rolling.restart(first, UPGRADED)
    assert await rolling.schema() == PRESENT
    await rolling.hand_over(first)
    assert await rolling.schema() == PRESENT + 1
    await rolling.hand_over(other)  # older software, on the newer schema
    for name in (leader, other):
        await rolling.restart(name, UPGRADED)
    for name in NAMES:
        await rolling.restart(name, FENCED)
    assert await rolling.schema() == PRESENT + 1


async def unreadable(rolling: Rolling) -> None:
    """Nobody is upgraded who could not follow any more."""
    last = await rolling.leader()
    upgraded: list[str] = []
    for name in (name for name in NAMES if name != last):
        await rolling.restart(name, INCOMPATIBLE)
        upgraded.append(name)
        assert await rolling.leader() not in upgraded and await rolling.schema() == PRESENT + 1
    await rolling.restart(last, INCOMPATIBLE)
    assert await rolling.schema() == PRESENT + 2


async def too_late(rolling: Rolling, world: World) -> None:
    """A controller that missed the upgrade."""
    leader = await rolling.leader()
    name = next(name for name in NAMES if name != leader)
    await world.controllers[name].end()
    await rolling.refused(name, FENCED)
    assert await rolling.leader() != name
    await rolling.start(name, INCOMPATIBLE)


async def roll(seed: int) -> tuple[Load, End, Rolling, World]:
    async with World(FENCED) as world, world.connect() as cloud:
        load = Load(await world.prepare(cloud))
        rolling = Rolling(world, cloud, load)
        async with working(world, load, seed):
            await readable(rolling)
            await unreadable(rolling)
            await too_late(rolling, world)
        end = await settle(world, load, SETTLE_S, [*migrations(), WIDER, RENAMED])
        _check_notes(world)
        return load, end, rolling, world


def _check_notes(world: World) -> None:
    """Newer software wrote what it brought; older software left it alone, and took it away with what it belongs to."""
    connection = apsw.Connection(str(world.home(NAMES[0]) / "data/state.db"), flags=apsw.SQLITE_OPEN_READONLY)
    sql = "SELECT comment, name = note FROM keypair LEFT JOIN keypair_remark ON keypair_id = id"
    found = set(connection.execute(sql))
    of_nothing = list(connection.execute("SELECT 1 FROM keypair_remark WHERE keypair_id NOT IN (SELECT id FROM keypair)"))
    connection.close()
    assert found <= {("of the past", None), ("of the future", 1)} and not of_nothing, found


def main() -> int:
    apart("tests.torture.rolling")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    load, end, rolling, _world = asyncio.run(roll(parser.parse_args().seed))
    verdict = judge(load.operations, end)
    failed = [o for o in load.operations if o.outcome != DONE]
    for line in [
        *verdict.lost,
        *verdict.doubled,
        *verdict.reordered,
        *verdict.diverged,
        *(f"{o.name}: {o.why}" for o in failed),
    ][:20]:
        print(line, file=sys.stderr)
    gaps = ", ".join(f"{gap_s:.2f}" for gap_s in sorted(rolling.gaps_s))
    print(
        f"{verdict.acknowledged} acknowledged, {len(failed)} failed, {len(verdict.lost)} lost, {len(verdict.doubled)} doubled, "
        f"{len(verdict.reordered)} reordered, {len(verdict.diverged)} diverged; gaps {gaps} s",
        file=sys.stderr,
    )
    return 0 if verdict.good and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
