"""Edge nodes on the real kernel: tunnels, isolation, security groups, anti-spoof, DHCP, DNS, metadata."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from tests.networkd.objects import (
    METADATA,
    NET,
    OPEN,
    OTHER_NET,
    SHUT,
    WEB,
    device_of,
    group,
    mac_of,
    members,
    neighbour,
    port,
    port_id,
    rule,
    segment,
)
from tests.networkd.rack import Guest, Host, Rack, eventually

FRAMES = str(Path(__file__).with_name("frames.py"))


async def place(rack: Rack, host: Host, number: int, network_id: str = NET) -> Guest:
    """A guest with a static address whose port was, or will be, desired."""
    return await rack.guest(host, device_of(number, network_id), mac_of(number, network_id), f"192.168.0.{number}/24")


async def ready(rack: Rack, host: Host, *numbers: int, network_id: str = NET) -> None:
    for number in numbers:
        await rack.controller.state(host.name, f"port/{port_id(number, network_id)}")


async def test_networks_span_hosts_and_overlap_without_meeting(rack: Rack) -> None:
    one, two = await rack.host("h1", 1), await rack.host("h2", 2)
    a, b = await place(rack, one, 11), await place(rack, two, 12)
    other = await place(rack, one, 12, OTHER_NET)
    everyone = group(OPEN, rule("icmp"), rule("tcp"))
    await rack.controller.put(
        "h1", segment(vteps=(two.vtep,)), port(11, NET, OPEN), neighbour(12, two.vtep), everyone,
        segment(OTHER_NET, 200), port(12, OTHER_NET, OPEN),
    )  # fmt: skip
    await rack.controller.put("h2", segment(vteps=(one.vtep,)), port(12, NET, OPEN), neighbour(11, one.vtep), everyone)
    await ready(rack, one, 11)
    await ready(rack, one, 12, network_id=OTHER_NET)
    await ready(rack, two, 12)
    assert await a.ping("192.168.0.12") and await b.ping("192.168.0.11")
    assert await a.ping("192.168.0.12", "-s", "4000")  # fragments
    rack.serve(b, 80)
    assert await a.tcp("192.168.0.12", 80)
    assert not await other.ping("192.168.0.11"), "the other network has that address nowhere"
    assert not await a.space.ok("ping", "-c1", "-W1", "192.168.0.99")
    # ARP for a known neighbour is answered on the host and never crosses the tunnel
    assert "192.168.0.12" in await a.space.run("ip", "neigh")


async def test_large_packets_get_an_answer_instead_of_silence(rack: Rack) -> None:
    """A guest that ignored the MTU it was told learns it from ICMP."""
    one, two = await rack.host("h1", 1), await rack.host("h2", 2)
    a, _b = await place(rack, one, 11), await place(rack, two, 12)
    everyone = group(OPEN, rule("icmp"))
    await rack.controller.put("h1", segment(vteps=(two.vtep,)), port(11, NET, OPEN), neighbour(12, two.vtep), everyone)
    await rack.controller.put("h2", segment(vteps=(one.vtep,)), port(12, NET, OPEN), neighbour(11, one.vtep), everyone)
    await ready(rack, one, 11)
    await ready(rack, two, 12)
    await a.space.run("ip", "link", "set", "eth0", "mtu", "1500")
    out = await a.space.run("ping", "-c1", "-W2", "-M", "do", "-s", "1450", "192.168.0.12", check=False)
    assert "mtu" in out.lower()


async def test_security_groups(rack: Rack) -> None:
    host = await rack.host("h1", 1)
    web, friend, stranger = [await place(rack, host, n) for n in (11, 12, 13)]
    groups = [
        group(WEB, rule("tcp", 80, 80), rule("tcp", 90, 95, remote=OPEN)),
        group(OPEN, rule("icmp")),
        group(SHUT, rule("icmp"), out=False),
    ]
    await rack.controller.put(
        "h1", segment(), *groups, members(OPEN, 12), port(11, NET, WEB), port(12, NET, OPEN), port(13, NET, SHUT)
    )
    await ready(rack, host, 11, 12, 13)
    for number in (80, 81, 92):
        rack.serve(web, number)
    assert await friend.tcp("192.168.0.11", 80), "a rule allows it"
    assert not await friend.tcp("192.168.0.11", 81), "no rule"
    assert await friend.tcp("192.168.0.11", 92), "friend is in the remote group"
    assert not await stranger.tcp("192.168.0.11", 80), "its own group lets nothing out"
    assert await web.ping("192.168.0.13"), "the reply comes out of a port that may send nothing itself"
    assert not await friend.ping("192.168.0.11"), "web allows no ICMP"
    await rack.controller.put("h1", members(OPEN, 12, 13), group(SHUT, rule("icmp")))
    assert await eventually(lambda: stranger.tcp("192.168.0.11", 92)), "joined the group, and may send now"


async def test_removing_a_rule_cuts_the_live_flow(rack: Rack) -> None:
    host = await rack.host("h1", 1)
    web, client = await place(rack, host, 11), await place(rack, host, 12)
    await rack.controller.put("h1", segment(), group(WEB, rule("tcp", 80, 80)), port(11, NET, WEB), port(12, NET, WEB))
    await ready(rack, host, 11, 12)
    rack.serve(web, 80)
    stream = rack.keep(client.space.start(sys.executable, "-S", "-c", STREAM, "192.168.0.11", "80"))
    assert stream.stdout is not None
    assert stream.stdout.readline().strip() == "flows"
    await rack.controller.put("h1", group(WEB))
    line = await asyncio.wait_for(asyncio.to_thread(stream.stdout.readline), 20)
    assert line.strip() == "cut"


STREAM = """
import socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)
s.settimeout(1.5)
told = False
while True:
    try:
        s.sendall(b"x")
        assert s.recv(10)
    except OSError:
        print("cut", flush=True)
        break
    if not told:
        print("flows", flush=True)
        told = True
    time.sleep(0.05)
