"""Whether the clocks of agents' machines agree with the cloud's time, so that people learn of one that does not.

Nothing else depends on it: what agents do and what is billed goes by the store's time and by clocks that nobody sets.

An agent tells its wall clock and its boot-time clock together. How far the latter is ahead of the cloud's time stays the same,
and delay can only make it look less: of the last few messages the one that took the shortest way counts. What the wall clock
is ahead of the boot-time clock is in each message as it is, so a step is seen at once.
"""

from __future__ import annotations

import logging
from collections import deque

from prometheus_client import Gauge

from controllerd.domain.node import Node
from controllerd.store import event
from controllerd.store.database import Tx
from daemonkit import metrics
from skyrack.v1 import agent_pb2

log = logging.getLogger(__name__)

OFF_S = 5.0  # more is told
RIGHT_S = 2.5  # less ends it
DELAY_MAX_S = 15.0  # of a single message: an agent that is not welcomed for so long has hung up
SURE_MESSAGES = 3  # by then one of them came without delay
MESSAGES_KEPT = 8
OFF, RIGHT = "node.clock_off", "node.clock_right"

AGENTS_OFF = Gauge(
    "skyrack_controllerd_agent_clocks_off", f"agents in session whose clock is more than {OFF_S:g} s off the cloud's time",
    registry=metrics.REGISTRY,
)  # fmt: skip


class AgentClock:
    """An agent's, during one session. `offset_s`: how far it is ahead, None before it was told. `off`: None while unsure."""

    def __init__(self) -> None:
        self._boot_ahead_s: deque[float] = deque(maxlen=MESSAGES_KEPT)
        self.offset_s: float | None = None
        self.off: bool | None = None

    def told(self, message: agent_pb2.Hello | agent_pb2.Heartbeat, now_s: float) -> bool:
        """`now_s`: the cloud's time when it came. Gives whether `off` is another than before."""
        if not message.boottime_us:  # an older agent
            return False
        boottime_s = message.boottime_us / 1e6
        wall_s = message.wall_time.seconds + message.wall_time.nanos / 1e9
        self._boot_ahead_s.append(boottime_s - now_s)
        self.offset_s = max(self._boot_ahead_s) + wall_s - boottime_s
        before, self.off = self.off, self._judge(self.offset_s)
        return self.off is not before

    def _judge(self, offset_s: float) -> bool | None:
        if abs(offset_s) <= OFF_S:
            return False if abs(offset_s) < RIGHT_S else self.off
        delay_max_s = 0.0 if len(self._boot_ahead_s) >= SURE_MESSAGES else DELAY_MAX_S
        return True if offset_s > 0 or offset_s < -OFF_S - delay_max_s else self.off


def record(tx: Tx, node: Node, clock: AgentClock) -> None:
    """The warning, or its end, once a node: it has one clock, however many agents and sessions tell of it."""
    assert clock.offset_s is not None
    last = event.last_of(tx, node.id, OFF, RIGHT)
    if (last == OFF) == clock.off:
        return
    side = "ahead of" if clock.offset_s > 0 else "behind"
    told = f"the clock of {node.name} is {abs(clock.offset_s):.1f} s {side} the cloud's time"
    event.record(tx, OFF if clock.off else RIGHT, "", node.id, told, offset_s=f"{clock.offset_s:.3f}")
    if clock.off:
        log.warning("a node's clock is off", extra={"node": node.name, "ahead_s": round(clock.offset_s, 1)})
    else:
        log.info("a node's clock is right again", extra={"node": node.name})
