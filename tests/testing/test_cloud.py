"""`skyrack.testing.Cloud`: what its page promises."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemonkit.errors import Unavailable
from skyrack.client.errors import Unauthenticated
from skyrack.testing import Cloud, sync

ROOT = Path(__file__).resolve().parents[2]
HANG_S = 60.0
SPEED = """
import asyncio, re, time
begun_s = time.process_time()
from skyrack.testing import Cloud

async def main():
    async with Cloud() as cloud:
        await cloud.client.tokens.current()
        peak_kib = re.search(r"VmHWM:\\s+([0-9]+)", open("/proc/self/status").read())[1]
        print(time.process_time() - begun_s, int(peak_kib) / 1024)

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the cloud makes its directory; empty again at the end."""
    path = tmp_path / "scratch"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    yield path
    assert list(path.iterdir()) == []


@pytest.fixture
async def cloud(scratch: Path) -> AsyncIterator[Cloud]:
    async with Cloud() as cloud:
        yield cloud


async def launch(cloud: Cloud, tmp_path: Path) -> Any:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(1 << 16))
    image = await cloud.client.images.upload(await cloud.client.images.create("mini", format="raw"), disk)
    network = await cloud.client.networks.create("private")
    await cloud.client.subnets.create("private", network=network, cidr="10.0.0.0/24")
    flavor = await cloud.client.flavors.find("m1.tiny")
    server = await cloud.client.servers.create("web", flavor=flavor, image=image, node="k1")
    return await cloud.client.servers.wait(server, "ACTIVE", deadline_s=HANG_S)


async def test_a_server_lives_and_dies(cloud: Cloud, tmp_path: Path) -> None:
    server = await launch(cloud, tmp_path)
    assert server.id in cloud.rack.machines["k1"].domains
    await cloud.client.servers.delete(server)
    await cloud.client.servers.wait_gone(server, deadline_s=HANG_S)
    assert not cloud.rack.machines["k1"].domains


async def test_a_daemon_is_killed_and_comes_back(cloud: Cloud, tmp_path: Path) -> None:
    server = await launch(cloud, tmp_path)
    await cloud.rack.kill("computed-k1")
    await cloud.rack.start("computed-k1")
    async with asyncio.timeout(HANG_S):
        await cloud.rack.sessions["computed-k1"].connected.wait()
    await cloud.client.servers.wait(server, "ACTIVE", deadline_s=HANG_S)
    assert cloud.rack.machines["k1"].calls.count(("start", server.id)) == 1


async def test_a_volume_from_an_image_of_another_storage_node(scratch: Path, tmp_path: Path) -> None:
    async with Cloud(compute_nodes=1, storage_nodes=3) as cloud:
        disk = tmp_path / "disk.raw"
        disk.write_bytes(bytes(1 << 16))
        image = await cloud.client.images.upload(await cloud.client.images.create("mini", format="raw"), disk)
        made = [await cloud.client.volumes.create(f"v{number}", size_gib=1, image=image) for number in range(6)]
        for volume in made:
            await cloud.client.volumes.wait(volume, "AVAILABLE", deadline_s=HANG_S)
        assert sum(len(volumes.sizes) for volumes in cloud.rack.volumes.values()) == len(made)
        assert sum(bool(volumes.sizes) for volumes in cloud.rack.volumes.values()) > 1


async def test_others_may_log_in(cloud: Cloud) -> None:
    project = await cloud.client.projects.create("lab")
    ann = await cloud.client.users.create("ann", password="correct horse battery")
    await cloud.client.roles.grant(user=ann, project=project, role="member")
    async with cloud.connect(user="ann", password="correct horse battery", project="lab") as anns:
        await anns.networks.create("hers")
        assert [n.name async for n in anns.networks.list()] == ["hers"]
    assert [n.name async for n in cloud.client.networks.list()] == []
    async with cloud.connect(user="ann", password="wrong", project="lab") as nobodys:
        with pytest.raises(Unauthenticated):
            await nobodys.tokens.current()


async def test_the_command_line_finds_it(cloud: Cloud) -> None:
    command = [str(Path(sys.executable).with_name("skyrack")), "node", "list", "-f", "value", "-c", "name"]
    process = await asyncio.create_subprocess_exec(*command, env=os.environ | cloud.environ, stdout=subprocess.PIPE)
    told, _ = await asyncio.wait_for(process.communicate(), HANG_S)
    assert sorted(told.decode().split()) == ["g1", "k1", "k2", "s1"]


async def test_two_at_once_and_the_same_ids_under_the_same_seed(scratch: Path) -> None:
    async with Cloud(seed=5) as one, Cloud(seed=5) as two:
        assert one.endpoint != two.endpoint
        ids = [{f.id async for f in cloud.client.flavors.list()} for cloud in (one, two)]
    assert ids[0] == ids[1]


def test_without_an_event_loop(scratch: Path) -> None:
    with sync.Cloud(compute_nodes=1) as cloud:
        cloud.client.networks.create("private")
        assert {node.name for node in cloud.client.nodes.list()} == {"g1", "k1", "s1"}
        machine = cloud.inner.rack.machines["k1"]
        machine.fail("start", Unavailable("told to"))
        cloud.run(cloud.inner.rack.kill("computed-k1"))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("skyrack")]


def test_soon_and_small() -> None:
    """From import to the first token. CPU time: the machine may have other work."""
    told = subprocess.run([sys.executable, "-c", SPEED], cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=True)
    cpu_s, peak_mib = map(float, told.stdout.split())
    assert cpu_s < 2.0
    assert peak_mib < 100
