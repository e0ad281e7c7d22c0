"""Routers on the real kernel: source NAT, floating IPs, hairpin, what the provider network may not do, and clean removal."""

from __future__ import annotations

import asyncio

from tests.networkd.objects import (
    EXT_NET,
    NET,
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

ROUTER = "4444"
FLOATING, OTHER_FLOATING = "203.0.113.100", "203.0.113.101"


async def stage(rack: Rack, *floating: tuple[str, str]) -> tuple[Host, Host, Guest, Guest, Guest]:
    """Compute node with two guests, network node with a router, a client on the internet."""
    edge, gateway = await rack.host("h1", 1), await rack.host("g1", 3, gateway=True)
    internet = await rack.internet()
    guests = []
    for number in (11, 12):
        guests.append(await rack.guest(edge, device_of(number), mac_of(number), f"192.168.0.{number}/24", "192.168.0.1"))
    web = group(WEB, rule("tcp", 80, 80), rule("icmp"))
    inner = neighbour(1, gateway.vtep)
    await rack.controller.put("h1", segment(vteps=(gateway.vtep,)), web, port(11, NET, WEB), port(12, NET, WEB), inner)
    others = [neighbour(n, edge.vtep) for n in (11, 12)]
    await rack.controller.put("g1", segment(vteps=(edge.vtep,)), external(), *others, router(*floating))
    await rack.controller.state("h1", f"port/{port_id(12)}")
    await rack.controller.state("g1", f"router/{ROUTER}")
    return edge, gateway, guests[0], guests[1], internet


async def inside(gateway: Host, *argv: str) -> str:
    return await gateway.space.run("nsenter", f"--net=/run/netns/sk-rtr-{ROUTER}", *argv)


async def test_source_nat_and_floating_ips(rack: Rack) -> None:
    _edge, gateway, web, other, internet = await stage(rack, (FLOATING, "192.168.0.11"))
    rack.serve(internet, 80)
    assert await web.tcp("203.0.113.254", 80) and await other.tcp("203.0.113.254", 80)
    seen = await inside(gateway, "conntrack", "-L")
    assert f"dst={FLOATING} sport=80" in seen, "the guest with a floating IP goes out under it"
    assert "dst=203.0.113.50 sport=80" in seen, "the other under the router's"
    rack.serve(web, 80)
    rack.serve(web, 81)
    assert await internet.tcp(FLOATING, 80)
    assert not await internet.tcp(FLOATING, 81), "the security group allows only 80"
    assert await internet.ping(FLOATING)
    assert await other.tcp(FLOATING, 80), "hairpin: a guest reaches its neighbour by the floating IP"
    assert await web.tcp(FLOATING, 80), "and itself"
    await internet.space.run("ip", "route", "add", "192.168.0.0/24", "via", "203.0.113.50")
    assert not await internet.tcp("192.168.0.11", 80), "nobody comes in but through a floating IP"
    assert await internet.ping("203.0.113.50")
    assert not await internet.tcp("203.0.113.50", 22)


async def test_floating_ips_come_and_go_without_touching_others(rack: Rack) -> None:
    _edge, gateway, web, other, internet = await stage(rack, (FLOATING, "192.168.0.11"))
    rack.serve(web, 80)
    rack.serve(other, 80)
    heard = internet.space.start(
        "timeout", "8", "tcpdump", "-lni", "eth0", "-c", "1", f"arp and arp[14:4] = 0x{203:02x}00{113:02x}65"
    )
    rack.keep(heard)
    pings = internet.space.start("ping", "-i0.05", "-c60", "-W1", "-q", FLOATING)
    both = ((FLOATING, "192.168.0.11"), (OTHER_FLOATING, "192.168.0.12"))
    await rack.controller.put("g1", router(*both))
    observed = await until_floating(rack, 2)
    assert set(observed) == {FLOATING, OTHER_FLOATING}
    assert await internet.tcp(OTHER_FLOATING, 80)
    await rack.controller.put("g1", router(both[1]))
    assert await until_floating(rack, 1) == [OTHER_FLOATING]
    out, _ = await asyncio.to_thread(pings.communicate, None, 20)
    assert heard.wait(20) == 0, "the new floating IP was announced by gratuitous ARP"
    assert await internet.tcp(OTHER_FLOATING, 80) and not await internet.tcp(FLOATING, 80)
    assert FLOATING not in await inside(gateway, "conntrack", "-L"), "no flow of the removed address lives on"
    assert " 0 received" not in out


async def until_floating(rack: Rack, count: int) -> list[str]:
    for _ in range(100):
        item = await rack.controller.state("g1", f"router/{ROUTER}")
        if len(item.router.floating_ips) == count:
            return list(item.router.floating_ips)
        await asyncio.sleep(0.05)
    raise AssertionError(item)


async def test_gateway_change_keeps_routes_and_extra_routes_work(rack: Rack) -> None:
    from skyrack.v1 import agent_pb2

    _edge, gateway, _web, other, internet = await stage(rack)
    extra = agent_pb2.Route(destination="172.30.0.0/16", nexthop="192.168.0.12")
    moved = router(routes=[extra])
    moved.router.gateway.port_id = "5555eeee-0000"
    moved.router.gateway.ip = "203.0.113.60"
    rack.controller.forget("g1")
    await rack.controller.put("g1", moved)
    await rack.controller.state("g1", f"router/{ROUTER}")
    routes = await inside(gateway, "ip", "route")
    assert "172.30.0.0/16 via 192.168.0.12" in routes and "default via 203.0.113.254" in routes
    assert await other.ping("203.0.113.254")
    assert await internet.ping("203.0.113.60") and not await internet.ping("203.0.113.50")


async def clean(host: Host) -> bool:
    left = await host.space.run("ip", "-br", "link") + await host.space.run(
        "bash", "-c", "ls /run/netns /run/skyrack/networkd/dhcp/*", check=False
    )
    return "skb" not in left and "sk-" not in left and "conf" not in left


async def test_removed_routers_leave_nothing(rack: Rack) -> None:
    edge, gateway, _web, _other, _internet = await stage(rack, (FLOATING, "192.168.0.11"))
    await rack.controller.put("g1", remove=(f"router/{ROUTER}", f"segment/{NET}", f"segment/{EXT_NET}",
                                            f"neighbour/{port_id(11)}", f"neighbour/{port_id(12)}"))  # fmt: skip
    gone = 7
    await rack.controller.state("g1", f"router/{ROUTER}", gone)
    assert await eventually(lambda: clean(gateway))
    links = await gateway.space.run("ip", "-br", "link")
    assert "sk" not in links and "ext" in links
    assert "sk-" not in await gateway.space.run("ls", "/run/netns")
    edge_keys = [f"segment/{NET}", *(f"port/{port_id(n)}" for n in (11, 12)), f"neighbour/{port_id(1)}", f"group/{WEB}"]
    await rack.controller.put("h1", remove=tuple(edge_keys))
    await rack.controller.state("h1", f"port/{port_id(11)}", gone)
    assert await eventually(lambda: clean(edge))
    links = await edge.space.run("ip", "-br", "link")
    assert "sk" not in links
    assert "sk-" not in await edge.space.run("ls", "/run/netns")
    rules = await edge.space.run("nft", "list", "ruleset")
    assert "tap00" not in rules and "m4_" not in rules and "pre_" not in rules
    assert "dnsmasq" not in "".join(
        [a for a in (await edge.space.run("ps", "ax", "-o", "stat,args")).splitlines() if a[0] != "Z"]
    )
    assert await edge.space.run("bash", "-c", "ls /run/skyrack/networkd/dhcp") == ""


async def test_a_router_without_external_device_fails_with_reason(rack: Rack) -> None:
    await rack.host("h1", 1)
    await rack.controller.put("h1", segment(), external(), router())
    item = await rack.controller.state("h1", f"router/{ROUTER}", 6)
    assert "external_device" in item.router.fault
