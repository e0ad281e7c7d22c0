"""The loop that makes the kernel be what the controller wants.

A pass computes the wanted picture, plans from what we know is there, and carries the plan out. What is there is looked at
afresh at the start, every SAFETY_S against drift, and after a failure; in between our own steps tell. Changes that arrive
together are one pass. Ports are reported as soon as their part is done, before routers, DHCP and metadata of the same pass.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from prometheus_client import Counter, Histogram

from daemonkit.metrics import REGISTRY
from networkd.compile.layout import layout
from networkd.compile.plan import Plan, plan
from networkd.drivers.base import Driver
from networkd.spec.desired import Desired, Node
from networkd.spec.picture import HERE, ForgetFlows, Picture, Step, apply

log = logging.getLogger(__name__)

SAFETY_S = 30.0
RETRY_FIRST_S = 0.5
RETRY_MAX_S = 30.0
ZONE_MAX = 65535

REPAIRS = Counter("skyrack_networkd_drift_repairs_total", "steps that mended what somebody else changed", registry=REGISTRY)
FAILURES = Counter("skyrack_networkd_step_failures_total", "steps that failed", registry=REGISTRY)
RECONCILE_S = Histogram(
    "skyrack_networkd_reconcile_seconds", "one pass from desired state to reports", registry=REGISTRY,
    buckets=(0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 5, 30),
)  # fmt: skip


class Outcome(Protocol):
    """Who hears what became of desired state."""

    def expect(self, changed: set[str], desired: Desired) -> None:
        """These keys "kind/id" are being worked on."""

    def settle(self, kind: str, desired: Desired, faults: Mapping[str, str]) -> None:
        """All of `kind` ("port", "router") are done, but for `faults`: owner -> why."""


def assign_zones(held: Mapping[str, int], network_ids: set[str]) -> dict[str, int]:
    """A connection tracking zone for each network: kept while it is here, and not given again soon after. Pure."""
    zones = {n: z for n, z in held.items() if n in network_ids}
    last = max(held.values(), default=0)
    taken = set(held.values())
    for network_id in sorted(network_ids - zones.keys()):
        last = next(z for step in range(1, ZONE_MAX + 1) if (z := (last + step - 1) % ZONE_MAX + 1) not in taken)
        zones[network_id] = last
        taken.add(last)
    return zones


class Reconciler:
    def __init__(self, driver: Driver, node: Node, zones_file: Path | None, outcome: Outcome) -> None:
        """`zones_file`: survives restarts, so that established flows keep their zone; None in a simulation."""
        self._driver, self._node, self._outcome = driver, node, outcome
        self._zones_file = zones_file
        self._zones: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._look = True
        self._seen = Picture()
        self._fulfilled: Desired | None = None  # what the last pass without faults made true
        self.desired = Desired()
        self.passed = asyncio.Event()  # set after each pass

    def want(self, desired: Desired, changed: set[str]) -> None:
        self.desired = desired
        self._outcome.expect(changed, desired)
        self._wake.set()

    def look_again(self) -> None:
        self._look = True
        self._wake.set()

    async def run(self) -> None:
        self._load_zones()
        self._driver.watch(self.look_again)
        retry_s = RETRY_FIRST_S
        while True:
            self._wake.clear()
            failed = await self._pass_guarded()
            retry_s = min(retry_s * 2, RETRY_MAX_S) if failed else RETRY_FIRST_S
            try:
                async with asyncio.timeout(retry_s if failed else SAFETY_S):
                    await self._wake.wait()
            except TimeoutError:
                self._look = True

    async def _pass_guarded(self) -> bool:
        """True: something failed, try again soon."""
        try:
            return bool(await self.once())
        except OSError as error:
            log.error("could not look at the kernel", extra={"why": str(error)})
            self._look = True
            return True
        finally:
            self.passed.set()

    async def once(self) -> dict[str, str]:
        """One pass; gives the faults by owner."""
        clock = asyncio.get_running_loop()
        began_s = clock.time()
        desired, looked = self.desired, self._look
        if looked:
            self._seen = await self._driver.observe()
            self._look = False
        zones = self._assign({s.id for s in desired.segments.values() if not s.external})
        want = layout(desired, self._node, zones)
        steps = plan(self._seen, want)
        planned_s = clock.time() - began_s
        if looked and steps and desired is self._fulfilled:
            self._count_drift(steps)
        faults = await self._carry_out(desired, want, steps)
        await self._forget_zones(zones)
        self._look = self._look or bool(faults)
        self._fulfilled = None if faults else desired
        took_s = clock.time() - began_s
        RECONCILE_S.observe(took_s)
        log.debug(
            "pass", extra={"steps": len(steps.steps), "ms": round(took_s * 1000, 1), "planned_ms": round(planned_s * 1000, 1)}
        )
        return faults

    async def _carry_out(self, desired: Desired, want: Picture, steps: Plan) -> dict[str, str]:
        faults = dict(want.faults)
        faults |= await self._do(steps.edge)
        self._outcome.settle("port", desired, faults)
        for router in dict.fromkeys(s.owner for s in steps.routers):  # each by itself: one that fails stops no other
            faults |= await self._do([s for s in steps.routers if s.owner == router])
        self._outcome.settle("router", desired, faults)
        faults |= await self._do(steps.services)
        return {k: v for k, v in faults.items() if k not in want.faults}

    async def _do(self, steps: Sequence[Step]) -> dict[str, str]:
        faults: dict[str, str] = {}
        if not steps:
            return faults
        for step, fault in zip(steps, await self._driver.carry_out(steps), strict=True):
            if fault is None:
                apply(self._seen, step)
            else:
                faults.setdefault(step.owner, fault)
                FAILURES.inc()
                log.warning("step failed", extra={"owner": step.owner, "why": fault})
        return faults

    def _count_drift(self, steps: Plan) -> None:
        REPAIRS.inc(len(steps.steps))
        log.warning("mending drift", extra={"steps": [f"{type(s).__name__} {s.owner}" for s in steps.steps[:20]]})

    # ---- zones

    def _load_zones(self) -> None:
        if self._zones_file is not None and self._zones_file.exists():
            self._zones = {str(k): int(v) for k, v in json.loads(self._zones_file.read_text()).items()}

    def _assign(self, network_ids: set[str]) -> dict[str, int]:
        zones = assign_zones(self._zones, network_ids)
        if zones.keys() - self._zones.keys():
            self._save_zones(self._zones | zones)
        return zones

    async def _forget_zones(self, zones: dict[str, int]) -> None:
        """Flows of networks that left this node."""
        gone = sorted(set(self._zones.values()) - set(zones.values()))
        if gone:
            await self._driver.carry_out([ForgetFlows(HERE, zone=zone, owner="rules/") for zone in gone])
        if zones != self._zones:
            self._save_zones(zones)

    def _save_zones(self, zones: dict[str, int]) -> None:
        self._zones = zones
        if self._zones_file is not None:
            partial = self._zones_file.with_suffix(".new")
            partial.write_text(json.dumps(zones))
            partial.replace(self._zones_file)
