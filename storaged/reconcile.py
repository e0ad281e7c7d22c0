"""Brings volumes, exports and images to what is wanted. Level-triggered: acts on a change at once, looks at all regularly.

One unit of work is a volume with its exports, or one image; units go on side by side, the steps of one never do. A unit that
failed is tried again, later each time; a change of what is wanted tries at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping

from daemonkit.errors import CommandFailed, SkyrackError
from daemonkit.runtime import Runtime
from storaged import metric, plan
from storaged.drivers.base import VolumeDriver
from storaged.images.store import ImageStore
from storaged.plan import Grow, Make, Remove, Serve, Step, Unexport
from storaged.spec import Desired, Export, HeldVolume, Image, Observed, State, Volume

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 30.0
RETRY_FIRST_S = 0.5
RETRY_MAX_S = 30.0

Tell = Callable[[Mapping[str, Observed]], None]  # key "kind/id" -> how it is now
Fetch = Callable[[Image], Awaitable[None]]  # brings an image into the store from another node


class Reconciler:
    """`desired` is changed only by `desire`'s caller, in the same turn of the loop."""

    def __init__(self, driver: VolumeDriver, images: ImageStore, fetch: Fetch, runtime: Runtime, tell: Tell) -> None:
        self._driver, self._images, self._fetch = driver, images, fetch
        self._runtime, self._tell = runtime, tell
        self.desired = Desired()
        self.held: dict[str, HeldVolume] = {}
        self.reached = asyncio.Event()  # the driver was, once
        self._allowed: frozenset[str] | None = None  # None: not known
        self._wake = asyncio.Event()
        self._dirty: set[str] = set()  # units: "volume/<id>", "blob/<sha256>"
        self._busy: set[str] = set()
        self._worked: set[str] = set()  # units that changed while we looked around
        self._failures: dict[str, int] = {}
        self._faults: dict[str, str] = {}
        self._leaving: set[str] = set()  # exports that are wanted no more and not told to be gone yet
        self._told: dict[str, Observed] = {}
        self._owed: set[str] = set()  # keys whose state is told even if it is the same
        self._jobs: asyncio.TaskGroup
        images.changed = lambda sha256: self._mark([f"blob/{sha256}"])

    # ---- what is wanted

    def desire(self, changed: Iterable[str], former: Mapping[str, Export]) -> None:
        """`changed`: keys whose desired state is new. `former`: those of them that were exports, as they were."""
        for key in sorted(changed):
            kind, _, name = key.partition("/")
            self._owed.add(key)
            units = {key} if kind != "export" else set()
            if kind == "export":
                before, now = former.get(name), self.desired.exports.get(name)
                self._leaving.discard(name)
                if before and not now:
                    self._leaving.add(name)
                units = {f"volume/{export.volume_id}" for export in (before, now) if export}
                self._faults.pop(key, None)
            for unit in units:
                self._failures.pop(unit, None)
            self._mark(units)
            if key in self.desired.refused:
                self._publish({key: Observed(State.FAILED, self.desired.refused[key])})

    def _mark(self, units: Iterable[str]) -> None:
        self._dirty.update(units)
        self._wake.set()

    def lost(self) -> None:
        """The driver may serve less than was known."""
        self._allowed = None
        self.reached.set()
        self._jobs.create_task(self.look_around())

    # ---- the loop

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as self._jobs:
            self._jobs.create_task(self._driver.run(self.lost))
            await self.reached.wait()
            self._jobs.create_task(self._look_regularly())
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._pass()

    async def _look_regularly(self) -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            await self.look_around()

    async def look_around(self) -> None:
        """Everything on the node afresh."""
        self._worked = set(self._busy)
        try:
            found = await self._driver.held()
        except (SkyrackError, OSError) as error:
            log.error("can't look at the volumes", extra={"why": str(error)})
            return
        ids = found.keys() | self.held.keys()  # what was held and is not is to be told, too
        for volume_id in ids:
            if f"volume/{volume_id}" not in self._worked | self._busy:
                self._set_held(volume_id, found.get(volume_id))
        ids |= self.desired.volumes.keys() | {e.volume_id for e in self.desired.exports.values()}
        self._mark({f"volume/{i}" for i in ids} | {f"blob/{s}" for s in self._images.held.keys() | self.desired.blobs.keys()})

    async def _look(self, volume_id: str) -> None:
        try:
            self._set_held(volume_id, await self._driver.look(volume_id))
        except (SkyrackError, OSError) as error:
            log.error("can't look at a volume", extra={"volume": volume_id, "why": str(error)})

    def _set_held(self, volume_id: str, held: HeldVolume | None) -> None:
        if held is None:
            self.held.pop(volume_id, None)
        else:
            self.held[volume_id] = held

    async def _pass(self) -> None:
        units = self._dirty - self._busy
        self._dirty -= units
        if not await self._authorize():
            self._dirty |= units
            return
        for unit in sorted(units):
            kind, _, name = unit.partition("/")
            steps = self._plan(name) if kind == "volume" else []
            removal = kind == "blob" and plan.to_remove(self.desired.blobs.get(name), self._images.held.get(name))
            if steps or removal:
                self._busy.add(unit)
                self._jobs.create_task(self._work(unit, steps))
            if any(isinstance(step, Make | Grow) for step in steps) or not (steps or removal):
                self._publish(self._observe(unit))

    def _plan(self, volume_id: str) -> list[Step]:
        exports = self.desired.exports_of(volume_id)
        return plan.plan_volume(self.desired.volumes.get(volume_id), exports, self.held.get(volume_id))

    async def _authorize(self) -> bool:
        wanted = plan.clients(self.desired)
        if wanted == self._allowed:
            return True
        try:
            await self._driver.allow(wanted)
        except SkyrackError as error:
            log.error("can't tell the storage daemon its clients", extra={"why": error.message})
            self._jobs.create_task(self._retry([], RETRY_FIRST_S))
            return False
        self._allowed = wanted
        return True

    # ---- work on one unit

    async def _work(self, unit: str, steps: list[Step]) -> None:
        kind, _, name = unit.partition("/")
        failed = not await (self._do_all(name, steps) if kind == "volume" else self._remove_blob(name))
        if kind == "volume":
            await self._look(name)
        self._worked.add(unit)
        self._busy.discard(unit)
        self._wake.set()
        self._publish(self._observe(unit))
        if failed:
            tries = self._failures[unit] = self._failures.get(unit, 0) + 1
            delay_s = min(RETRY_FIRST_S * 2 ** (tries - 1), RETRY_MAX_S)
            self._jobs.create_task(self._retry([unit], delay_s + self._runtime.jitter_s(delay_s / 4)))
        else:
            self._failures.pop(unit, None)

    async def _retry(self, units: Iterable[str], delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        self._mark(units)

    async def _do_all(self, volume_id: str, steps: list[Step]) -> bool:
        """Whether all went well. An export that fails does not keep the others from being served."""
        well = True
        for step in steps:
            key = f"export/{step.export.id}" if isinstance(step, Serve) else f"volume/{volume_id}"
            fault = await self._attempt(volume_id, step)
            if fault:
                well = False
                self._faults[key] = fault
                if not isinstance(step, Serve):
                    return False
            else:
                self._faults.pop(key, None)
        return well

    async def _attempt(self, volume_id: str, step: Step) -> str:
        """Why it failed, or ""."""
        clock = asyncio.get_running_loop()
        name, start_s, fault = type(step).__name__.lower(), clock.time(), ""
        try:
            await self._do(volume_id, step)
        except CommandFailed as error:  # what a program said has paths in it: not for tenants
            log.error("refused", extra={"step": name, "volume": volume_id, "why": error.message})
            fault = f"the storage node can't {name} it; its log says why"
        except SkyrackError as error:
            fault = error.message
        except OSError as error:
            fault = error.strerror or type(error).__name__
        duration_s = clock.time() - start_s
        metric.STEP_S.labels(name, "failed" if fault else "ok").observe(duration_s)
        facts = {"step": name, "volume": volume_id, "ms": round(duration_s * 1000, 1)}
        if fault:
            log.warning("a step failed", extra={**facts, "why": fault})
        else:
            log.info("a step is done", extra=facts)
        return fault

    async def _do(self, volume_id: str, step: Step) -> None:
        match step:
            case Unexport():
                await self._driver.unexport(volume_id, step.tag)
            case Make():
                await self._make(step.volume)
            case Grow():
                await self._driver.grow(volume_id, step.size_bytes)
            case Serve():
                await self._driver.serve(step.export)
            case Remove():
                await self._driver.remove(volume_id)

    async def _make(self, volume: Volume) -> None:
        if volume.image is None:
            await self._driver.make(volume, None)
            return
        if volume.image.sha256 not in self._images.held:
            await self._fetch(volume.image)
        async with self._images.borrow(volume.image.sha256) as file:
            await self._driver.make(volume, file)

    async def _remove_blob(self, sha256: str) -> bool:
        key = f"blob/{sha256}"
        try:
            await self._images.remove(sha256)
        except SkyrackError as error:
            self._faults[key] = error.message
            return False
        except OSError as error:
            self._faults[key] = error.strerror or type(error).__name__
            return False
        self._faults.pop(key, None)
        return True

    # ---- what is told

    def observe(self) -> dict[str, Observed]:
        """Everything, for a whole report."""
        seen = {key: Observed(State.FAILED, why) for key, why in self.desired.refused.items()}
        volumes = self.held.keys() | self.desired.volumes.keys() | {e.volume_id for e in self.desired.exports.values()}
        for volume_id in sorted(volumes):
            seen |= self._observe(f"volume/{volume_id}")
        for sha256 in sorted(self._images.held.keys() | self.desired.blobs.keys()):
            seen |= self._observe(f"blob/{sha256}")
        return seen

    def _observe(self, unit: str) -> dict[str, Observed]:
        kind, _, name = unit.partition("/")
        if kind == "volume":
            return self._observe_volume(unit, name)
        blob, held = self.desired.blobs.get(name), self._images.held.get(name)
        if blob is None and held is None:
            return {unit: Observed(State.GONE)}
        return {unit: plan.observe_blob(blob, held, self._faults.get(unit, ""))}

    def _observe_volume(self, unit: str, volume_id: str) -> dict[str, Observed]:
        volume, held = self.desired.volumes.get(volume_id), self.held.get(volume_id)
        exports = self.desired.exports_of(volume_id)
        seen = {}
        if volume or held:
            seen[unit] = plan.observe_volume(volume, exports, held, self._faults.get(unit, ""))
        elif unit in self._told:
            seen[unit] = Observed(State.GONE)
        for export in exports:
            key = f"export/{export.id}"
            seen[key] = plan.observe_export(export, volume, held, self._faults.get(key) or self._faults.get(unit, ""))
        for export_id in sorted(self._leaving):
            seen[f"export/{export_id}"] = plan.observe_leaving(export_id, self.held.values())
        return seen

    def _publish(self, seen: Mapping[str, Observed]) -> None:
        """Tells what is news."""
        news = {key: told for key, told in seen.items() if key in self._owed or self._told.get(key) != told}
        self._owed -= news.keys()
        for key, told in news.items():
            self._told[key] = told
            if told.state is State.GONE:
                self._forget(key)
        if news:
            self._tell(news)

    def _forget(self, key: str) -> None:
        kind, _, name = key.partition("/")
        if kind == "export":
            self._leaving.discard(name)
        if name not in (self.desired.volumes if kind == "volume" else self.desired.blobs):
            self._told.pop(key, None)
            self._faults.pop(key, None)
