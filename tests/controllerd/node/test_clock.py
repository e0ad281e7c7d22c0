"""A machine's clock that is off: warned of once, whichever agents and sessions tell of it, and again when it is right."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from controllerd.agents.clock import AGENTS_OFF, MESSAGES_KEPT, AgentClock
from controllerd.store import event
from skyrack.testing.virtual import VirtualClock
from skyrack.v1 import agent_pb2 as pb
from tests.controllerd.node.rig import House, Storage, house
from tests.daemonkit import virtual

HOUR_S = 3600.0
NOW_S = 1_800_000_000.0


def beat(at_s: float, ahead_s: float) -> pb.Heartbeat:
    """Sent at the moment `at_s` of the cloud's time."""
    message = pb.Heartbeat(boottime_us=round((at_s - NOW_S + 1000.0) * 1e6))
    message.wall_time.FromMicroseconds(round((at_s + ahead_s) * 1e6))
    return message


def told(*messages: tuple[float, float]) -> tuple[AgentClock, list[bool | None]]:
    """Messages a second apart, each with what the clock is ahead and the message's delay."""
    clock, seen = AgentClock(), []
    for number, (ahead_s, delay_s) in enumerate(messages):
        sent_s = NOW_S + 100.0 * number
        assert clock.told(beat(sent_s, ahead_s), sent_s + delay_s) == (clock.off is not (seen[-1] if seen else None))
        seen.append(clock.off)
    return clock, seen


def test_delay_is_no_offset() -> None:
    clock, seen = told((0.0, 9.0), (0.0, 60.0), (0.0, 0.1), (0.0, 30.0), (0.0, 30.0))
    assert clock.offset_s == pytest.approx(-0.1) and True not in seen


def test_a_step_is_seen_at_once_either_way() -> None:
    for step_s in (HOUR_S, -HOUR_S):
        clock, seen = told((0.0, 0.0), (0.0, 0.0), (step_s, 5.0), (step_s, 0.0), (0.0, 20.0))
        assert seen == [False, False, True, True, False]
        assert clock.offset_s == pytest.approx(0.0)


def test_far_off_is_known_by_the_first_message() -> None:
    assert told((HOUR_S, 8.0))[1] == told((-HOUR_S, 0.0))[1] == told((5.1, 0.0))[1] == [True]


def test_a_little_behind_may_be_delay() -> None:
    assert told((-8.0, 0.0), (-8.0, 0.0), (-8.0, 0.0))[1] == [None, None, True]


def test_in_between_nothing_changes() -> None:
    assert told((4.0, 0.0), (6.0, 0.0), (4.0, 0.0), (2.0, 0.0), (4.0, 0.0))[1] == [None, True, True, False, False]


def test_clocks_that_drift_apart() -> None:
    """The agent's boot-time clock is slow; what it was once does not count for ever."""
    clock = AgentClock()
    for number in range(3 * MESSAGES_KEPT):
        clock.told(beat(NOW_S + number, 0.0), NOW_S + number + 0.5 * number)
    assert clock.off


def test_an_agent_that_tells_no_clock() -> None:
    clock = AgentClock()
    assert not clock.told(pb.Heartbeat(), NOW_S)
    assert clock.offset_s is None and clock.off is None


# ---- in session


async def warnings(h: House, node_id: str) -> list[str]:
    return [
        kind.removeprefix("node.clock_")
        for kind, _ in await h.database.read(lambda tx: event.times_of(tx, node_id, "node.clock"))
    ]


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
def test_the_warning_comes_and_goes(tmp_path: Path, step_s: float, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            node, clock = await h.join("s1"), VirtualClock()
            session = await h.start(Storage(), "s1", clock=clock)
            await asyncio.sleep(10)
            assert await warnings(h, node.id) == [] and AGENTS_OFF._value.get() == 0
            clock.stepped_s = step_s
            await asyncio.sleep(30)
            assert await warnings(h, node.id) == ["off"] and AGENTS_OFF._value.get() == 1
            assert h.sessions.clock_offset_s(node.id, "storaged") == pytest.approx(step_s, abs=0.1)
            await session.stop()  # type: ignore[attr-defined]
            await asyncio.sleep(1)
            assert h.sessions.clock_offset_s(node.id, "storaged") is None and AGENTS_OFF._value.get() == 0
            await h.start(Storage(), "s1", ledger="again", clock=clock)
            await asyncio.sleep(10)
            assert await warnings(h, node.id) == ["off"] and AGENTS_OFF._value.get() == 1  # it has been said
            clock.stepped_s = 0.0
            await asyncio.sleep(10)
            assert await warnings(h, node.id) == ["off", "right"] and AGENTS_OFF._value.get() == 0

    with caplog.at_level(logging.WARNING):
        virtual.run(story())
    [line] = [record for record in caplog.records if "clock" in record.message]
    assert line.__dict__["node"] == "s1" and line.__dict__["ahead_s"] == pytest.approx(step_s, abs=0.2)


def test_an_agent_that_is_never_silent_tells_its_clock(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            node, clock, agent = await h.join("s1"), VirtualClock(), Storage()
            session = await h.start(agent, "s1", clock=clock)
            await asyncio.sleep(5)
            clock.stepped_s = HOUR_S
            for _ in range(10):
                session.report([])
                await asyncio.sleep(0.5)
            assert await warnings(h, node.id) == ["off"]

    virtual.run(story())
