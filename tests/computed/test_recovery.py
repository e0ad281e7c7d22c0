"""Whatever dies, whenever: afterwards the node is as it should be, with nothing left behind and no guest disturbed."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from pathlib import Path

import libvirt
import pytest

from daemonkit.failpoint import EXIT_CODE
from skyrack.v1 import agent_pb2
from tests.computed.conftest import connect
from tests.computed.rig import PENDING, RUNNING, STOPPED, Rig, until

STEPS_OF_A_LAUNCH = (
    "computed.before.FetchImage",
    "computed.image.downloaded",
    "computed.before.MakeDisks",
    "computed.disk.made",
    "computed.after.MakeDisks",
    "computed.after.Define",
    "computed.before.Start",
    "computed.after.Start",
)
STEPS_OF_A_REMOVAL = (
    "computed.before.CutPower",
    "computed.after.CutPower",
    "computed.after.Undefine",
    "computed.disk.removed",
    "computed.after.RemoveFiles",
)


def guest_pid(rig: Rig, server_id: str) -> int:
    """QEMU's, as the machine numbers it: it keeps the number as long as nobody touches the guest."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"guest=skyrack-{server_id}".encode() in (entry / "cmdline").read_bytes():
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError("no guest")


def definition(rig: Rig, server_id: str) -> str:
    """The persistent one; "" while libvirtd is away."""
    try:
        return str(connect(rig.host).lookupByUUIDString(server_id).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    except libvirt.libvirtError:
        return ""


async def test_running_guests_are_adopted(rig: Rig, mini_image: bytes) -> None:
    server_id, image = str(uuid.uuid4()), rig.new_server(mini_image)
    await rig.start_agent()
    await rig.controller.put(server_id, image)
    await rig.controller.wait(server_id, RUNNING)
    guest = guest_pid(rig, server_id)

    await rig.kill_agent()
    rig.controller.observed.clear()
    await rig.start_agent()
    await rig.controller.wait(server_id, RUNNING)

    await rig.host.signal_unit("libvirtd", signal.SIGKILL)
    await rig.host.until("libvirtd", timeout_s=60)
    await until(lambda: "connection to libvirtd lost" in rig.log(), "the loss in the log")
    spec = rig.controller.desired[f"server/{server_id}"].server
    spec.name = "renamed"  # makes it define anew, so we know that it works with the new libvirtd
    await rig.controller.put(server_id, spec)
    await until(lambda: "renamed" in definition(rig, server_id), "the new definition")
    assert guest_pid(rig, server_id) == guest
    assert rig.controller.observed[server_id].state == RUNNING

    await rig.kill_agent()
    rig.controller.observed.clear()  # the controller loses its memory too: the next session begins with a whole report
    first = len(rig.controller.history)
    await rig.start_agent()
    await rig.controller.wait(server_id, RUNNING)
    assert {seen.state for _id, seen in rig.controller.history[first:]} == {RUNNING}  # never told as less
    assert guest_pid(rig, server_id) == guest


async def test_libvirtd_that_hangs_is_noticed_and_survived(rig: Rig, mini_image: bytes) -> None:
    """Only keepalive tells: calls into a stopped libvirtd would wait for ever."""
    server_id = str(uuid.uuid4())
    await rig.start_agent()
    spec = rig.new_server(mini_image, agent_pb2.POWER_PREPARED)
    await rig.controller.put(server_id, spec)
    await rig.controller.wait(server_id, agent_pb2.OBSERVED_STATE_READY)
    await rig.host.signal_unit("libvirtd", signal.SIGSTOP)
    try:
        spec.power = agent_pb2.POWER_RUNNING
        await rig.controller.put(server_id, spec)
        await until(lambda: "connection to libvirtd lost" in rig.log(), "the loss in the log")
        question = agent_pb2.Query(read_console_log=agent_pb2.ReadConsoleLog(server_id=server_id))
        assert (await rig.controller.ask("q1", question)).ok  # the rest of the daemon lives on
        assert await rig.agent_ended() == 1  # the library does not recover; whoever watches over it starts it anew
    finally:
        await rig.host.signal_unit("libvirtd", signal.SIGCONT)
    await rig.start_agent()
    await rig.controller.wait(server_id, RUNNING)


async def test_works_without_a_controller(rig: Rig, mini_image: bytes) -> None:
    """A restarted daemon knows what is wanted before anybody tells it."""
    server_id = str(uuid.uuid4())
    await rig.start_agent()
    await rig.controller.put(server_id, rig.new_server(mini_image))
    await rig.controller.wait(server_id, RUNNING)
    await rig.kill_agent()
    rig.settings["controllers"] = ["127.0.0.1:9"]
    connect(rig.host).lookupByUUIDString(server_id).destroy()
    await rig.start_agent()
    await until(lambda: connect(rig.host).lookupByUUIDString(server_id).isActive(), "a running guest")


async def test_libvirtd_that_is_away_at_the_start(rig: Rig, mini_image: bytes) -> None:
    server_id = str(uuid.uuid4())
    await rig.host.stop_unit("libvirtd")
    try:
        await rig.start_agent()
        await rig.controller.put(server_id, rig.new_server(mini_image))
        await rig.controller.wait(server_id, PENDING)
        assert rig.controller.hello is not None and rig.controller.hello.inventory.compute.memory_mib == 0
    finally:
        await rig.host.start_unit("libvirtd")
    await rig.controller.wait(server_id, RUNNING)


@pytest.mark.parametrize("step", STEPS_OF_A_LAUNCH)
async def test_crash_at_each_step_of_a_launch(rig: Rig, mini_image: bytes, step: str) -> None:
    server_id = str(uuid.uuid4())
    await rig.start_agent(SKYRACK_FAILPOINT=step)
    await rig.controller.put(server_id, rig.new_server(mini_image))
    assert await rig.agent_ended() == EXIT_CODE
    before = guest_pid(rig, server_id) if step == "computed.after.Start" else None
    await rig.start_agent()
    await rig.controller.wait(server_id, RUNNING)
    assert before in (None, guest_pid(rig, server_id))
    await rig.controller.remove(server_id)
    left = {path.name for path in rig.directory.rglob("*") if server_id in str(path) or path.suffix == ".partial"}
    assert left == set()
    assert connect(rig.host).listAllDomains(0) == []


@pytest.mark.parametrize("step", STEPS_OF_A_REMOVAL)
async def test_crash_at_each_step_of_a_removal(rig: Rig, mini_image: bytes, step: str) -> None:
    server_id = str(uuid.uuid4())
    await rig.start_agent(SKYRACK_FAILPOINT=step)
    await rig.controller.put(server_id, rig.new_server(mini_image))
    await rig.controller.wait(server_id, RUNNING)
    await rig.controller.put(server_id, agent_pb2.ServerSpec(absent=True))
    assert await rig.agent_ended() == EXIT_CODE
    await rig.start_agent()
    await rig.controller.wait(server_id, agent_pb2.OBSERVED_STATE_GONE)
    assert rig.files(server_id) == []
    assert connect(rig.host).listAllDomains(0) == []


async def test_launch_given_up_midway_leaves_nothing(rig: Rig, mini_image: bytes) -> None:
    """Told absent while its image is still on the way, and while it starts."""
    server_ids = [str(uuid.uuid4()) for _ in range(4)]
    spec = rig.new_server(mini_image)
    await rig.start_agent()
    for n, server_id in enumerate(server_ids):
        await rig.controller.put(server_id, spec)
        await asyncio.sleep(0.05 * n)
        await rig.controller.put(server_id, agent_pb2.ServerSpec(absent=True))
    for server_id in server_ids:
        await rig.controller.wait(server_id, agent_pb2.OBSERVED_STATE_GONE)
        assert rig.files(server_id) == []
    assert connect(rig.host).listAllDomains(0) == []


async def test_foreign_guests_are_told_and_left_alone(rig: Rig, mini_image: bytes) -> None:
    """One of ours that nobody names; one that is not ours at all; and files without a domain."""
    server_id, stranger, leftover = (str(uuid.uuid4()) for _ in range(3))
    await rig.start_agent()
    await rig.controller.put(server_id, rig.new_server(mini_image))
    await rig.controller.wait(server_id, RUNNING)
    guest = guest_pid(rig, server_id)
    alien = f"<name>alien</name><uuid>{stranger}</uuid><memory unit='MiB'>32</memory><os><type>hvm</type></os>"
    connect(rig.host).createXML(f"<domain type='qemu'>{alien}</domain>", 0)
    (rig.directory / "disks" / leftover).mkdir()

    await rig.controller.forget(server_id)
    await rig.controller.wait(server_id, RUNNING, lambda seen: seen.foreign)
    await rig.controller.wait(leftover, STOPPED, lambda seen: seen.foreign)
    assert guest_pid(rig, server_id) == guest
    assert stranger not in rig.controller.observed

    await rig.controller.put(stranger, agent_pb2.ServerSpec(absent=True))  # its uuid does not make it ours
    await until(lambda: "not ours" in rig.controller.observed.get(stranger, agent_pb2.ObservedServer()).fault, "a refusal")
    assert connect(rig.host).lookupByUUIDString(stranger).isActive()
    for ours in (server_id, leftover):
        await rig.controller.remove(ours)
        assert rig.files(ours) == []


async def test_samples_reach_the_controller_exactly_once(rig: Rig, mini_image: bytes) -> None:
    server_id = str(uuid.uuid4())
    rig.controller.acknowledge_telemetry = False
    await rig.start_agent()
    await rig.controller.put(server_id, rig.new_server(mini_image))
    await rig.controller.wait(server_id, RUNNING)
    await until(lambda: rig.controller.samples, "the first samples")
    await asyncio.sleep(1.5)
    os.kill(rig.agent_pid(), signal.SIGKILL)
    await rig.kill_agent()
    rig.controller.acknowledge_telemetry = True
    await rig.start_agent()
    before = len(rig.controller.samples)
    await until(lambda: len(rig.controller.samples) > before + 5, "more samples")
    samples = rig.controller.samples
    (incarnation,) = {key[0] for key in samples}
    numbers = sorted(seq for _incarnation, seq in samples)
    assert numbers == list(range(1, len(numbers) + 1))
    assert {sample.server_id for sample in samples.values()} == {server_id}
    cpu = [samples[incarnation, n].cpu_ns for n in numbers]
    assert cpu == sorted(cpu) and cpu[-1] > 0
    assert samples[incarnation, numbers[-1]].memory_kib > 10_000
