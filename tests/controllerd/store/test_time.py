"""The store's own time: no step of the machine's clock moves it, and it never goes back, whoever leads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from controllerd.leadership.commit_log import CommitLog, LocalLog
from controllerd.leadership.log_time import LogTime
from controllerd.store.replica import Replica
from controllerd.store.term_clock import TermClock
from daemonkit import metrics
from daemonkit.runtime import InlineThreads, Runtime, system_runtime
from tests.controllerd.store.logs import MemoryLog, opened, put

HOUR_S = 3600.0


@dataclass
class SteppedClock:
    """`step_s`: by how much somebody has set it."""

    now_s: float = 1_700_000_000.0
    booted_s: float = 0.0
    step_s: float = 0.0

    def wall_s(self) -> float:
        return self.now_s + self.step_s

    def boottime_s(self) -> float:
        return self.now_s - self.booted_s


def runtime_of(clock: SteppedClock) -> Runtime:
    return Runtime(clock, system_runtime().rng, lambda _name, _workers: InlineThreads())


@pytest.fixture(params=["local", "replicated"])
def commit_log(request: pytest.FixtureRequest) -> Callable[[], CommitLog]:
    entries = MemoryLog().entries
    return LocalLog if request.param == "local" else lambda: MemoryLog(entries)


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
async def test_a_step_within_a_term(
    tmp_path: Path, commit_log: Callable[[], CommitLog], step_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    clock = SteppedClock()
    async with opened(tmp_path / "db", commit_log(), runtime_of(clock)) as database:
        first = await database.write(lambda tx: tx.now)
        clock.step_s = step_s
        clock.now_s += 10.0
        assert await database.write(lambda tx: tx.now) == pytest.approx(first + 10.0)
        assert await database.read(lambda tx: tx.now) == database.now_s() == pytest.approx(first + 10.0)
        assert database.clock_step_s == pytest.approx(step_s)
        await database.write(put("a"))
        assert metrics.CLOCK_STEP_S._value.get() == pytest.approx(step_s)
        [warned] = caplog.records
        assert "clock" in warned.message


async def test_no_term_goes_back(tmp_path: Path, commit_log: Callable[[], CommitLog]) -> None:
    clock, seen = SteppedClock(), []
    for step_s in (0.0, HOUR_S, -HOUR_S, 0.0):
        clock.step_s, clock.booted_s = step_s, clock.now_s - 5.0
        async with opened(tmp_path / "db", commit_log(), runtime_of(clock)) as database:
            for _ in range(3):
                clock.now_s += 1.0
                seen.append(database.now_s())
                seen.append(await database.write(lambda tx: (put(str(tx.now))(tx), tx.now)[1]))
    assert seen == sorted(seen)
    assert seen[-1] - seen[0] < HOUR_S + 20.0


async def test_the_next_leader_does_not_go_back_either(tmp_path: Path) -> None:
    """Its machine's clock is an hour behind, and it knows of the time before only by the log."""
    log, ahead, behind = MemoryLog(), SteppedClock(), SteppedClock(step_s=-HOUR_S)
    async with opened(tmp_path / "db", log, runtime_of(ahead)) as database:
        ahead.now_s += 100.0
        last = await database.write(lambda tx: (put("a")(tx), tx.now)[1])
    replica = Replica(tmp_path / "copy", system_runtime())
    await replica.open()
    await replica.apply(log.entries)
    await replica.close()
    async with opened(tmp_path / "copy", log, runtime_of(behind)) as database:
        behind.now_s += 1.0
        assert await database.write(lambda tx: tx.now) == pytest.approx(last + 1.0)
        assert database.clock_step_s == pytest.approx(-HOUR_S - 100.0)


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
async def test_a_leader_that_has_followed_goes_on(tmp_path: Path, step_s: float) -> None:
    """It has seen an entry when it was written: what time it is then does not depend on its machine's clock."""
    first, second = SteppedClock(), SteppedClock(booted_s=1_600_000_000.0, step_s=step_s)
    log, time = MemoryLog(), LogTime(second)
    async with opened(tmp_path / "db", log, runtime_of(first)) as database:
        time.complete(second.boottime_s())
        await database.write(put("a"))
        for entry in log.entries:
            time.seen(entry.now)
    shutil.copy(tmp_path / "db", tmp_path / "copy")
    first.now_s = second.now_s = second.now_s + 1000.0  # nobody writes
    log.ahead_s = time.ahead_s
    async with opened(tmp_path / "copy", log, runtime_of(second)) as database:
        assert database.now_s() == pytest.approx(first.wall_s())
        assert database.clock_step_s == pytest.approx(step_s)


