"""What was acknowledged is there after a SIGKILL, and after the disk was full; what was refused is not."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from controllerd.store.migration import migrations
from controllerd.store.replica import Replica
from daemonkit.failpoint import EXIT_CODE
from daemonkit.runtime import system_runtime
from tests.controllerd.store.writer import FileLog

ROOT = Path(__file__).parents[3]
WRITER = [sys.executable, "-m", "tests.controllerd.store.writer"]
LIMIT_S = 120
ROUNDS, WRITES = 3, 300


def stored(path: Path) -> list[str]:
    connection = apsw.Connection(str(path))
    assert list(connection.execute("PRAGMA integrity_check")) == [("ok",)]
    names = [row[0] for row in connection.execute("SELECT name FROM project")]
    connection.close()
    return names


def test_no_acknowledged_write_is_lost_by_a_kill(tmp_path: Path) -> None:
    path, acknowledged = tmp_path / "state.db", set()
    for _ in range(ROUNDS):
        writer = subprocess.Popen([*WRITER, str(path), "kill"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        try:
            told = [writer.stdout.readline().strip() for _ in range(WRITES)]
        finally:
            writer.kill()
        told += writer.stdout.read().split("\n")[:-1]  # the last line may have been cut
        writer.wait(LIMIT_S)
        assert len(told) >= WRITES
        acknowledged.update(told)
        names = stored(path)
        assert acknowledged <= set(names) and len(names) == len(set(names))
    assert {name.split("-")[0] for name in acknowledged} == {"1", "2", "3"}  # an epoch each start


def test_a_full_disk_refuses_and_later_writes_go_on(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    at = shlex.quote(str(small))
    work = f"mount -t tmpfs -o size=3m none {at} && {shlex.join(WRITER)} {at}/state.db full && cp {at}/state.db* {at}/.."
    unshared = ["unshare", "--mount", "--propagation", "private", "sh", "-c", work]
    told = subprocess.run(unshared, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S, check=True).stdout.split("\n")
    refused = next(int(line.split()[1]) for line in told if line.startswith("refused"))
    rows = {line for line in told if line.startswith("row-")}
    assert refused >= 5 and len(rows) + refused == 2000
    assert set(stored(tmp_path / "state.db")) == rows
    first_refused = next(n for n in range(2000) if f"row-{n}" not in rows)
    assert any(f"row-{n}" in rows for n in range(first_refused, 2000))


def test_no_room_for_a_snapshot(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    at = shlex.quote(str(small))
    work = f"mount -t tmpfs -o size=1m none {at} && {shlex.join([*WRITER, str(tmp_path / 'db'), 'snapshot'])} && ls {at}"
    unshared = ["unshare", "--mount", "--propagation", "private", "sh", "-c", work]
    told = subprocess.run(unshared, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S, check=True).stdout
    assert told.split() == ["refused", "after"]


BEGINNING = 1 + len(migrations())  # the barrier, and each migration: a commit each


def acknowledged_before(failpoint: str, path: Path, log: Path) -> set[str]:
    """Told by a process that ends at the failpoint."""
    command = [*WRITER, str(path), "replicated", str(log)]
    environment = {**os.environ, "SKYRACK_FAILPOINT": failpoint}
    ended = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S)
    assert ended.returncode == EXIT_CODE
    return set(ended.stdout.split())


@pytest.mark.parametrize("passed", [1, BEGINNING, BEGINNING + 5])
@pytest.mark.parametrize("point", ["prepared", "appended", "committed"])
async def test_a_leader_that_dies_between_its_log_and_its_file(tmp_path: Path, point: str, passed: int) -> None:
    """At each such moment, in the opening and later, and again in the next term: the file and a copy are played on from the
    log and hold the same, with all that was acknowledged."""
    log, acknowledged = tmp_path / "log", set[str]()
    log.mkdir()
    for _term in range(2):
        acknowledged |= acknowledged_before(f"store.{point}:{passed}", tmp_path / "db", log)
        entries = FileLog(log).entries()
        assert [e.seq for e in entries] == list(range(1, len(entries) + 1))
        digests = set()
        for name in ("db", "copy"):
            replica = Replica(tmp_path / name, system_runtime())
            await replica.open()
            assert replica.position.seq >= len(entries) - 1 or name == "copy"
            await replica.apply(entries[replica.position.seq :])
            assert replica.position.seq == len(entries)
            digests.add(await replica.digest())
            await replica.close()
        assert len(digests) == 1
    if acknowledged:
        assert acknowledged <= set(stored(tmp_path / "copy"))
    assert passed < BEGINNING + 2 or acknowledged
