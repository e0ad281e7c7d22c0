"""One host: what it may see, how its units live and die, and that a power failure takes everything."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable

import pytest

from daemonkit.command import run
from daemonkit.errors import Conflict, DeadlineExceeded, NotFound, Unavailable
from skyrack.sandbox import namespace
from skyrack.sandbox.host import Host, UnitStatus
from skyrack.sandbox.unit import Unit
from tests.sandbox.conftest import HostMaker
from tests.sandbox.leftover import traces
from tests.sandbox.stand_in import ENDING, FAILING, NOTIFIER, PARENT, STUBBORN, WAITING

PSS_MAX_KIB = 9 * 1024


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not happened():  # noqa: ASYNC110 (the kernel does not tell)
            await asyncio.sleep(0.02)


async def until_other(host: Host, unit: str, pid: int) -> UnitStatus:
    """The unit's status once it runs as another process than `pid`."""
    async with asyncio.timeout(10):
        while True:
            status = (await host.status())[unit]
            if status.pid not in (0, pid):
                return status
            await asyncio.sleep(0.02)


async def test_sees_itself_and_nothing_of_the_machine(make_host: HostMaker) -> None:
    host = make_host(PARENT)
    await host.start()
    assert await host.execute("hostname") == "k1\n"
    assert socket.gethostname() != "k1"
    assert "127.0.1.1" in await host.execute("getent", "hosts", "k1")
    processes = (await host.execute("ps", "-eo", "args=")).splitlines()
    assert "supervisor.py" in processes[0] and len(processes) == 4, processes
    assert (await host.execute("ls", "/sys/class/net")).split() == ["lo"]
    assert await host.execute("ip", "route", "show", "table", "main") == ""
    assert (await host.execute("ls", "/var/lib", "/etc/skyrack")).split() == ["/etc/skyrack:", "/var/lib:", "skyrack"]


async def test_private_directories_are_on_its_disk(make_host: HostMaker) -> None:
    host = make_host()
    await host.start()
    paths = ("etc/skyrack/a", "var/lib/skyrack/b", "run/c", "var/log/d")
    for path in paths:
        await host.execute("touch", f"/{path}")
    assert (await run("ls", *(str(host.directory / path) for path in paths))).count("\n") == len(paths)
    assert await run("ls", *(f"/{path}" for path in paths), check=False) == ""


async def test_power_failure_takes_everything_but_the_disk(make_host: HostMaker) -> None:
    host = make_host(PARENT)
    await host.start()
    await host.execute("sh", "-c", "echo kept > /var/lib/skyrack/x; echo lost > /run/x; ip link add br9 type bridge")
    await host.execute("sh", "-c", "ip netns add inner && ip netns exec inner sleep 600 > /dev/null 2>&1 & sleep 0.2")
    await host.power_off()
    assert host.pid() is None
    assert list(traces(host.namespace, host.directory)) == ["control groups", "files"]
    with pytest.raises(Unavailable):
        host.enter("true")
    with pytest.raises(Unavailable):
        await host.status()
    await host.start()
    assert await host.execute("cat", "/var/lib/skyrack/x") == "kept\n"
    assert await host.execute("sh", "-c", "ls /run/x /run/netns 2>/dev/null; ls /sys/class/net", check=False) == "lo\n"
    assert (await host.until("parent")).pid


async def test_death_of_process_1_is_a_power_failure(make_host: HostMaker) -> None:
    host = make_host(PARENT)
    await host.start()
    pid = host.pid()
    assert pid
    os.kill(pid, signal.SIGKILL)
    await until(lambda: host.pid() is None and not namespace.pids(host.namespace))
    await host.start()
    await host.until("parent")


async def test_killed_unit_comes_back_and_its_children_lived_on(make_host: HostMaker) -> None:
    host = make_host(PARENT)
    await host.start()
    first = await host.until("parent")
    child = await host.execute("pgrep", "-f", "sleep 54321")
    await host.signal_unit("parent", signal.SIGKILL)
    again = await until_other(host, "parent", first.pid)
    assert (again.restarts, again.exit) == (1, -signal.SIGKILL)
    assert child.strip() in (await host.execute("pgrep", "-f", "sleep 54321")).split()


async def test_stop_waits_for_the_end_and_restart_gives_another_process(make_host: HostMaker) -> None:
    host = make_host(NOTIFIER)
    await host.start()
    first = await host.until("notifier")
    assert first.status == "serves"
    await host.restart_unit("notifier")
    assert (await host.until("notifier")).pid != first.pid
    await host.stop_unit("notifier")
    stopped = (await host.status())["notifier"]
    assert (stopped.pid, stopped.restarts) == (0, 0)
    with pytest.raises(Conflict, match="not running"):
        await host.signal_unit("notifier", signal.SIGTERM)


