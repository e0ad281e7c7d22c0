"""`skyrack cluster ...`."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from skyrack.v1 import cluster_pb2
from tests.cli.conftest import Command
from tests.client.fake_api import MADE_AT, FakeCloud


async def test_show(skyrack: Command, fake: FakeCloud) -> None:
    assert await skyrack.ok("cluster", "show", "-f", "value", "-c", "leader") == "c1\n"
    shown = await skyrack.ok("cluster", "show")
    assert "log_bytes" not in shown and "recovery" not in shown
    fake.cluster.replicated = True
    fake.cluster.controllers.add(name="c1", leader=True, api_address="10.0.0.1:7700", version="1.0", applied_seq=12)
    fake.cluster.controllers.add(name="c2", api_address="10.0.0.2:7700", version="1.0", applied_seq=2, clock_offset_s=3.0)
    fake.cluster.recovery.adopted, fake.cluster.recovery.missing = 5, 1
    fake.cluster.recovery.held_nodes.extend(["k1", "k2"])
    shown = await skyrack.ok("cluster", "show")
    assert "c1 leader 10.0.0.1:7700 1.0\n" in shown and "c2 standby 10.0.0.2:7700 1.0 10 behind clock +3.0 s\n" in shown
    assert "5 adopted, 1 missing, 0 that nobody owns; held: k1, k2\n" in shown and "log_bytes" in shown
    assert json.loads(await skyrack.ok("cluster", "show", "--json"))["controllers"][1]["name"] == "c2"
    assert "held" not in await skyrack.ok("cluster", "release", "-c", "recovery")


async def test_transfer(skyrack: Command, fake: FakeCloud) -> None:
    fake.successors = ["c2"]
    assert await skyrack.ok("cluster", "transfer") == "c2 leads now\n"
    result = await skyrack("cluster", "transfer", "c9")
    assert result.exit_code == 1 and "c9" in result.stderr


async def test_backup(skyrack: Command, fake: FakeCloud, tmp_path: Path) -> None:
    fake.backup = b"state" * 1000
    digest, file = hashlib.sha256(fake.backup).hexdigest(), tmp_path / "cloud.backup"
    assert await skyrack.ok("cluster", "backup", str(file)) == f"{file}: 5000 bytes, sha256 {digest}\n"
    assert file.read_bytes() == fake.backup and stat.S_IMODE(file.stat().st_mode) == 0o600
    told = json.loads(await skyrack.ok("cluster", "backup", str(file), "--json"))
    assert told == {"file": str(file), "size_bytes": 5000, "sha256": digest}
    result = await skyrack("cluster", "backup", str(tmp_path / "none" / "b"))
    assert result.exit_code == 1 and "No such file" in result.stderr


async def test_verify_tells_by_its_exit_code(skyrack: Command, fake: FakeCloud) -> None:
    assert "Kind" in await skyrack.ok("cluster", "verify")
    row = cluster_pb2.Difference(kind="foreign_server", resource_kind="server", resource_id="s1", node="k1", owner="operator")
    row.since.FromDatetime(MADE_AT)
    fake.rows["Difference"]["1"] = row
    result = await skyrack("cluster", "verify")
    assert result.exit_code == 1 and not result.stderr
    assert "foreign_server  server s1  k1    operator  2026-05-31 12:00:00Z  -" in result.stdout
    result = await skyrack("cluster", "verify", "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)[0]["owner"] == "operator"


async def test_restore_is_done_by_the_controllers_own_program(
    skyrack: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cloud.backup"
    file.touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    result = await skyrack("cluster", "restore", str(file))
    assert result.exit_code == 1 and "take the file to a controller" in result.stderr
    daemon = tmp_path / "skyrack-controllerd"
    daemon.write_text('#!/bin/sh\necho "$@"\n[ "$5" ] || { echo "it is there already" >&2; exit 1; }\n')
    daemon.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    told = await skyrack.ok("cluster", "restore", str(file), "--config", "c.toml", "--replace")
    assert told == f"restore {file} --config c.toml --replace\n"
    result = await skyrack("cluster", "restore", str(file))
    assert result.exit_code == 1 and "it is there already" in result.stderr
