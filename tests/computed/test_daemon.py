"""The program itself: its options, its refusals, what it weighs."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import urllib.request
import uuid
from pathlib import Path

import pytest

from computed.config import Config
from computed.drivers.libvirt_driver import kvm_works
from daemonkit import config
from daemonkit.errors import ConfigError
from tests.computed.rig import RUNNING, Rig, inside, until

# A daemon's promise is 60 MiB of PSS in a rack (bench/footprint.py). Its share of the libraries' pages depends on who else runs
# on the machine: here it is the rest that counts, what this process alone needs.
ANONYMOUS_MIB_MAX = 45
CPU_SHARE_MAX = 0.05  # idle it is below 0.01; other tests may share the machine
WATCHED_S = 5.0


def computed(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "computed.daemon", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_printed_configuration_is_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "computed.toml"
    path.write_text(computed("--print-config").stdout)
    assert config.load(Config, path) == Config()


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ({"drivver": "fake"}, "unknown key 'drivver'"),
        ({"driver": "xen"}, "known: libvirt, fake"),
        ({"virt_type": "hyperv"}, "known: auto, kvm, qemu"),
        ({"console_dir": "/" + "x" * 70}, "console_dir is too long"),
        ({"starts_max": 0}, "must be positive"),
    ],
)
def test_wrong_options_are_refused(raw: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(why)):
        config.parse(Config, raw)


@pytest.mark.parametrize(("flags", "works"), [("fpu vmx sse", True), ("svm", True), ("fpu vmxnet", False)])
def test_kvm_needs_a_cpu_that_can(tmp_path: Path, flags: str, works: bool) -> None:
    device, cpuinfo = tmp_path / "kvm", tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert not kvm_works(device, cpuinfo)
    device.touch()
    assert kvm_works(device, cpuinfo) is works


def test_refuses_without_a_node(tmp_path: Path) -> None:
    path = tmp_path / "computed.toml"
    path.write_text(f'data_dir = "{tmp_path}"\n')
    ended = computed("--config", str(path))
    assert ended.returncode == 1 and ended.stderr == "cannot start: node and controllers must be set\n"


async def test_second_daemon_on_the_same_data_refuses(rig: Rig) -> None:
    await rig.start_agent()
    await until(lambda: rig.controller.hello, "a session")
    ended = await asyncio.to_thread(computed, "--config", str(rig.directory / "computed.toml"))
    assert ended.returncode == 1 and "in use by another process" in ended.stderr


async def test_ends_in_order_and_leaves_guests_running(rig: Rig, mini_image: bytes) -> None:
    server_id = str(uuid.uuid4())
    await rig.start_agent()
    await rig.controller.put(server_id, rig.new_server(mini_image))
    await rig.controller.wait(server_id, RUNNING)
    os.kill(rig.agent_pid(), 15)
    assert await rig.agent_ended() == 0
    rig.controller.observed.clear()
    await rig.start_agent()
    await rig.controller.wait(server_id, RUNNING)
    hello = rig.controller.hello
    assert hello is not None and hello.inventory.compute.memory_mib > 0
    assert list(hello.inventory.compute.images_cached) == list(rig.storage.blobs)
    assert re.fullmatch(r"QEMU \d+\.\d+\.\d+, libvirt \d+\.\d+\.\d+", hello.inventory.compute.hypervisor)
    assert "servers" in metrics(rig)


def metrics(rig: Rig) -> str:
    with inside(rig.host.namespace), urllib.request.urlopen("http://127.0.0.1:9720/metrics") as page:
        return str(page.read().decode())


async def test_idle_footprint(rig: Rig, mini_image: bytes) -> None:
    rig.settings |= {"sample_interval_s": 10.0, "pass_interval_s": 30.0}
    server_id = str(uuid.uuid4())
    await rig.start_agent()
    await rig.controller.put(server_id, rig.new_server(mini_image))
    await rig.controller.wait(server_id, RUNNING)
    pid = rig.agent_pid()
    before = cpu_s(pid)
    await asyncio.sleep(WATCHED_S)
    share = (cpu_s(pid) - before) / WATCHED_S
    own_mib = anonymous_kib(pid) / 1024
    print(f"\ncomputed with one guest: {own_mib:.1f} MiB of its own, {share:.2%} of a core")
    assert own_mib < ANONYMOUS_MIB_MAX and share < CPU_SHARE_MAX


def anonymous_kib(pid: int) -> int:
    return int(re.findall(r"^Pss_Anon:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[0])


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
