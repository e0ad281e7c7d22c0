"""networkd dies after every few steps of building and of removing; the next one continues, and nothing is left over."""

from __future__ import annotations

import asyncio
import signal

from daemonkit.failpoint import EXIT_CODE
from skyrack.v1 import agent_pb2
from tests.networkd.controller import GONE, READY
from tests.networkd.objects import (
    EXT_NET,
    NET,
    OPEN,
    device_of,
    external,
    group,
    neighbour,
    port,
    port_id,
    router,
    rule,
    segment,
)
from tests.networkd.rack import Host, Rack

STEPS = 4  # every life loads the rules here and in the router and listens for metadata; one step is news
LIVES_MAX = 60


async def told_but_not_done(rack: Rack, host: Host, *objects: agent_pb2.DesiredObject, remove: tuple[str, ...] = ()) -> None:
    """Desired state reaches the ledger, while the fake driver keeps the kernel as it is."""
    host.start(driver="fake")
    await rack.controller.start()
    await rack.controller.session(host.name)
    rack.controller.forget(host.name)
    await rack.controller.put(host.name, *objects, remove=remove)
    await rack.controller.state(host.name, "router/4444", READY if objects else GONE)
    await asyncio.sleep(0.5)  # the ledger is written after the reconciler is told
    await host.stop()
    await rack.controller.stop()


async def live_until_done(host: Host) -> int:
    """Starts it again and again, until it lives long enough to be done. Gives how often it died."""
    for deaths in range(LIVES_MAX):
        begun = host.log().count("ready")
        host.start(failpoint=f"networkd.step:{STEPS}")
        process = host.processes[-1]
        for _ in range(2000):
            if process.poll() is not None or host.log().count("ready") > begun:
                break
            await asyncio.sleep(0.02)
        if process.poll() is None:
            await host.stop(signal.SIGTERM)
            return deaths
        host.processes.pop()
        assert process.returncode == EXIT_CODE, host.log()
    raise AssertionError("it never came to an end")


async def test_dies_all_the_time(rack: Rack) -> None:
    host = await rack.host("g1", 3, gateway=True, start=False)
    floating = ("203.0.113.100", "192.168.0.11")
    objects = [segment(vteps=("10.20.0.9",)), external(), group(OPEN, rule("icmp")), port(11, NET, OPEN),
               neighbour(12, "10.20.0.9"), router(floating)]  # fmt: skip
    await told_but_not_done(rack, host, *objects)
    assert await live_until_done(host) > 10
    links = await host.space.run("ip", "-br", "link")
    assert device_of(11) in links and links.count("skr") == 2
    inside = ("nsenter", "--net=/run/netns/sk-rtr-4444")
    assert "203.0.113.100" in await host.space.run(*inside, "ip", "addr")
    assert "default via 203.0.113.254" in await host.space.run(*inside, "ip", "route")
    assert "203.0.113.100" in await host.space.run(*inside, "nft", "list", "ruleset")
    assert await host.space.run(*inside, "sysctl", "-n", "net.ipv4.ip_forward") == "1\n"
    assert "learning off" in await host.space.run("bridge", "-d", "link", "show", "dev", device_of(11))
    keys = (
        f"segment/{NET}",
        f"segment/{EXT_NET}",
        f"group/{OPEN}",
        f"port/{port_id(11)}",
        f"neighbour/{port_id(12)}",
        "router/4444",
    )
    await told_but_not_done(rack, host, remove=keys)
    assert await live_until_done(host) > 1
    links = await host.space.run("ip", "-br", "link")
    assert "sk" not in links and device_of(11) not in links
    assert "sk-" not in await host.space.run("ls", "/run/netns")
    assert "pre_" not in await host.space.run("nft", "list", "ruleset")
    processes = await host.space.run("ps", "ax", "-o", "stat,args")
    assert not [line for line in processes.splitlines() if "dnsmasq" in line and line[0] != "Z"]