"""


# ---------------------------------------------------------------- anti-spoof


async def frames_seen(sender: Guest, receiver: Guest, own_mac: str, peer_mac: str, names: list[str]) -> set[str]:
    listener = receiver.space.start(sys.executable, "-S", FRAMES, "listen")
    assert listener.stdout is not None and listener.stdout.readline().strip() == "listening"
    for name in names:
        await sender.space.run(sys.executable, "-S", FRAMES, "send", name, own_mac, peer_mac)
    try:
        out, _ = await asyncio.to_thread(listener.communicate, None, 20)
    except subprocess.TimeoutExpired:
        listener.kill()
        raise
    return set(out.split())


async def test_anti_spoof(rack: Rack) -> None:
    """Every forged frame is dropped at the port, and delivered when port security is off: so the test is real."""
    host = await rack.host("h1", 1)
    liar, victim = await place(rack, host, 11), await place(rack, host, 12)
    everything = group(OPEN, rule())
    await rack.controller.put(
        "h1", segment(dhcp=False), everything, port(11, NET, OPEN), port(12, NET, OPEN, port_security=False)
    )
    await ready(rack, host, 11, 12)
    honest = {"good_ip", "good_arp"}
    forged = {"mac", "ip", "arp_ip", "arp_mac", "vlan", "lldp", "dhcp_server", "router_advert", "neighbour_advert", "ip6"}
    names = [*sorted(forged | honest), "end"]
    seen = await frames_seen(liar, victim, mac_of(11), mac_of(12), names)
    assert seen == honest | {"end"}
    rack.controller.forget("h1")
    await rack.controller.put("h1", port(11, NET, OPEN, port_security=False))
    await ready(rack, host, 11)
    assert await frames_seen(liar, victim, mac_of(11), mac_of(12), names) >= forged | honest
    assert not await liar.space.ok("ping", "-c1", "-W1", "10.20.0.1"), "a guest never reaches the node itself"


async def test_allowed_pairs_widen_what_a_port_may_send(rack: Rack) -> None:
    from skyrack.v1 import agent_pb2

    host = await rack.host("h1", 1)
    vrrp, peer = await place(rack, host, 11), await place(rack, host, 12)
    everything = group(OPEN, rule())
    pairs = [agent_pb2.AddressPair(ip="192.168.0.64/28"), agent_pb2.AddressPair(ip="192.168.0.11")]
    await rack.controller.put("h1", segment(), everything, port(11, NET, OPEN, allowed_pairs=pairs), port(12, NET, OPEN))
    await ready(rack, host, 11, 12)
    await vrrp.space.run("ip", "addr", "add", "192.168.0.70/24", "dev", "eth0")
    await vrrp.space.run("ip", "addr", "add", "192.168.0.90/24", "dev", "eth0")
    assert await peer.ping("192.168.0.70")
    assert not await peer.ping("192.168.0.90")


# ---------------------------------------------------------------- DHCP, DNS, metadata

UDHCPC = """#!/bin/sh
[ "$1" = bound ] && env | grep -E '^(ip|mask|router|dns|staticroutes|mtu|domain|hostname)=' >&2
exit 0
"""


async def test_dhcp_dns_and_metadata(rack: Rack, tmp_path: Path) -> None:
    one, two = await rack.host("h1", 1), await rack.host("h2", 2)
    guest = await rack.guest(one, device_of(11), mac_of(11))
    unknown = await rack.guest(two, device_of(12), mac_of(99))
    twin = await place(rack, one, 11, OTHER_NET)
    everyone = group(OPEN, rule("icmp"))
    await rack.controller.put(
        "h1", segment(vteps=(two.vtep,), dns_servers=["9.9.9.9"]), port(11, NET, OPEN), neighbour(12, two.vtep), everyone,
        segment(OTHER_NET, 200), port(11, OTHER_NET, OPEN, metadata=None),
    )  # fmt: skip
    await rack.controller.put(
        "h2", segment(vteps=(one.vtep,)), port(12, NET, OPEN, port_security=False), neighbour(11, one.vtep), everyone
    )
    await ready(rack, one, 11)
    await ready(rack, two, 12)
    wire = tmp_path / "tunnel.txt"
    wire.touch()
    rack.keep(one.space.start("bash", "-c", f"exec tcpdump -lnni data udp port 4789 > {wire} 2>&1"))
    assert await eventually(lambda: holds("listening on", wire))
    lease = await asked(guest, tmp_path)
    assert lease["ip"] == "192.168.0.11" and lease["mtu"] == "1450" and lease["dns"] == "192.168.0.2 9.9.9.9"
    assert lease["staticroutes"].split() == ["169.254.169.254/32", "192.168.0.2", "0.0.0.0/0", "192.168.0.1"]
    assert await asked(unknown, tmp_path, "-t", "1") == {}, "an unknown MAC gets nothing, here or over the tunnel"
    await guest.space.run("ip", "addr", "add", "192.168.0.11/24", "dev", "eth0")
    await guest.space.run("ip", "route", "add", METADATA, "via", "192.168.0.2")
    assert "192.168.0.12" in await guest.space.run("busybox", "nslookup", "web-12.lab.internal", "192.168.0.2", check=False)
    await guest.space.run("busybox", "arping", "-c", "1", "-w", "1", "-I", "eth0", "192.168.0.2")
    assert await guest.space.ok("ping", "-c1", "-W1", "192.168.0.99") is False
    assert await eventually(lambda: holds("192.168.0.99", wire))
    crossed = wire.read_text()
    assert "who-has 192.168.0.99" in crossed, "what nobody knows is asked everywhere"
    assert "192.168.0.2 " not in crossed and "BOOTP" not in crossed, "what every node answers itself is not"
    document = json.loads(await curl(guest, "/openstack/latest/meta_data.json"))
    assert document["uuid"].startswith("00000011") and document["public_keys"] == {"mine": "ssh-ed25519 AAAA me"}
    assert "echo hi" in await curl(guest, "/latest/user-data")
    forged = await curl(guest, "/latest/meta-data/local-ipv4", "-H", "X-Forwarded-For: 192.168.0.12", "-H", "X-Instance-ID: x")
    assert forged == "192.168.0.11"
    assert await curl(guest, "/nothing", "-o", "/dev/null", "-w", "%{http_code}") == "404"
    assert await curl(guest, "/latest/", "-X", "PUT", "-d", "x", "-o", "/dev/null", "-w", "%{http_code}") == "405"
    assert await curl(guest, "/", "-H", "X-Long: " + "a" * 30000, "-o", "/dev/null", "-w", "%{http_code}") == "431"
    await twin.space.run("ip", "route", "add", METADATA, "via", "192.168.0.2")
    assert await curl(twin, "/latest/meta-data/", "-o", "/dev/null", "-w", "%{http_code}") == "404", (
        "same address, other network"
    )


async def holds(text: str, file: Path) -> bool:
    return text in await asyncio.to_thread(file.read_text)


async def asked(guest: Guest, directory: Path, *options: str) -> dict[str, str]:
    """What a DHCP client of the guest was given."""
    script = directory / "bound.sh"
    script.write_text(UDHCPC)
    script.chmod(0o755)
    wants = [f"-O{o}" for o in ("mtu", "staticroutes", "dns", "router")]
    argv = ["busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-T", "1", "-t", "4", *options, *wants, "-s", str(script)]
    out = await guest.space.run(*argv, check=False)
    return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)


async def curl(guest: Guest, path: str, *options: str) -> str:
    return await guest.space.run("curl", "-sS", "-m", "5", *options, f"http://{METADATA}{path}", check=False)


# ---------------------------------------------------------------- the TAP

OPEN_TAP = """
import fcntl, struct, sys, time
tun = open("/dev/net/tun", "r+b", buffering=0)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", sys.argv[1].encode(), 0x0002 | 0x1000 | 0x4000))
for _ in range(200):
    state = open(f"/sys/class/net/{sys.argv[1]}/operstate").read().strip()
    if state == "up":
        break
    time.sleep(0.05)
print(state, open(f"/sys/class/net/{sys.argv[1]}/mtu").read().strip())
"""


async def test_the_tap_is_made_for_qemu_and_removed_with_the_port(rack: Rack) -> None:
    host = await rack.host("h1", 1)
    await rack.controller.put("h1", segment(), group(OPEN, rule()), port(11, NET, OPEN))
    await ready(rack, host, 11)
    opened = await host.space.run(sys.executable, "-S", "-c", OPEN_TAP, device_of(11))
    assert opened.split() == ["up", "1500"], "opened with a virtio-net header, as QEMU does, it has carrier"
    assert "master skb" in await host.space.run("ip", "link", "show", device_of(11))
    await rack.controller.put("h1", remove=(f"port/{port_id(11)}",))
    await rack.controller.state("h1", f"port/{port_id(11)}", 7)
    assert not await host.space.ok("ip", "link", "show", device_of(11))
