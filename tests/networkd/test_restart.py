"""networkd ends, is killed, comes back, or somebody changes the kernel behind its back: packets go on."""

from __future__ import annotations

import asyncio
import signal
import sys

from tests.networkd.objects import (
    NET,
    OPEN,
    WEB,
    device_of,
    external,
    group,
    mac_of,
    neighbour,
    port,
    port_id,
    router,
    rule,
    segment,
)
from tests.networkd.rack import Guest, Host, Rack, eventually

STREAM = """
import socket, sys, time
s = socket.create_connection((sys.argv[1], 80), 3)
s.settimeout(2)
worst = 0.0
print("flows", flush=True)
ends = time.monotonic() + float(sys.argv[2])
while time.monotonic() < ends:
    began = time.monotonic()
    s.sendall(b"x")
    assert s.recv(10)
    worst = max(worst, time.monotonic() - began)
    time.sleep(0.01)
print("whole", round(worst * 1000), flush=True)
"""


async def cloud(rack: Rack) -> tuple[Host, Host, Guest, Guest, Guest]:
    edge, gateway = await rack.host("h1", 1), await rack.host("g1", 3, gateway=True)
    internet = await rack.internet()
    web = await rack.guest(edge, device_of(11), mac_of(11), "192.168.0.11/24", "192.168.0.1")
    peer = await rack.guest(edge, device_of(12), mac_of(12), "192.168.0.12/24", "192.168.0.1")
    groups = [group(WEB, rule("tcp", 80, 80), rule("icmp")), group(OPEN, rule("icmp"))]
    floating = ("203.0.113.100", "192.168.0.11")
    await rack.controller.put(
        "h1", segment(vteps=(gateway.vtep,)), *groups, port(11, NET, WEB), port(12, NET, OPEN), neighbour(1, gateway.vtep)
    )
    others = [neighbour(n, edge.vtep) for n in (11, 12)]
    await rack.controller.put("g1", segment(vteps=(edge.vtep,)), external(), *others, router(floating))
    await rack.controller.state("h1", f"port/{port_id(12)}")
    await rack.controller.state("g1", "router/4444")
    rack.serve(web, 80)
    return edge, gateway, web, peer, internet


async def settled(rack: Rack, name: str, key: str) -> None:
    rack.controller.forget(name)
    await rack.controller.state(name, key)


async def test_restart_and_kill_lose_no_packet(rack: Rack) -> None:
    edge, gateway, _web, peer, internet = await cloud(rack)
    stream = rack.keep(internet.space.start(sys.executable, "-S", "-c", STREAM, "203.0.113.100", "8"))
    assert stream.stdout is not None and stream.stdout.readline().strip() == "flows"
    pings = rack.keep(peer.space.start("ping", "-i0.02", "-w8", "-q", "192.168.0.11"))
    for host, key, number in ((edge, f"port/{port_id(11)}", signal.SIGTERM), (gateway, "router/4444", signal.SIGKILL),
                              (edge, f"port/{port_id(11)}", signal.SIGKILL)):  # fmt: skip
        await host.stop(number)
        rack.controller.forget(host.name)
        host.start()
        await rack.controller.state(host.name, key)
    told = await asyncio.to_thread(stream.stdout.read)
    assert "whole" in told, told
    out, _ = await asyncio.to_thread(pings.communicate, None, 20)
    assert " 0% packet loss" in out, out
    assert "mending" not in edge.log() and "failed" not in edge.log() + gateway.log()


async def test_works_without_a_controller(rack: Rack) -> None:
    edge, gateway, _web, peer, internet = await cloud(rack)
    dns = [a for a in (await edge.space.run("pgrep", "-a", "dnsmasq")).splitlines() if "conf-file" in a]
    await rack.controller.stop()
    for host in (edge, gateway):
        await host.stop(signal.SIGKILL)
    await edge.space.run("ip", "link", "del", "skxaaaa0000000")
    await gateway.space.run("nft", "flush", "ruleset")
    for host in (edge, gateway):
        host.start()
    for _ in range(50):
        if await internet.tcp("203.0.113.100", 80):
            break
    assert await internet.tcp("203.0.113.100", 80), edge.log() + gateway.log()
    again = [a for a in (await edge.space.run("pgrep", "-a", "dnsmasq")).splitlines() if "conf-file" in a]
    assert again == dns and len(dns) == 1, "dnsmasq was adopted, not started again"
    await peer.space.run("ip", "route", "add", "169.254.169.254", "via", "192.168.0.2")
    assert await peer.space.run("curl", "-sS", "-m5", "http://169.254.169.254/latest/meta-data/local-ipv4") == "192.168.0.12"


