"""What was acknowledged is there after a SIGKILL, and after the disk was full; what was refused is not."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import apsw

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
