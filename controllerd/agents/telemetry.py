"""Usage samples, counted exactly once: the totals and the cursor of the agent's spool move in one transaction.

A batch that comes again, whole or in part, adds nothing. Samples of servers that are not on the node are passed over: they
were deleted meanwhile, or the node has no say in them.
"""

from __future__ import annotations

from controllerd.domain.node import Node
from controllerd.domain.usage import COUNTER_MAX, Counters
from controllerd.store import usage
from controllerd.store.database import Tx
from daemonkit.errors import InvalidArgument
from skyrack.v1 import agent_pb2

INCARNATION_LENGTH_MAX = 64


def take(tx: Tx, node: Node, telemetry: agent_pb2.Telemetry) -> int:
    """Gives the seq up to which the spool is done with. Errors: InvalidArgument (no or a monstrous incarnation)."""
    if not 0 < len(telemetry.incarnation) <= INCARNATION_LENGTH_MAX:
        raise InvalidArgument("telemetry.incarnation", f"1 to {INCARNATION_LENGTH_MAX} characters")
    done = usage.cursor(tx, node.id, telemetry.incarnation)
    samples = sorted((s for s in telemetry.samples if done < s.seq <= COUNTER_MAX), key=lambda s: s.seq)
    meters = usage.meters_of(tx, node.id, (s.server_id for s in samples))
    for sample in samples:
        if sample.seq == done:
            continue
        done = sample.seq
        if sample.server_id in meters:
            meter = meters[sample.server_id]
            memory_kib = min(sample.memory_kib, COUNTER_MAX)
            meters[sample.server_id] = meter.read(_counters(sample), memory_kib, _sampled_at(sample, tx.now))
    for server_id, meter in meters.items():
        usage.put_meter(tx, server_id, meter)
    if samples:
        usage.put_cursor(tx, node.id, telemetry.incarnation, done)
    return done


def _sampled_at(sample: agent_pb2.Sample, now: float) -> float:
    try:
        return min(sample.wall_time.ToMicroseconds() / 1e6, now)
    except ValueError:  # no time in the years 1 to 9999
        return now


def _counters(sample: agent_pb2.Sample) -> Counters:
    return Counters(**{name: min(getattr(sample, name), COUNTER_MAX) for name in Counters.__dataclass_fields__})
