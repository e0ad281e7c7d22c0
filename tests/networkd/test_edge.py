"""Edge nodes on real kernels: tunnels, isolation, security groups, anti-spoof, DHCP, metadata."""

from __future__ import annotations

from tests.networkd.objects import (
    NET, OPEN, device_of, group, mac_of, neighbour, port, port_id, rule, segment,
)  # fmt: skip
from tests.networkd.rack import Rack


async def test_two_hosts_ping_over_vxlan(rack: Rack) -> None:
    one, two = await rack.host("h1", 1), await rack.host("h2", 2)
    a = await rack.guest(one, device_of(11), mac_of(11), "192.168.0.11/24")
    b = await rack.guest(two, device_of(12), mac_of(12), "192.168.0.12/24")
    everyone = group(OPEN, rule("icmp"))
    await rack.controller.put("h1", segment(vteps=(two.vtep,)), port(11, NET, OPEN), neighbour(12, two.vtep), everyone)
    await rack.controller.put("h2", segment(vteps=(one.vtep,)), port(12, NET, OPEN), neighbour(11, one.vtep), everyone)
    await rack.controller.state("h1", f"port/{port_id(11)}")
    await rack.controller.state("h2", f"port/{port_id(12)}")
    assert await a.ping("192.168.0.12"), one.log()
    assert await b.ping("192.168.0.11")
