"""A server's life on a real libvirt: the daemon as it is installed, real guests (emulated)."""

from __future__ import annotations

import uuid
from pathlib import Path

from skyrack.v1 import agent_pb2
from tests.computed.conftest import connect, sha256
from tests.computed.rig import Rig, until

PENDING, READY, RUNNING, STOPPED, FAILED, GONE = (
    agent_pb2.OBSERVED_STATE_PENDING,
    agent_pb2.OBSERVED_STATE_READY,
    agent_pb2.OBSERVED_STATE_RUNNING,
    agent_pb2.OBSERVED_STATE_STOPPED,
    agent_pb2.OBSERVED_STATE_FAILED,
    agent_pb2.OBSERVED_STATE_GONE,
)


def new_server(rig: Rig, image: bytes, power: int = agent_pb2.POWER_RUNNING, **more: object) -> agent_pb2.ServerSpec:
    digest = sha256(image)
    rig.storage.blobs.setdefault(digest, image)
    spec = agent_pb2.ServerSpec(name="web-1", vcpus=1, memory_mib=128, root_disk_gib=1, power=power, **more)
    spec.image.sha256, spec.image.format, spec.image.size_bytes = digest, "qcow2", len(image)
    spec.image.sources.append(rig.address)
    return spec


def files_of(rig: Rig, server_id: str) -> list[Path]:
    return [p for name in ("disks", "console") for p in (rig.directory / name).glob(f"{server_id}*")]


async def test_prepare_start_stop_delete(rig: Rig, mini_image: bytes) -> None:
    server_id = str(uuid.uuid4())
    await rig.start_agent()
    spec = new_server(rig, mini_image, agent_pb2.POWER_PREPARED)
    await rig.controller.put(server_id, spec)
    await rig.controller.wait(server_id, READY)
    domain = connect(rig.host).lookupByUUIDString(server_id)
    assert not domain.isActive()

    spec.power = agent_pb2.POWER_RUNNING
    await rig.controller.put(server_id, spec)
    seen = await rig.controller.wait(server_id, RUNNING)
    assert [m.name for m in seen.milestones] == ["image", "disk", "defined", "running"]
    await until(lambda: b"mini: " in console(rig, server_id) and b"ready" in console(rig, server_id), "a booted guest")
    query = agent_pb2.Query(read_console_log=agent_pb2.ReadConsoleLog(server_id=server_id, bytes_max=100))
    answer = await rig.controller.ask("q1", query)
    assert answer.ok and 0 < len(answer.body) <= 100

    spec.power = agent_pb2.POWER_STOPPED
    await rig.controller.put(server_id, spec)
    await rig.controller.wait(server_id, STOPPED)
    assert b"power button" in console(rig, server_id)

    await rig.controller.remove(server_id)
    assert files_of(rig, server_id) == []
    assert connect(rig.host).listAllDomains(0) == []


def console(rig: Rig, server_id: str) -> bytes:
    path = rig.directory / "console" / f"{server_id}.log"
    return path.read_bytes() if path.exists() else b""
