"""Desired objects for tests, in few words."""

from __future__ import annotations

from skyrack.v1 import agent_pb2

NET = "aaaa0000-0000-4000-8000-000000000001"
OTHER_NET = "bbbb0000-0000-4000-8000-000000000002"
EXT_NET = "eeee0000-0000-4000-8000-00000000000e"
OPEN, WEB, SHUT = ("11110000-0000-4000-8000-000000000001", "22220000-0000-4000-8000-000000000002",
                   "33330000-0000-4000-8000-000000000003")  # fmt: skip
METADATA = "169.254.169.254"


def segment(
    network_id: str = NET, vni: int = 100, vteps: tuple[str, ...] = (), *, dhcp: bool = True, **subnet: object
) -> agent_pb2.DesiredObject:
    served = agent_pb2.SegmentSubnet(
        subnet_id="sub-" + network_id[:4], cidr="192.168.0.0/24", gateway_ip="192.168.0.1", dns_domain="lab.internal",
        dhcp_ip="192.168.0.2" if dhcp else "", **subnet,  # type: ignore[arg-type]
    )  # fmt: skip
    spec = agent_pb2.SegmentSpec(vni=vni, mtu=1450, subnets=[served], vteps=vteps)
    return agent_pb2.DesiredObject(id=network_id, segment=spec)


def external() -> agent_pb2.DesiredObject:
    subnet = agent_pb2.SegmentSubnet(subnet_id="sub-ext", cidr="203.0.113.0/24", gateway_ip="203.0.113.254")
    return agent_pb2.DesiredObject(id=EXT_NET, segment=agent_pb2.SegmentSpec(mtu=1500, subnets=[subnet], external=True))


def mac_of(number: int, network_id: str = NET) -> str:
    return f"02:{network_id[:2]}:00:00:{number >> 8:02x}:{number & 255:02x}"


def port_id(number: int, network_id: str = NET) -> str:
    return f"{number:04d}{network_id[:4]}-0000-4000-8000-000000000000"


def device_of(number: int, network_id: str = NET) -> str:
    return "tap" + port_id(number, network_id)[:11]


def port(number: int, network_id: str = NET, *groups: str, **more: object) -> agent_pb2.DesiredObject:
    """Address 192.168.0.`number`, MAC and ids derived from it."""
    ip = agent_pb2.FixedIp(subnet_id="sub-" + network_id[:4], ip=f"192.168.0.{number}")
    guest = agent_pb2.ServerMetadata(
        server_id=f"{number:08d}-5e5e-4000-8000-000000000000", name=f"web-{number}", hostname=f"web-{number}", project_id="p1",
        availability_zone="nova", meta={"role": "web"}, user_data=b"#!/bin/sh\necho hi\n", flavor="m1.tiny",
        public_keys=[agent_pb2.PublicKey(name="mine", data="ssh-ed25519 AAAA me")],
    )  # fmt: skip
    fields: dict[str, object] = {"port_security": True, "admin_up": True, "fixed_ips": [ip], "metadata": guest} | more
    spec = agent_pb2.PortSpec(
        network_id=network_id, device=device_of(number, network_id), mac=mac_of(number, network_id), group_ids=groups,
        hostname=f"web-{number}", **fields,  # type: ignore[arg-type]
    )  # fmt: skip
    return agent_pb2.DesiredObject(id=port_id(number, network_id), port=spec)


def neighbour(number: int, vtep: str, network_id: str = NET, mac: str = "") -> agent_pb2.DesiredObject:
    spec = agent_pb2.NeighbourSpec(
        network_id=network_id,
        mac=mac or mac_of(number, network_id),
        ips=[f"192.168.0.{number}"],
        vtep=vtep,
        hostname=f"web-{number}",
    )
    return agent_pb2.DesiredObject(id=port_id(number, network_id), neighbour=spec)


def rule(
    protocol: str = "", low: int = -1, high: int = -1, *, ingress: bool = True, cidr: str = "", remote: str = ""
) -> agent_pb2.GroupRule:
    return agent_pb2.GroupRule(
        rule_id=f"{protocol}{low}{high}{ingress}{cidr}{remote}", ingress=ingress, protocol=protocol, port_min=low,
        port_max=high, remote_cidr=cidr, remote_group_id=remote,
    )  # fmt: skip


def group(group_id: str, *rules: agent_pb2.GroupRule, out: bool = True) -> agent_pb2.DesiredObject:
    leave = [rule(ingress=False)] if out else []
    return agent_pb2.DesiredObject(id=group_id, group=agent_pb2.GroupSpec(rules=[*rules, *leave]))


def members(group_id: str, *numbers: int, network_id: str = NET) -> agent_pb2.DesiredObject:
    spec = agent_pb2.MembersSpec(ips=[f"192.168.0.{n}" for n in numbers])
    return agent_pb2.DesiredObject(id=f"{group_id}:{network_id}", members=spec)


def router(
    *floating: tuple[str, str], router_id: str = "4444", network_id: str = NET, **more: object
) -> agent_pb2.DesiredObject:
    """203.0.113.50 outside, 192.168.0.1 inside. `floating`: (floating IP, fixed IP)."""
    inside = agent_pb2.RouterInterface(
        port_id=f"{router_id}aaaa-0000", network_id=network_id, mac=mac_of(1, network_id), ip="192.168.0.1", prefix=24
    )
    gateway = agent_pb2.RouterGateway(
        port_id=f"{router_id}eeee-0000", network_id=EXT_NET, mac="02:0e:00:00:00:01", ip="203.0.113.50", prefix=24,
        nexthop="203.0.113.254", snat=True,
    )  # fmt: skip
    fips = [agent_pb2.FloatingIpSpec(floating_ip_id="f" + ip, ip=ip, fixed_ip=fixed) for ip, fixed in floating]
    spec = agent_pb2.RouterSpec(interfaces=[inside], gateway=gateway, floating_ips=fips, admin_up=True, **more)  # type: ignore[arg-type]
    return agent_pb2.DesiredObject(id=router_id, router=spec)
