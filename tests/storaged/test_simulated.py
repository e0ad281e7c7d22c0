"""The agent with the fake driver, no sockets, and a storage daemon that fails and dies: it ends as wanted all the same."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from daemonkit import desired
from daemonkit.runtime import InlineThreads, Runtime, SystemClock
from skyrack.v1 import agent_pb2
from storaged import reconcile
from storaged.drivers.fake import FakeVolumes
from storaged.images.store import ImageStore
from storaged.reconcile import Reconciler
from storaged.session import Addresses, StorageAgent
from storaged.spec import Image, Observed, State
from tests.storaged.rig import HANG_S, export, volume


class Stage:
    """A reconciler over fake volumes; what it tells is kept."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.runtime = Runtime(SystemClock(), random.Random(seed), lambda name, workers: InlineThreads())
        self.driver = FakeVolumes(self.runtime, delay_s_max=0.002, fault_rate=0.2)
        self.images = ImageStore(directory, 0, self.runtime)
        self.told: dict[str, Observed] = {}
        self.reconciler = Reconciler(self.driver, self.images, self._fetch, self.runtime, self.told.update)
        self.agent = StorageAgent(Addresses("store-1:7730", "store-1", 10809), self.driver, self.images, self.reconciler)
        self.mirror = desired.Mirror()

    async def _fetch(self, image: Image) -> None:
        raise AssertionError(f"nobody asked for {image}")

    def want(self, *objects: agent_pb2.DesiredObject, forget: tuple[str, ...] = ()) -> None:
        bodies = {key: body for key, body in self.mirror.bodies.items() if key not in forget}
        bodies |= {desired.key_of(spec): desired.encode(spec) for spec in objects}
        changed = {key for key in bodies.keys() | self.mirror.bodies.keys() if bodies.get(key) != self.mirror.bodies.get(key)}
        self.mirror = desired.Mirror.restore(1, self.mirror.generation + 1, bodies)
        self.agent.desired_changed(self.mirror, changed)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(HANG_S):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "RETRY_FIRST_S", 0.002)
    monkeypatch.setattr(reconcile, "RETRY_MAX_S", 0.01)


@pytest.mark.parametrize("seed", range(20))
async def test_it_ends_as_wanted_whatever_fails(tmp_path: Path, seed: int, quick: None) -> None:
    stage = Stage(tmp_path, seed)
    await stage.images.open()
    dice = random.Random(seed)
    running = asyncio.create_task(stage.reconciler.run())
    try:
        for _ in range(30):
            name = f"v{dice.randrange(5)}"
            attachment = f"a{dice.randrange(5)}"
            match dice.randrange(6):
                case 0 | 1:
                    stage.want(volume(name, gib=dice.randrange(1, 4)))
                case 2 | 3:
                    stage.want(export(attachment, name, f"x{dice.randrange(3)}", f"host-{dice.randrange(3)}"))
                case 4:
                    stage.want(forget=(f"export/{attachment}",))
                case 5:
                    stage.want(volume(name, absent=True))
            if dice.random() < 0.1:
                stage.driver.crash()
            await asyncio.sleep(dice.random() * 0.01)
        await stage.until(lambda: settled(stage) and agrees(stage))
        assert {o.WhichOneof("observed") for o in stage.agent.observe()} <= {"volume", "export"}
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_what_nobody_wants_and_somebody_took_away_is_told_to_be_gone(tmp_path: Path, quick: None) -> None:
    stage = Stage(tmp_path, 0)
    await stage.images.open()
    running = asyncio.create_task(stage.reconciler.run())
    try:
        stage.want(volume("v"))
        await stage.until(lambda: stage.told.get("volume/v") == Observed(State.READY))
        stage.want(forget=("volume/v",))
        await stage.until(lambda: stage.told["volume/v"].foreign)
        stage.driver.sizes.clear()
        await stage.reconciler.look_around()
        await stage.until(lambda: stage.told["volume/v"].state is State.GONE)
        assert stage.reconciler.observe() == {}
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def settled(stage: Stage) -> bool:
    wanted = stage.reconciler.desired
    served = {export.tag for exports in stage.driver.exports.values() for export in exports.values()}
    live = {i for i, v in wanted.volumes.items() if not v.absent}
    held_back = {i for i, v in wanted.volumes.items() if v.absent and wanted.exports_of(i) and i in stage.driver.sizes}
    expected = {export.tag for export in wanted.exports.values() if export.volume_id in live}
    kept = {export.tag for export in wanted.exports.values() if export.volume_id in held_back}
    sizes_fit = all(stage.driver.sizes.get(i, 0) >= wanted.volumes[i].size_bytes for i in live)
    told = all(stage.told.get(f"export/{e.id}") == Observed(State.READY) for e in wanted.exports.values() if e.tag in expected)
    return sizes_fit and told and expected <= served <= expected | kept and set(stage.driver.sizes) == live | held_back


def agrees(stage: Stage) -> bool:
    """What was told last is what is, for the whole report too."""
    whole = {key: seen for key, seen in stage.reconciler.observe().items() if seen.state is not State.GONE}
    latest = {key: seen for key, seen in stage.told.items() if seen.state is not State.GONE}
    return {key: seen.state for key, seen in latest.items()} == {key: seen.state for key, seen in whole.items()}
