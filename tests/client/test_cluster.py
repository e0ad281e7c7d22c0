"""The control plane through the SDK."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from skyrack.client import Cloud, errors
from skyrack.client.cluster import Cluster, Difference
from skyrack.v1 import cluster_pb2
from tests.client.fake_api import FakeApi, FakeCloud

CONTENT = bytes(range(256)) * 10_000


async def test_a_backup_appears_whole_and_for_its_owner_only(cloud: Cloud, fake: FakeCloud, tmp_path: Path) -> None:
    fake.backup, told = CONTENT, []
    made = await cloud.cluster.backup(tmp_path / "b", progress=lambda done, total: told.append((done, total)))
    assert (tmp_path / "b").read_bytes() == CONTENT and made.size_bytes == len(CONTENT)
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o600
    assert told[-1] == (len(CONTENT), len(CONTENT)) and not (tmp_path / "b.part").exists()


async def test_a_cut_backup_begins_again(cloud: Cloud, fake: FakeCloud, api: FakeApi, tmp_path: Path) -> None:
    """The next one is another file: nothing of the first may be left in it."""
    fake.backup = b"x" * len(CONTENT)

    async def cut() -> None:
        fake.backup = CONTENT
        await api.break_off()

    fake.before["sent"] = [cut]
    await cloud.cluster.backup(tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == CONTENT


async def test_a_wrong_backup_is_not_kept(
    cloud: Cloud, fake: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.backup = CONTENT
    (tmp_path / "b").write_bytes(b"the former one")
    fake.before["sent"] = [errors_of_the_wire]
    with pytest.raises(errors.CloudError):
        await cloud.cluster.backup(tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"the former one" and not (tmp_path / "b.part").exists()


async def errors_of_the_wire() -> None:
    raise RuntimeError("a bug of the cloud")


async def test_transfer_comes_back_when_another_leads(cloud: Cloud, fake: FakeCloud) -> None:
    for name in ("c1", "c2"):
        fake.cluster.controllers.add(name=name)
    fake.successors = ["c1", "c1", "c2"]
    now = await cloud.cluster.transfer("c2")
    assert isinstance(now, Cluster) and (now.leader, now.epoch) == ("c2", 8)
    with pytest.raises(errors.NotFound):
        await cloud.cluster.transfer("c9")
    with pytest.raises(errors.WaitTimeout):
        await cloud.cluster.transfer(deadline_s=0.3)


async def test_differences(cloud: Cloud, fake: FakeCloud) -> None:
    row = cluster_pb2.Difference(kind="foreign_server", resource_kind="server", resource_id="s1", owner="operator")
    fake.rows["Difference"]["1"] = row
    found = [one async for one in cloud.cluster.differences()]
    assert found == [Difference("foreign_server", "server", "s1", "", "", "operator", "", None)]
