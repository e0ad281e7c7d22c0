"""How long a launch takes beside raw libvirt, in the same run, on the same host. Prints the figures (`pytest -s`)."""

from __future__ import annotations

import statistics
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

from computed.domain_xml import XmlSettings, domain_xml
from computed.wire import server
from skyrack.v1 import agent_pb2
from tests.computed.conftest import connect
from tests.computed.rig import READY, RUNNING, Rig

ROUNDS = 7
RATIO_LIMIT = 3.0  # only to catch a launch that waits for something it need not; the figure itself is printed


def raw_launch(connection: Any, spec: agent_pb2.ServerSpec, base: Path, directory: Path) -> float:
    """Overlay, define, start, as a script would. Seconds until it runs."""
    server_id = str(uuid.uuid4())
    settings = XmlSettings("qemu", disks_dir=directory / "disks", console_dir=directory / "console")
    began = time.perf_counter()
    disk = settings.disks_dir / server_id / "root.qcow2"
    disk.parent.mkdir()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, disk, "1G"], check=True)
    domain = connection.defineXML(domain_xml(server(server_id, spec), settings))
    domain.create()
    took = time.perf_counter() - began
    domain.destroy()
    domain.undefine()
    return took


async def launch(rig: Rig, spec: agent_pb2.ServerSpec) -> dict[str, float]:
    """Seconds from the order leaving the controller to each milestone, and ("told") to the report reaching it."""
    server_id = str(uuid.uuid4())
    began_wall, began = time.time(), time.perf_counter()
    await rig.controller.put(server_id, spec)
    seen = await rig.controller.wait(server_id, RUNNING)
    times = {m.name: m.time.ToNanoseconds() / 1e9 - began_wall for m in seen.milestones}
    times["told"] = rig.controller.arrived[server_id] - began
    await rig.controller.remove(server_id)
    return times


async def test_launch_beside_raw_libvirt(rig: Rig, mini_image: bytes) -> None:
    rig.settings["sample_interval_s"] = 10.0
    await rig.start_agent()
    spec = rig.new_server(mini_image, agent_pb2.POWER_PREPARED)
    warm = str(uuid.uuid4())
    await rig.controller.put(warm, spec)
    await rig.controller.wait(warm, READY)
    spec.power = agent_pb2.POWER_RUNNING
    connection = connect(rig.host)
    base = rig.directory / "images" / f"{spec.image.sha256}.img"
    raw: list[float] = []
    ours: list[dict[str, float]] = []
    for _ in range(ROUNDS):
        raw.append(raw_launch(connection, spec, base, rig.directory))
        ours.append(await launch(rig, spec))
    p50_ms = {name: statistics.median(times[name] for times in ours) * 1e3 for name in ours[0]}
    raw_ms = statistics.median(raw) * 1e3
    ratio = p50_ms["told"] / raw_ms
    print(
        f"\nlaunch p50: raw libvirt {raw_ms:.0f} ms, computed {p50_ms['told']:.0f} ms, ratio {ratio:.2f}, n = {ROUNDS};",
        end=" ",
    )
    print("milestones: " + ", ".join(f"{name} {ms:.0f} ms" for name, ms in p50_ms.items()))
    assert ratio < RATIO_LIMIT
