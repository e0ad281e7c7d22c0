"""What this node tells by itself: changes of its servers, at once; usage samples, durably, at a steady pace."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from computed import metric, wire
from computed.drivers.base import Hypervisor
from computed.spec import Observed, ObservedState
from daemonkit.errors import SkyrackError
from daemonkit.runtime import Runtime
from daemonkit.session import Session

log = logging.getLogger(__name__)


async def sample_usage(hypervisor: Hypervisor, session: Session, runtime: Runtime, interval_s: float) -> None:
    """For ever. A node that can't be asked gives no samples for that moment; its counters go on."""
    while True:
        await asyncio.sleep(interval_s)
        try:
            usages = await hypervisor.usage()
        except SkyrackError as error:
            log.info("no usage samples", extra={"why": error.message})
            continue
        if usages:
            wall_s = runtime.clock.wall_s()
            await session.spool([wire.sample(usage, wall_s) for usage in usages])


class Reporter:
    """Sends each change through the session and counts servers by state. The session is given once it exists."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self._states: dict[str, ObservedState] = {}

    def publish(self, server_id: str, observed: Observed) -> None:
        self._count(server_id, observed)
        if self.session is not None:
            self.session.report([wire.observed(server_id, observed)])

    def _count(self, server_id: str, observed: Observed) -> None:
        if observed.state is ObservedState.GONE:
            self._states.pop(server_id, None)
        else:
            self._states[server_id] = observed.state
        counts = Counter(self._states.values())
        for state in ObservedState:
            metric.SERVERS.labels(state.value).set(counts[state])