async def test_stubborn_unit_is_killed_in_the_end(make_host: HostMaker) -> None:
    host = make_host(STUBBORN)
    await host.start()
    await host.until("stubborn")
    await host.stop_unit("stubborn")
    assert (await host.status())["stubborn"].exit == -signal.SIGKILL


async def test_failing_unit_is_retried_ever_slower_and_one_that_ends_well_is_not(make_host: HostMaker) -> None:
    host = make_host(FAILING, ENDING)
    await host.start()
    await host.until("ending", "done")
    await asyncio.sleep(1.5)
    status = await host.status()
    assert 2 <= status["failing"].restarts <= 4
    assert (status["failing"].exit, status["ending"].restarts) == (3, 0)
    assert host.log("failing").read_text().splitlines()[0] == "no luck"


async def test_unit_waits_for_what_it_needs(make_host: HostMaker) -> None:
    host = make_host(WAITING)
    await host.start()
    assert "waits for /etc/skyrack/go" in (await host.until("waiting", "blocked")).status
    (host.directory / "etc/skyrack/go").touch()
    await host.start_unit("waiting")
    await host.until("waiting")
    await host.power_off()
    await host.start()
    await host.until("waiting")


async def test_missing_program_and_unknown_unit_are_told(make_host: HostMaker) -> None:
    host = make_host(Unit("ghost", ("/no/such/program",)))
    await host.start()
    status = await host.until("ghost", "waiting")
    assert status.status == "/no/such/program: No such file or directory"
    with pytest.raises(Conflict, match="there are: ghost"):
        await host.start_unit("other")
    with pytest.raises(NotFound):
        await host.until("other")
    with pytest.raises(DeadlineExceeded, match="ghost on k1"):
        await host.until("ghost", "running", timeout_s=0.1)


async def test_frozen_host_hangs_and_goes_on(make_host: HostMaker) -> None:
    host = make_host(PARENT)
    await host.start()
    host.freeze(True)
    with pytest.raises(Unavailable):
        await host.request({"do": "status"}, timeout_s=0.5)
    host.freeze(False)
    await host.until("parent")
    host.freeze(True)
    await host.power_off()
    assert host.pid() is None


async def test_orphans_are_reaped_and_process_1_is_small(make_host: HostMaker) -> None:
    host = make_host(PARENT)
    await host.start()
    await host.execute("sh", "-c", "for i in 1 2 3 4 5; do (sleep 0.05 &) ; done")
    await asyncio.sleep(0.5)
    assert "Z" not in await host.execute("ps", "-eo", "stat=")
    answer = await host.request({"do": "status"})
    assert answer["own_pss_kib"] < PSS_MAX_KIB


async def test_nonsense_on_the_control_socket_harms_nobody(make_host: HostMaker) -> None:
    host = make_host(PARENT)
    await host.start()
    for line in (b"\n", b"nonsense\n", b"[]\n", b"{}\n", b'{"do": "start"}\n', b"x" * 5000 + b"\n", b""):
        try:
            answer = await host._exchange(line)
        except ConnectionError:
            answer = b""
        assert answer == b"", line
    await host.until("parent")


async def test_libvirt_of_its_own(make_host: HostMaker) -> None:
    one, other = make_host(virtualization=True), make_host(virtualization=True)
    await asyncio.gather(one.start(), other.start())
    await asyncio.gather(one.until("libvirtd"), other.until("libvirtd"))
    domain = "<domain type='qemu'><name>{}</name><memory>65536</memory><os><type>hvm</type></os></domain>"
    for host in (one, other):
        assert (host.directory / "etc/skyrack/nbd-tls").is_dir()
        await host.execute("virsh", "define", "/dev/stdin", stdin=domain.format(host.namespace).encode(), timeout_s=60)
        assert (await host.execute("virsh", "list", "--all", "--name")).split() == [host.namespace]
    await one.signal_unit("libvirtd", signal.SIGKILL)
    await asyncio.sleep(0.1)
    await one.until("libvirtd")
    assert (await one.execute("virsh", "list", "--all", "--name")).split() == [one.namespace]


async def test_start_and_remove_twice(make_host: HostMaker) -> None:
    host = make_host(PARENT)
    await host.start()
    pid = host.pid()
    await host.start()
    assert host.pid() == pid
    await host.remove()
    await host.remove()
    assert traces(host.namespace, host.directory) == {}


async def test_host_that_cannot_boot_says_why(make_host: HostMaker) -> None:
    host: Host = make_host(PARENT)
    host.name = "x" * 300  # no kernel takes that as a host name
    with pytest.raises(Unavailable, match="hostname"):
        await host.start()
