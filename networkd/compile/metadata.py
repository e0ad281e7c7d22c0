"""What a server reads at http://169.254.169.254/: the OpenStack tree and the EC2 tree. Pure.

Who asks is decided by network and source address alone (the port filter lets nobody lie about it); headers mean nothing.
Shapes: OpenStack "Metadata service" and "network_data.json" schema; EC2 "Instance metadata categories".
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from typing import Any

from networkd.spec.desired import Desired, Guest, Port, Subnet

OPENSTACK_VERSIONS = (
    "2012-08-10", "2013-04-04", "2013-10-17", "2015-10-15", "2016-06-30", "2016-10-06", "2017-02-22", "2018-08-27",
    "2020-10-14", "latest",
)  # fmt: skip
EC2_VERSIONS = ("1.0", "2007-01-19", "2008-09-01", "2009-04-04", "latest")
TEXT, JSON, BYTES = "text/plain; charset=utf-8", "application/json", "application/octet-stream"

Reply = tuple[str, bytes]  # content type, body


def answer(desired: Desired, network_id: str, source_ip: str, path: str) -> Reply | None:
    """None: no such document, or nobody of ours has that address on that network."""
    port = next((p for p in desired.ports.values() if p.network_id == network_id and source_ip in p.ips), None)
    if port is None or not port.guest.server_id:
        return None
    parts = [p for p in path.split("?", 1)[0].split("/") if p]
    if not parts:
        return _listing(EC2_VERSIONS)
    if parts[0] == "openstack":
        return _openstack(desired, port, parts[1:])
    if parts[0] in EC2_VERSIONS:
        return _ec2(port, parts[1:])
    return None


def _listing(entries: Iterable[str]) -> Reply:
    return TEXT, "\n".join(entries).encode()


def _json(value: object) -> Reply:
    return JSON, json.dumps(value, sort_keys=True).encode()


# ---------------------------------------------------------------- OpenStack


def _openstack(desired: Desired, port: Port, parts: list[str]) -> Reply | None:
    if not parts:
        return _listing(OPENSTACK_VERSIONS)
    if parts[0] not in OPENSTACK_VERSIONS:
        return None
    guest = port.guest
    match parts[1:]:
        case []:
            user_data = ["user_data"] if guest.user_data else []
            return _listing(["meta_data.json", "network_data.json", *user_data, "vendor_data.json", "vendor_data2.json"])
        case ["meta_data.json"]:
            return _json(meta_data(guest))
        case ["network_data.json"]:
            return _json(network_data(desired, guest.server_id))
        case ["user_data"]:
            return (BYTES, guest.user_data) if guest.user_data else None
        case ["vendor_data.json"]:
            return _json(vendor_data(guest))
        case ["vendor_data2.json"]:
            return _json({})
    return None


def meta_data(guest: Guest) -> dict[str, Any]:
    keys = [{"name": n, "type": "ssh", "data": d} for n, d in guest.public_keys]
    return {
        "uuid": guest.server_id,
        "name": guest.name,
        "hostname": guest.hostname or guest.name,
        "project_id": guest.project_id,
        "availability_zone": guest.availability_zone,
        "launch_index": guest.launch_index,
        "meta": dict(guest.meta),
        "public_keys": dict(guest.public_keys),
        "keys": keys,
        "devices": [],
    }


def vendor_data(guest: Guest) -> dict[str, Any]:
    """Accounts that security groups let in, as cloud-init's cloud-config (JSON is YAML)."""
    if not guest.accounts:
        return {}
    users: list[Any] = ["default"]
    for account in guest.accounts:
        user = {"name": account.name, "shell": "/bin/bash", "ssh_authorized_keys": list(account.public_keys)}
        users.append(user | ({"sudo": "ALL=(ALL) NOPASSWD:ALL"} if account.sudo else {}))
    return {"cloud-init": "#cloud-config\n" + json.dumps({"users": users})}


def network_data(desired: Desired, server_id: str) -> dict[str, Any]:
    """All ports of the server on this node, which are all it has."""
    ports = sorted((p for p in desired.ports.values() if p.guest.server_id == server_id), key=lambda p: p.id)
    links: list[dict[str, Any]] = []
    networks: list[dict[str, Any]] = []
    resolvers: dict[str, str] = {}
    for port in ports:
        segment = desired.segments.get(port.network_id)
        if segment is None:
            continue
        links.append(
            {"id": port.device, "vif_id": port.id, "type": "phy", "mtu": segment.mtu, "ethernet_mac_address": port.mac}
        )
        subnets = {s.id: s for s in segment.subnets}
        for fixed in port.fixed_ips:
            subnet = subnets.get(fixed.subnet_id)
            if subnet is not None:
                networks.append(_network(f"network{len(networks)}", port, subnet, fixed.ip))
                resolvers |= dict.fromkeys(subnet.dns_servers, "")
    return {"links": links, "networks": networks, "services": [{"type": "dns", "address": a} for a in resolvers]}


def _network(identity: str, port: Port, subnet: Subnet, ip: str) -> dict[str, Any]:
    family = "ipv6" if ":" in ip else "ipv4"
    entry: dict[str, Any] = {"id": identity, "link": port.device, "network_id": port.network_id}
    if subnet.dhcp_ip and family == "ipv4":
        return entry | {"type": "ipv4_dhcp"}
    net = ipaddress.ip_network(subnet.cidr)
    routes = [(r.destination, r.nexthop) for r in subnet.routes]
    if subnet.gateway_ip:
        routes.append(("0.0.0.0/0" if family == "ipv4" else "::/0", subnet.gateway_ip))
    return entry | {
        "type": family,
        "ip_address": ip,
        "netmask": str(net.netmask),
        "routes": [_route(destination, nexthop) for destination, nexthop in routes],
    }


def _route(destination: str, nexthop: str) -> dict[str, str]:
    net = ipaddress.ip_network(destination)
    return {"network": str(net.network_address), "netmask": str(net.netmask), "gateway": nexthop}


# ---------------------------------------------------------------- EC2


def _ec2(port: Port, parts: list[str]) -> Reply | None:
    if not parts:
        return _listing(["meta-data/", *(["user-data"] if port.guest.user_data else [])])
    if parts == ["user-data"]:
        return (BYTES, port.guest.user_data) if port.guest.user_data else None
    if parts[0] != "meta-data":
        return None
    here: Any = _ec2_tree(port)
    for part in parts[1:]:
        here = here.get(part) if isinstance(here, dict) else None
    if isinstance(here, dict):
        return _listing(here.get("", [k + "/" if isinstance(v, dict) else k for k, v in here.items()]))
    return None if here is None else (TEXT, str(here).encode())


def _ec2_tree(port: Port) -> dict[str, Any]:
    guest = port.guest
    hostname = guest.hostname or guest.name
    tree: dict[str, Any] = {
        "ami-id": guest.image_id,
        "ami-launch-index": guest.launch_index,
        "hostname": hostname,
        "instance-id": "i-" + guest.server_id.replace("-", "")[:17],
        "instance-type": guest.flavor,
        "local-hostname": hostname,
        "local-ipv4": next((ip for ip in port.ips if ":" not in ip), ""),
        "mac": port.mac,
        "placement": {"availability-zone": guest.availability_zone},
        "public-hostname": hostname,
    }
    if guest.public_keys:
        listing = [f"{i}={n}" for i, (n, _data) in enumerate(guest.public_keys)]
        keys = {str(i): {"openssh-key": data} for i, (_name, data) in enumerate(guest.public_keys)}
        tree["public-keys"] = {"": listing, **keys}
    return tree