async def test_drift_is_mended(rack: Rack) -> None:
    """Everything is broken at once; the safety pass (asked for by a dying dnsmasq) mends it."""
    edge, _gateway, web, peer, internet = await cloud(rack)
    for broken in (
        "nft flush ruleset",
        "ip link set tap0011aaaa-00 nomaster",
        "bridge fdb del 02:aa:00:00:00:01 dev skxaaaa0000000 dst 10.20.0.3 self",
        "ip neigh flush dev skbaaaa0000000 nud permanent",
        "bridge link set dev skxaaaa0000000 learning on neigh_suppress off",
        "ip link set skbaaaa0000000 down",
        "ip netns del sk-net-" + NET,
        "ip link add skbdeadbeef000 type bridge",
        "kill $(cat /run/skyrack/networkd/dhcp/*/pid)",
    ):
        await edge.space.run("bash", "-c", broken, check=False)
    await told(edge, "mending drift")
    await peer.space.run("ip", "route", "add", "169.254.169.254", "via", "192.168.0.2")
    fetch = ("curl", "-fsS", "-m1", "http://169.254.169.254/latest/meta-data/local-ipv4")
    assert await eventually(lambda: peer.space.ok(*fetch)), edge.log()  # the last thing to be mended
    assert await internet.tcp("203.0.113.100", 80), edge.log()
    assert not await peer.tcp("192.168.0.11", 81) and await peer.ping("192.168.0.11")
    assert await web.space.ok("ping", "-c1", "-W1", "192.168.0.1")
    links = await edge.space.run("ip", "-d", "link")
    assert "skbdeadbeef000" not in links
    vxlan = (await edge.space.run("bridge", "-d", "link", "show", "dev", "skxaaaa0000000")).replace("\n", " ")
    assert "learning off" in vxlan and "neigh_suppress on" in vxlan
    assert "10.20.0.3" in await edge.space.run("bridge", "fdb")


async def told(host: Host, event: str) -> None:
    async def logged() -> bool:
        return event in host.log()

    assert await eventually(logged), host.log()


async def test_flushed_rules_are_back_at_once(rack: Rack) -> None:
    """Not at the next safety pass: without rules the ports are open."""
    edge, _gateway, _web, peer, _internet = await cloud(rack)
    await edge.space.run("nft", "flush", "ruleset")
    await told(edge, "mending drift")
    rules = await edge.space.run("nft", "list", "ruleset")
    assert "chain pre_" in rules and "skyrack" not in rules
    assert not await peer.tcp("192.168.0.11", 81)


async def test_refuses_to_start_beside_rules_that_break_isolation(rack: Rack) -> None:
    host = await rack.host("h1", 1, start=False)
    await host.space.run("nft", "add table bridge other", check=True)
    chain = "add chain bridge other c { type filter hook forward priority 0; }"
    await host.space.run("nft", chain)
    refused = await host.space.run("nft", "add rule bridge other c ct state established accept", check=False)
    host.start()
    if "Error" in refused:  # this kernel has no bridge conntrack: nothing to refuse
        await rack.controller.start()
        await rack.controller.session("h1")
        return
    await asyncio.to_thread(host.processes.pop().wait, 20)
    assert "connection tracking" in host.log()


async def test_leftovers_of_another_life_are_removed(rack: Rack) -> None:
    host = await rack.host("h1", 1, start=False)
    for made in (
        "ip link add skbold00000000 type bridge",
        "ip netns add sk-rtr-old",
        "ip netns add sk-net-old",
        "ip link add skdold00000000 type veth peer name dhcp0 netns sk-net-old",
        "ip tuntap add tapold mode tap; ip link set tapold alias skyrack",
        "ip tuntap add tapforeign mode tap",
        "touch /run/netns/sk-rtr-half",
    ):
        await host.space.run("bash", "-c", made)
    await rack.controller.start()
    host.start()
    await rack.controller.session("h1")

    async def swept() -> bool:
        return "old" not in await host.space.run("ip", "-br", "link") + await host.space.run("ls", "/run/netns")

    assert await eventually(swept)
    assert "half" not in await host.space.run("ls", "/run/netns")
    assert "tapforeign" in await host.space.run("ip", "-br", "link")
