"""A server's life on a real libvirt: the daemon as it is installed, real guests (emulated)."""

from __future__ import annotations

import uuid

from skyrack.v1 import agent_pb2
from tests.computed.conftest import connect
from tests.computed.rig import FAILED, READY, RUNNING, STOPPED, Rig, until


def reboot(server_id: str, *, hard: bool) -> agent_pb2.Task:
    return agent_pb2.Task(reboot_server=agent_pb2.RebootServer(server_id=server_id, hard=hard))


async def booted(rig: Rig, server_id: str, times: int = 1) -> None:
    await until(lambda: rig.console(server_id).count(b"] ready") >= times, f"boot number {times}")


async def test_prepare_run_reboot_stop_start_delete(rig: Rig, mini_image: bytes) -> None:
    server_id = str(uuid.uuid4())
    await rig.start_agent()
    spec = rig.new_server(mini_image, agent_pb2.POWER_PREPARED)
    await rig.controller.put(server_id, spec)
    await rig.controller.wait(server_id, READY)
    domain = connect(rig.host).lookupByUUIDString(server_id)
    assert not domain.isActive()

    spec.power = agent_pb2.POWER_RUNNING
    await rig.controller.put(server_id, spec)
    seen = await rig.controller.wait(server_id, RUNNING)
    assert [m.name for m in seen.milestones] == ["image", "disk", "defined", "running"]
    await booted(rig, server_id)

    assert (await rig.controller.task("soft", reboot(server_id, hard=False))).ok
    assert b"power button" in rig.console(server_id)
    await booted(rig, server_id, 2)
    assert (await rig.controller.task("hard", reboot(server_id, hard=True))).ok
    await booted(rig, server_id, 3)
    assert rig.console(server_id).count(b"power button") == 1

    spec.power = agent_pb2.POWER_STOPPED
    await rig.controller.put(server_id, spec)
    await rig.controller.wait(server_id, STOPPED)
    assert rig.console(server_id).count(b"power button") == 2
    refused = await rig.controller.task("late", reboot(server_id, hard=True))
    assert not refused.ok and refused.reason == "CONFLICT"

    spec.power = agent_pb2.POWER_RUNNING
    await rig.controller.put(server_id, spec)
    await rig.controller.wait(server_id, RUNNING)

    await rig.controller.remove(server_id)
    assert rig.files(server_id) == []
    assert connect(rig.host).listAllDomains(0) == []


async def test_console_log_gives_the_last_bytes(rig: Rig, mini_image: bytes) -> None:
    server_id = str(uuid.uuid4())
    await rig.start_agent()
    await rig.controller.put(server_id, rig.new_server(mini_image))
    await rig.controller.wait(server_id, RUNNING)
    await until(lambda: b"userland up" in rig.console(server_id), "first words of the guest")
    query = agent_pb2.Query(read_console_log=agent_pb2.ReadConsoleLog(server_id=server_id, bytes_max=20))
    answer = await rig.controller.ask("some", query)
    assert answer.ok and len(answer.body) == 20 and answer.body in rig.console(server_id)
    stranger = agent_pb2.Query(read_console_log=agent_pb2.ReadConsoleLog(server_id=str(uuid.uuid4())))
    assert not (await rig.controller.ask("none", stranger)).ok


async def test_guest_that_ignores_the_power_button_is_cut_off(rig: Rig, mini_image: bytes) -> None:
    rig.settings["stop_grace_s"] = 1.0
    server_id = str(uuid.uuid4())
    await rig.start_agent()
    spec = rig.new_server(mini_image)
    await rig.controller.put(server_id, spec)
    await rig.controller.wait(server_id, RUNNING)
    spec.power = agent_pb2.POWER_STOPPED  # it is in its firmware now, which does not know the button
    await rig.controller.put(server_id, spec)
    await rig.controller.wait(server_id, STOPPED)


async def test_guest_that_switches_itself_off_stays_off_until_it_is_started(rig: Rig, mini_image: bytes) -> None:
    server_id = str(uuid.uuid4())
    await rig.start_agent()
    spec = rig.new_server(mini_image)
    await rig.controller.put(server_id, spec)
    await rig.controller.wait(server_id, RUNNING)
    await booted(rig, server_id)
    connect(rig.host).lookupByUUIDString(server_id).shutdown()
    await rig.controller.wait(server_id, STOPPED)
    for power, state in ((agent_pb2.POWER_STOPPED, STOPPED), (agent_pb2.POWER_RUNNING, RUNNING)):
        spec.power = power
        await rig.controller.put(server_id, spec)
        await rig.controller.wait(server_id, state)


async def test_image_larger_than_the_flavors_disk_is_a_clear_fault(rig: Rig, mini_image: bytes) -> None:
    big = mini_image[:24] + (3 << 30).to_bytes(8, "big") + mini_image[32:]
    server_id = str(uuid.uuid4())
    await rig.start_agent()
    await rig.controller.put(server_id, rig.new_server(big))
    seen = await rig.controller.wait(server_id, FAILED)
    assert seen.fault == "root_disk_gib: the image needs 3 GiB, the disk has 1 GiB"
    await rig.controller.remove(server_id)
    assert rig.files(server_id) == []


async def test_config_drive_tells_the_guest_who_it_is(rig: Rig, mini_image: bytes) -> None:
    server_id = str(uuid.uuid4())
    spec = rig.new_server(mini_image, config_drive=True)
    spec.metadata.hostname = "web-one"
    spec.metadata.public_keys.add(name="k", data="ssh-ed25519 AAAAC3Nz me@here")
    await rig.start_agent()
    await rig.controller.put(server_id, spec)
    await rig.controller.wait(server_id, RUNNING)
    await until(lambda: b"hostname web-one, 1 ssh key" in rig.console(server_id), "a guest that knows its name")
    assert b"metadata from config drive" in rig.console(server_id)


async def test_waits_for_its_network_interface(rig: Rig, mini_image: bytes) -> None:
    """The tap is networkd's; it may come later than the order to start."""
    server_id = str(uuid.uuid4())
    spec = rig.new_server(mini_image)
    spec.interfaces.add(port_id=str(uuid.uuid4()), device="tap-cmp0", mac="fa:16:3e:00:00:01", mtu=1400)
    await rig.start_agent()
    await rig.controller.put(server_id, spec)
    await until(lambda: "tap-cmp0" in rig.controller.observed.get(server_id, agent_pb2.ObservedServer()).fault, "a reason")
    tap = ("ip", "tuntap", "add", "dev", "tap-cmp0", "mode", "tap", "vnet_hdr")
    await rig.host.execute(*tap)
    try:
        await rig.host.execute("ip", "link", "set", "tap-cmp0", "up", "mtu", "1400")
        await rig.controller.wait(server_id, RUNNING, lambda seen: not seen.fault)
        link = await rig.host.execute("ip", "-details", "link", "show", "tap-cmp0")
        assert "LOWER_UP" in link and "mtu 1400" in link and "vnet_hdr on" in link
        await rig.controller.remove(server_id)
        assert "tap-cmp0" in await rig.host.execute("ip", "link", "show", "tap-cmp0")  # it is not ours to remove
    finally:
        await rig.host.execute("ip", "link", "delete", "tap-cmp0")
