"""Compares, all the time, what the store says shall be with what agents report, and keeps each difference with its age.

A difference is not a fault: while something is being made, store and node do not agree yet, and the task that works on it is
the owner. What has no task is mended by whoever is named: an agent, a reconciler, or an operator. Nothing is changed here.

A pass is a fixed number of queries that give differences only, on a reader; it follows soon on what agents' comings and goings
change, and comes by itself every PASS_INTERVAL_S. Ages survive a pass, not the process: after a restart a difference is as old
as what the store knows of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from prometheus_client import Gauge

from controllerd.domain.difference import Comparison, Difference
from controllerd.store import difference
from controllerd.store.database import Database
from controllerd.store.node import AGENTS
from daemonkit.errors import SkyrackError
from daemonkit.metrics import REGISTRY
from daemonkit.runtime import Runtime

log = logging.getLogger(__name__)

PASS_INTERVAL_S = 30.0
BETWEEN_PASSES_S = 2.0

DIFFERENCES = Gauge("skyrack_controllerd_differences", "where store and nodes do not agree", ["kind"], registry=REGISTRY)


class Verify:
    def __init__(self, database: Database, runtime: Runtime) -> None:
        self._db, self._runtime = database, runtime
        self._wake = asyncio.Event()
        self._since: dict[str, float] = {}
        self._kinds: set[str] = set()

    def notice(self, touched: set[str]) -> None:
        """Subscriber of the store: with an agent all that it reports comes or goes."""
        if AGENTS in touched:
            self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                try:
                    await self.compare()
                except SkyrackError:
                    raise
                except Exception:  # to see differences must not be able to end what makes them go
                    log.exception("store and nodes could not be compared; tried again")
                await asyncio.sleep(BETWEEN_PASSES_S)
                try:
                    async with asyncio.timeout(PASS_INTERVAL_S):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                self._wake.clear()
        finally:
            self._count([])  # who does not lead compares nothing

    async def compare(self) -> Comparison:
        """The store against what agents report, now; the oldest difference first."""
        found, now = await self._db.read(lambda tx: (difference.all_of(tx), tx.now))
        known, self._since = self._since, {}
        aged = [self._aged(item, known) for item in found]
        aged.sort(key=lambda item: (item.since, item.key))
        self._count(aged)
        return Comparison(tuple(aged), now)

    def _aged(self, item: Difference, known: dict[str, float]) -> Difference:
        since = self._since[item.key] = known.get(item.key, item.since)
        return item if since == item.since else item.at(since)

    def _count(self, found: list[Difference]) -> None:
        counts = Counter(item.kind for item in found)
        for kind in self._kinds | counts.keys():
            DIFFERENCES.labels(kind).set(counts[kind])
        self._kinds |= counts.keys()
