"""Volumes and exports on the real storage daemon."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time

import pytest

from daemonkit import command, failpoint
from daemonkit.errors import CommandFailed
from tests.storaged.conftest import Rig
from tests.storaged.rig import FAILED, GONE, PENDING, READY, eventually, export, free_port, new_id, residue, volume


async def reads(rig: Rig, name: str) -> bool:
    return "512/512" in await rig.nbd("host-1").io(name, "read 0 512")


async def test_only_the_right_certificate_and_name_read_and_write(rig: Rig) -> None:
    await rig.node.start()
    v, a = new_id(), new_id()
    rig.controller.want(volume(v), export(a, v, "secret-name", "host-1"))
    await rig.controller.until_settled()
    host = rig.nbd("host-1")
    await host.io("secret-name", "write -P 0x5a 0 1M", "flush")
    assert "read 1048576/1048576" in await host.io("secret-name", "read -P 0x5a 0 1M")

    with pytest.raises(CommandFailed, match="not"):
        await host.io("other-name", "read 0 512")
    for stranger in ("host-2", "host-10", "aCN=host-1", "x,CN=host-1"):
        with pytest.raises(CommandFailed):
            await rig.nbd(stranger).io("secret-name", "read 0 512")
    plain = f"nbd://127.0.0.1:{rig.node.nbd_port}/secret-name"
    with pytest.raises(CommandFailed, match="TLS"):
        await command.run("qemu-io", "-f", "raw", plain, "-c", "read 0 512")
    assert rig.controller.hello is not None
    storage = rig.controller.hello.inventory.storage
    assert (storage.nbd_host, storage.nbd_port) == ("127.0.0.1", rig.node.nbd_port)


async def test_a_revoked_export_cuts_its_writer_and_the_next_has_the_data(rig: Rig) -> None:
    await rig.node.start()
    v, a, b = new_id(), new_id(), new_id()
    rig.controller.want(volume(v), export(a, v, "first", "host-1"))
    await rig.controller.until_settled()
    writer = await asyncio.create_subprocess_exec(
        *rig.nbd("host-1").arguments("first"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert writer.stdin and writer.stdout
        writer.stdin.write(b"write -P 7 0 64k\n")
        assert b"wrote" in await writer.stdout.readline()
        await writer.stdout.readline()
        rig.controller.want(export(b, v, "second", "host-2"), forget=(f"export/{a}",))
        assert (await rig.controller.until(f"export/{a}", GONE)).state == GONE
        await rig.controller.until(f"export/{b}", READY)
        writer.stdin.write(b"write -P 8 0 64k\n")
        writer.stdin.close()
        assert b"failed" in await writer.stdout.read()
    finally:
        if writer.returncode is None:
            writer.kill()
        await writer.wait()
    assert "65536/65536" in await rig.nbd("host-2").io("second", "read -P 7 0 64k")
    with pytest.raises(CommandFailed):
        await rig.nbd("host-1").io("second", "read 0 512")


async def test_an_export_is_ready_soon(rig: Rig) -> None:
    await rig.node.start()
    v = new_id()
    rig.controller.want(volume(v))
    await rig.controller.until_settled()
    took_s = []
    for n in range(5):
        a = new_id()
        start_s = time.perf_counter()
        rig.controller.want(export(a, v, f"name-{n}"))
        await rig.controller.until(f"export/{a}", READY)
        took_s.append(time.perf_counter() - start_s)
    print("export ready after ms:", [round(s * 1000, 1) for s in took_s])
    assert min(took_s) < 2


async def test_removal_waits_for_exports_and_leaves_nothing(rig: Rig) -> None:
    await rig.node.start()
    v, a = new_id(), new_id()
    rig.controller.want(volume(v), export(a, v, "n"))
    await rig.controller.until_settled()
    rig.controller.want(volume(v, absent=True))
    told = await rig.controller.until(f"volume/{v}", PENDING)
    assert a in told.fault
    assert (rig.node.volumes / f"{v}.qcow2").exists()
    rig.controller.want(forget=(f"export/{a}",))
    await rig.controller.until(f"volume/{v}", GONE)
    await rig.controller.until(f"export/{a}", GONE)
    assert residue(rig.node) == {"volumes": [], "incoming": []}


async def test_an_unnamed_volume_is_foreign_and_kept(rig: Rig) -> None:
    await rig.node.start()
    v = new_id()
    rig.controller.want(volume(v))
    await rig.controller.until_settled()
    rig.controller.want(forget=(f"volume/{v}",))
    await eventually(lambda: rig.controller.seen[f"volume/{v}"].foreign)
    assert (rig.node.volumes / f"{v}.qcow2").exists()


async def test_growth_while_served(rig: Rig) -> None:
    await rig.node.start()
    v, a = new_id(), new_id()
    rig.controller.want(volume(v, gib=1), export(a, v, "n"))
    await rig.controller.until_settled()
    host = rig.nbd("host-1")
    await host.io("n", "write -P 3 0 64k")
    rig.controller.want(volume(v, gib=2))
    await eventually(lambda: f"volume/{v}" in rig.controller.seen)

    async def grown() -> bool:
        return "2 GiB" in await host.io("n", "length")

    await eventually(grown)
    assert "65536/65536" in await host.io("n", "read -P 3 0 64k")
    rig.controller.want(volume(v, gib=1))  # never shrinks
    await rig.controller.until_settled()
    assert "2 GiB" in await host.io("n", "length")


async def test_a_dead_storage_daemon_comes_back_with_every_export(rig: Rig) -> None:
    await rig.node.start()
    volumes = [new_id() for _ in range(4)]
    rig.controller.want(*(volume(v) for v in volumes), *(export(new_id(), v, f"n-{v}") for v in volumes))
    await rig.controller.until_settled()
    await rig.nbd("host-1").io(f"n-{volumes[0]}", "write -P 9 0 64k", "flush")
    killed = rig.node.qsd_pid()
    os.kill(killed, signal.SIGKILL)
    await eventually(lambda: rig.node.qsd_pid() != killed)
    for v in volumes:
        await eventually(lambda name=f"n-{v}": reads(rig, name))
    assert "65536/65536" in await rig.nbd("host-1").io(f"n-{volumes[0]}", "read -P 9 0 64k")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_volumes_stay_served_while_storaged_is_restarted(rig: Rig, number: signal.Signals) -> None:
    await rig.node.start()
    v, a, b = new_id(), new_id(), new_id()
    rig.controller.want(volume(v), export(a, v, "n"))
    await rig.controller.until_settled()
    pid = rig.node.qsd_pid()
    host = rig.nbd("host-1")
    await rig.node.kill(number)
    await host.io("n", "write -P 4 0 64k", "flush")
    # Changed while nobody looked: obeyed by the next run, without another storage daemon.
    rig.controller.want(export(b, v, "m", "host-2"), forget=(f"export/{a}",))
    await rig.node.start()
    await rig.controller.until(f"export/{b}", READY)
    await rig.controller.until(f"export/{a}", GONE)
    assert rig.node.qsd_pid() == pid
    assert "65536/65536" in await rig.nbd("host-2").io("m", "read -P 4 0 64k")
    with pytest.raises(CommandFailed):
        await host.io("n", "read 0 512")


async def test_it_works_on_what_it_holds_without_a_controller(rig: Rig) -> None:
    await rig.node.start()
    v, a = new_id(), new_id()
    rig.controller.want(volume(v), export(a, v, "n"))
    await rig.controller.until_settled()
    await rig.node.kill()
    pid = rig.node.qsd_pid()
    os.kill(pid, signal.SIGKILL)
    config = rig.node.directory / "storaged.toml"
    config.write_text(config.read_text().replace(str(rig.controller_port), "9"))
    await rig.node.start()
    await eventually(lambda: rig.node.qsd_pid() != pid)
    await eventually(lambda: reads(rig, "n"))


async def test_what_makes_no_sense_is_told_and_harms_nobody(rig: Rig) -> None:
    await rig.node.start()
    v = new_id()
    rig.controller.want(
        volume("../../etc/x"),
        volume("empty", gib=0),
        volume(v),
        export("a1", v, "n", "host*"),
        export("a2", new_id(), "m"),
        export("a3", v, "good"),
    )
    await rig.controller.until("volume/../../etc/x", FAILED)
    await rig.controller.until("export/a1", FAILED)
    assert "0 GiB" in (await rig.controller.until("volume/empty", FAILED)).fault
    assert "not on this node" in (await rig.controller.until("export/a2", FAILED)).fault
    await rig.controller.until("export/a3", READY)


async def test_a_second_storaged_on_the_same_data_refuses(rig: Rig) -> None:
    await rig.node.start()
    rig.controller.want(volume(new_id()))
    await rig.controller.until_settled()
    first = rig.node.process
    await rig.node.start()
    assert await rig.node.ended() == 1
    assert "in use by another process" in rig.node.log()
    rig.node.process = first


async def test_a_damaged_volume_is_told_and_not_replaced(rig: Rig) -> None:
    await rig.node.start()
    v = new_id()
    rig.controller.want(volume(v))
    await rig.controller.until_settled()
    await rig.node.kill()
    (rig.node.volumes / f"{v}.qcow2").write_bytes(b"junk")
    rig.controller.seen.clear()
    await rig.node.start()
    assert "damaged" in (await rig.controller.until(f"volume/{v}", FAILED)).fault
    assert (rig.node.volumes / f"{v}.qcow2").read_bytes() == b"junk"


async def test_a_disk_that_is_not_mounted_is_not_taken_for_an_empty_one(rig: Rig) -> None:
    await rig.node.start()
    v = new_id()
    rig.controller.want(volume(v))
    await rig.controller.until_settled()
    await rig.node.kill()
    aside = rig.node.directory / "aside"
    rig.node.volumes.rename(aside)
    await rig.node.start()
    assert await rig.node.ended() == 1
    assert "is its disk mounted?" in rig.node.log()
    rig.node.volumes.rmdir()
    aside.rename(rig.node.volumes)
    rig.controller.seen.clear()
    await rig.node.start()
    await rig.controller.until(f"volume/{v}", READY)


async def test_another_address_for_volumes_takes_another_storage_daemon(rig: Rig) -> None:
    await rig.node.start()
    v = new_id()
    rig.controller.want(volume(v), export(new_id(), v, "n"))
    await rig.controller.until_settled()
    pid = rig.node.qsd_pid()
    await rig.node.kill()
    port = free_port()
    config = rig.node.directory / "storaged.toml"
    config.write_text(config.read_text().replace(f":{rig.node.nbd_port}", f":{port}"))
    rig.node.nbd_port = port
    await rig.node.start()
    await eventually(lambda: rig.node.qsd_pid() != pid)
    await eventually(lambda: reads(rig, "n"))


async def test_an_address_that_is_taken_is_a_clear_error(rig: Rig) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", rig.node.nbd_port))
        taken.listen()
        await rig.node.start()
        assert await rig.node.ended() == 1
    assert f"cannot serve volumes on 127.0.0.1:{rig.node.nbd_port}" in rig.node.log()


async def test_death_while_the_storage_daemon_starts(rig: Rig) -> None:
    v = new_id()
    rig.controller.want(volume(v), export(new_id(), v, "n"))
    for _ in range(3):
        await rig.node.start()
        await eventually(lambda: (rig.node.data / "qsd" / "tls" / "server-key.pem").is_symlink())
        await rig.node.kill()
    await rig.node.start()
    await rig.controller.until_settled()
    await eventually(lambda: reads(rig, "n"))


async def test_a_hanging_storage_daemon_is_replaced_at_the_next_start(rig: Rig) -> None:
    await rig.node.start()
    v = new_id()
    rig.controller.want(volume(v), export(new_id(), v, "n"))
    await rig.controller.until_settled()
    await rig.node.kill()
    pid = rig.node.qsd_pid()
    os.kill(pid, signal.SIGSTOP)
    await rig.node.start()
    await eventually(lambda: rig.node.qsd_pid() != pid)
    await eventually(lambda: reads(rig, "n"))


@pytest.mark.parametrize("name", ["volume-filled", "volume-made", "export-opened", "export-served"])
async def test_death_at_each_step_of_making(rig: Rig, name: str) -> None:
    v, a = new_id(), new_id()
    rig.controller.want(volume(v), export(a, v, "n"))
    await rig.node.start(name)
    assert await rig.node.ended() == failpoint.EXIT_CODE
    await rig.node.start()
    await rig.controller.until_settled()
    await rig.nbd("host-1").io("n", "write -P 1 0 512")
    assert residue(rig.node) == {"volumes": [f"{v}.qcow2"], "incoming": []}


@pytest.mark.parametrize("name", ["export-cut", "volume-removed"])
async def test_death_at_each_step_of_removal(rig: Rig, name: str) -> None:
    v, a = new_id(), new_id()
    rig.controller.want(volume(v), export(a, v, "n"))
    await rig.node.start(name)
    await rig.controller.until_settled()
    rig.controller.want(volume(v, absent=True), forget=(f"export/{a}",))
    assert await rig.node.ended() == failpoint.EXIT_CODE
    rig.controller.seen.clear()
    await rig.node.start()
    await rig.controller.until(f"volume/{v}", GONE)
    assert residue(rig.node) == {"volumes": [], "incoming": []}
