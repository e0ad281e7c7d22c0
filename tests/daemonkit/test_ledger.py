"""The ledger, also across the death of its process at every failpoint."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemonkit import failpoint
from daemonkit import ledger as ledger_module
from daemonkit.errors import ConfigError, OutOfSpace
from daemonkit.ledger import Ledger
from skyrack.v1 import agent_pb2
from tests.daemonkit import virtual

# Does one of everything; prints each step once its call has returned, that is: once it must have survived.
CHILD = """
import asyncio, sys
from pathlib import Path
from daemonkit.ledger import Ledger
from daemonkit.runtime import system_runtime
from skyrack.v1 import agent_pb2

async def main():
    ledger = Ledger(Path(sys.argv[1]), system_runtime())
    def done(step):
        print(step, flush=True)
    await ledger.open()
    await ledger.raise_epoch(5); done("epoch")
    await ledger.save_desired(5, 1, {"a/1": b"one", "a/2": b"two"}); done("desired1")
    await ledger.save_desired(5, 2, {"a/1": None, "a/2": b"TWO"}); done("desired2")
    fresh, result = await ledger.begin_task("t")
    done(f"fresh{fresh}")
    await ledger.end_task(agent_pb2.TaskResult(task_id="t", ok=True)); done("ended")
    await ledger.spool([agent_pb2.Sample(cpu_ns=1), agent_pb2.Sample(cpu_ns=2)]); done("spooled")
    await ledger.drop_spooled(1); done("dropped")
    await ledger.forget_tasks(["t"]); done("forgotten")
    await ledger.close()

asyncio.run(main())
"""
FAILPOINTS = [
    "ledger.epoch.raised", "ledger.desired.written", "ledger.desired.committed", "ledger.desired.written:2",
    "ledger.desired.committed:2", "ledger.task.begun", "ledger.task.ending", "ledger.task.ended", "ledger.spool.written",
    "ledger.spool.committed", "ledger.spool.dropped", "ledger.task.forgotten",
]  # fmt: skip


def child(path: Path, **environment: str) -> tuple[int, list[str]]:
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)], env=os.environ | environment, stdout=subprocess.PIPE, timeout=60, check=False
    )
    return ran.returncode, ran.stdout.decode().split()


async def opened(path: Path) -> Ledger:
    ledger = Ledger(path, virtual.runtime())
    await ledger.open()
    return ledger


def test_every_failpoint_is_known_here(tmp_path: Path) -> None:
    log = tmp_path / "passed"
    code, _steps = child(tmp_path / "ledger.db", SKYRACK_FAILPOINT_LOG=str(log))
    assert code == 0 and set(log.read_text().split()) == {name.partition(":")[0] for name in FAILPOINTS}


@pytest.mark.parametrize("name", FAILPOINTS)
async def test_what_was_done_survives_a_crash(tmp_path: Path, name: str) -> None:
    path = tmp_path / "ledger.db"
    code, steps = child(path, SKYRACK_FAILPOINT=name)
    assert code == failpoint.EXIT_CODE
    ledger = await opened(path)
    if "epoch" in steps:
        assert await ledger.highest_epoch() == 5
    states = [(0, {}), (1, {"a/1": b"one", "a/2": b"two"}), (2, {"a/2": b"TWO"})]
    _epoch, generation, bodies = await ledger.load_desired()
    assert (generation, bodies) in states  # never half of one
    assert generation >= ("desired1" in steps) + ("desired2" in steps)
    tasks = [r.task_id for r in await ledger.results()]
    if "ended" in steps and "forgotten" not in steps and name != "ledger.task.forgotten":
        assert tasks == ["t"]
    if "freshTrue" in steps and "ended" not in steps:
        fresh, _result = await ledger.begin_task("t")
        assert not fresh
    left = [s.seq for s in await ledger.spooled(0, 10)]
    assert left in ([], [1, 2], [2])
    if "spooled" in steps:
        assert 2 in left
    await ledger.close()


def test_a_restart_runs_nothing_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    assert child(path, SKYRACK_FAILPOINT="ledger.task.begun")[0] == failpoint.EXIT_CODE
    code, steps = child(path)
    assert code == 0 and "freshFalse" in steps


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=8))
def test_the_epoch_never_falls(tmp_path_factory: pytest.TempPathFactory, epochs: list[int]) -> None:
    async def story() -> None:
        ledger = await opened(tmp_path_factory.mktemp("epochs") / "ledger.db")
        for number, epoch in enumerate(epochs, start=1):
            await ledger.raise_epoch(epoch)
            assert await ledger.highest_epoch() == max(epochs[:number])
        await ledger.close()

    virtual.run(story())


async def test_tasks_at_most_once(tmp_path: Path) -> None:
    ledger = await opened(tmp_path / "ledger.db")
    assert await ledger.begin_task("t") == (True, None)
    assert await ledger.begin_task("t") == (False, None)
    await ledger.forget_tasks(["t"])  # it runs: forgotten, it could run twice
    assert await ledger.begin_task("t") == (False, None)
    result = agent_pb2.TaskResult(task_id="t", ok=True)
    await ledger.end_task(result)
    assert await ledger.begin_task("t") == (False, result) and await ledger.results() == [result]
    await ledger.forget_tasks(["t", "unknown"])
    assert await ledger.results() == []
    await ledger.close()


async def test_the_spool_keeps_order_limit_and_incarnation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "SPOOL_ROWS_MAX", 100)
    path = tmp_path / "ledger.db"
    ledger = await opened(path)
    incarnation = await ledger.incarnation()
    for base in range(0, 250, 50):
        await ledger.spool(agent_pb2.Sample(cpu_ns=n) for n in range(base, base + 50))
    assert [(s.seq, s.cpu_ns) for s in await ledger.spooled(0, 500)] == [(n + 1, n) for n in range(150, 250)]
    assert [s.seq for s in await ledger.spooled(200, 3)] == [201, 202, 203]
    await ledger.drop_spooled(10**9)
    await ledger.close()
    again = await opened(path)
    await again.spool([agent_pb2.Sample()])
    assert [s.seq for s in await again.spooled(0, 9)] == [251]  # numbers are not used twice
    assert await again.incarnation() == incarnation and incarnation
    await again.close()
    other = Ledger(tmp_path / "other.db", virtual.runtime(2))
    await other.open()
    assert await other.incarnation() != incarnation
    await other.close()


async def test_a_damaged_file_is_refused_and_a_full_disk_told(tmp_path: Path) -> None:
    bad = tmp_path / "bad.db"
    bad.write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigError, match=r"bad\.db"):
        await opened(bad)
    ledger = await opened(tmp_path / "ledger.db")
    ledger._db.execute("PRAGMA max_page_count = 12")
    with pytest.raises(OutOfSpace):
        await ledger.save_desired(1, 1, {"a/1": b"x" * 200_000})
    assert await ledger.load_desired() == (0, 0, {})
    await ledger.save_desired(1, 1, {"a/1": b"x"})  # and goes on
    await ledger.close()
    with sqlite3.connect(tmp_path / "ledger.db") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