def test_clocks_that_agree_are_followed() -> None:
    clock = SteppedClock()
    assert TermClock(clock, 0.0, clock.wall_s() - clock.boottime_s() - 0.5).now_s() == clock.wall_s()


def test_the_entry_that_came_soonest_tells_the_time() -> None:
    clock = SteppedClock()
    time = LogTime(clock)
    assert time.ahead_s is None
    for delay_s in (3.0, 0.25, 60.0):
        clock.now_s += 100.0
        time.complete(clock.boottime_s())
        time.seen(clock.wall_s() - delay_s)
    time.seen(0.0)  # an older software does not tell it
    assert time.ahead_s == pytest.approx(clock.wall_s() - clock.boottime_s() - 0.25)


Look = tuple[str, float, float]  # what happens (complete, woke, seen), at which boot time; how old the entry is that is seen
STEADY: list[Look] = [("complete", 0, 0), ("woke", 1, 0), ("seen", 1, 0.01)]
BACKLOG: list[Look] = [("seen", 3000 + n / 100, 2901 - n / 10) for n in range(100)]


@pytest.mark.parametrize(
    ("looks", "error_s"),
    [
        ([], None),
        ([("seen", 1, 0.0)], None),  # nobody knows for how long it was there
        (STEADY, 0.01),
        ([*STEADY, ("seen", 3, 1.5)], 0.01),
        ([*STEADY, ("woke", 1.9, 0), ("seen", 2.5, 0.0)], 0.01),
        ([*STEADY, ("woke", 3000, 0)], None),
        ([*STEADY, ("woke", 3000, 0), *BACKLOG], None),
        ([*STEADY, *BACKLOG], 0.01),  # it stood still within a call
        ([*STEADY, ("complete", 2999, 0), *BACKLOG[:1], ("woke", 3003, 0)], None),
        ([*STEADY, ("woke", 3000, 0), *BACKLOG, ("complete", 3002, 0), ("woke", 3003, 0), ("seen", 3003, 0.2)], 0.2),
    ],
)
def test_what_has_lain_unread_tells_nothing(looks: list[Look], error_s: float | None) -> None:
    clock = SteppedClock(booted_s=1_700_000_000.0)
    time, ahead_s = LogTime(clock), clock.booted_s
    for what, boottime_s, age_s in looks:
        clock.now_s = clock.booted_s + boottime_s
        match what:
            case "complete":
                time.complete(boottime_s)
            case "woke":
                time.woke()
            case _:
                time.seen(clock.wall_s() - age_s)
    assert time.ahead_s == (None if error_s is None else pytest.approx(ahead_s - error_s, abs=1e-4))


def test_whoever_stood_still_and_leads_goes_by_its_clock_and_the_next_one_too() -> None:
    clock = SteppedClock(booted_s=1_700_000_000.0)
    time = LogTime(clock)
    for what, boottime_s, age_s in [*STEADY, ("woke", 3000.0, 0.0), *BACKLOG]:
        clock.now_s = clock.booted_s + boottime_s
        if what == "seen":
            time.seen(clock.wall_s() - age_s)
        elif what == "woke":
            time.woke()
        else:
            time.complete(boottime_s)
    assert TermClock(clock, clock.wall_s() - 2901.0, time.ahead_s).now_s() == clock.wall_s()
