"""rtnetlink(7): interfaces, bridge ports, FDB, neighbours, addresses, routes. Only what networkd says and reads.

Spoken directly: a general library costs 14 MiB and a millisecond a request; here a request is tens of microseconds, and one
socket, born in its namespace, serves it for good. Blocking, for one thread at a time. Errors: OSError with the kernel's errno.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

REQUEST, ACK, DUMP, REPLACE, EXCL, CREATE, APPEND = 1, 4, 0x300, 0x100, 0x200, 0x400, 0x800
NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
NEWADDR, DELADDR, GETADDR, NEWROUTE, DELROUTE, GETROUTE = 20, 21, 22, 24, 25, 26
NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30
ERROR, DONE = 2, 3
AF_BRIDGE = 7
IFF_UP = 1
NUD_NOARP, NUD_PERMANENT = 0x40, 0x80
NTF_SELF, NTF_MASTER = 2, 4
NESTED = 0x8000
RECEIVE_BYTES = 1 << 18

# linux/if_link.h, linux/neighbour.h, linux/if_addr.h, linux/rtnetlink.h
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_PROTINFO = 1, 3, 4, 10, 12
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_NET_NS_FD = 18, 20, 28
INFO_KIND, INFO_DATA, INFO_SLAVE_DATA = 1, 2, 5
BR_STP_STATE, BR_MCAST_SNOOPING, BR_NF_CALL_IPTABLES, BR_NF_CALL_IP6TABLES = 5, 23, 36, 37
PORT_LEARNING, PORT_UNICAST_FLOOD, PORT_NEIGH_SUPPRESS = 8, 9, 32
VXLAN_ID, VXLAN_LOCAL, VXLAN_TTL, VXLAN_LEARNING, VXLAN_PORT = 1, 4, 5, 7, 15
VETH_PEER = 1
NDA_DST, NDA_LLADDR, NDA_MASTER = 1, 2, 9
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_GATEWAY, RTA_TABLE = 1, 5, 15
RT_TABLE_MAIN, RTPROT_KERNEL, RTPROT_STATIC, RTN_UNICAST = 254, 2, 4, 1

Attributes = dict[int, bytes]


@dataclass(frozen=True)
class LinkInfo:
    index: int
    name: str
    up: bool
    mac: str
    mtu: int
    master: int
    kind: str
    alias: str
    data: Attributes = field(default_factory=dict)  # of the kind
    port: Attributes = field(default_factory=dict)  # of the bridge port


@dataclass(frozen=True)
class NeighInfo:
    family: int
    index: int
    state: int
    flags: int
    mac: str
    dst: str
    bridge: bool  # an entry of the bridge's table


def attribute(kind: int, value: bytes) -> bytes:
    padding = -len(value) % 4
    return struct.pack("=HH", len(value) + 4, kind) + value + b"\0" * padding


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def u8(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=B", value))


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def nest(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | NESTED, b"".join(parts))


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def attributes(data: bytes, offset: int = 0) -> Attributes:
    found: Attributes = {}
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _mac(raw: bytes) -> str:
    return raw.hex(":") if len(raw) == 6 else ""


class Rtnetlink:
    """`sock`: a NETLINK_ROUTE socket made in the namespace it is for."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._seq = 0

    @staticmethod
    def new_socket() -> socket.socket:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.settimeout(10.0)
        sock.bind((0, 0))
        return sock

    def close(self) -> None:
        self._sock.close()

    def _ask(self, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
        """Sends one request; gives (type, payload) of its answers."""
        self._seq += 1
        self._sock.send(struct.pack("=IHHII", len(body) + 16, kind, REQUEST | flags, self._seq, 0) + body)
        answers: list[tuple[int, bytes]] = []
        while True:
            for answer, payload in self._receive():
                if answer == ERROR:
                    code = -struct.unpack_from("=i", payload)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return answers
                if answer == DONE:
                    return answers
                answers.append((answer, payload))

    def _receive(self) -> Iterator[tuple[int, bytes]]:
        data = self._sock.recv(RECEIVE_BYTES)
        offset = 0
        while offset + 16 <= len(data):
            length, kind, _flags, seq, _pid = struct.unpack_from("=IHHII", data, offset)
            if seq == self._seq:
                yield kind, data[offset + 16 : offset + length]
            offset += (length + 3) & ~3

    def _do(self, kind: int, flags: int, body: bytes) -> None:
        self._ask(kind, flags | ACK, body)

    # ---- interfaces

    def links(self) -> list[LinkInfo]:
        return [
            _link(payload)
            for kind, payload in self._ask(GETLINK, DUMP, struct.pack("=BxHiII", 0, 0, 0, 0, 0))
            if kind == NEWLINK
        ]

    def index(self, name: str) -> int:
        """Errors: OSError ENODEV."""
        found = self.link(name)
        if found is None:
            raise OSError(errno.ENODEV, f"no interface {name}")
        return found.index

    def link(self, name: str) -> LinkInfo | None:
        try:
            answers = self._ask(GETLINK, ACK, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + text(IFLA_IFNAME, name))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return _link(answers[0][1]) if answers else None

    def _add(self, name: str, kind: str, data: bytes, *extra: bytes) -> None:
        info = nest(IFLA_LINKINFO, text(INFO_KIND, kind), nest(INFO_DATA, data))
        body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + text(IFLA_IFNAME, name) + b"".join(extra) + info
        self._do(NEWLINK, CREATE | EXCL, body)

    def add_bridge(self, name: str, mac: str, mtu: int, *, nf_call: bool) -> None:
        data = u32(BR_STP_STATE, 0) + u8(BR_MCAST_SNOOPING, 0) + _nf_call(nf_call)
        self._add(name, "bridge", data, attribute(IFLA_ADDRESS, mac_bytes(mac)), u32(IFLA_MTU, mtu))

    def set_nf_call(self, name: str, on: bool) -> None:
        info = nest(IFLA_LINKINFO, text(INFO_KIND, "bridge"), nest(INFO_DATA, _nf_call(on)))
        self._do(NEWLINK, 0, struct.pack("=BxHiII", 0, 0, self.index(name), 0, 0) + info)

    def add_vxlan(self, name: str, vni: int, local: str, port: int, mtu: int) -> None:
        data = u32(VXLAN_ID, vni) + attribute(VXLAN_LOCAL, socket.inet_aton(local)) + u8(VXLAN_TTL, 64)
        data += u8(VXLAN_LEARNING, 0) + attribute(VXLAN_PORT, struct.pack("!H", port))
        self._add(name, "vxlan", data, u32(IFLA_MTU, mtu))

    def add_veth(self, name: str, mtu: int, peer: str, peer_mac: str, peer_mtu: int, peer_ns_fd: int) -> None:
        other = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + text(IFLA_IFNAME, peer) + u32(IFLA_MTU, peer_mtu)
        other += attribute(IFLA_ADDRESS, mac_bytes(peer_mac)) + u32(IFLA_NET_NS_FD, peer_ns_fd)
        self._add(name, "veth", nest(VETH_PEER, other), u32(IFLA_MTU, mtu))

    def delete_link(self, name: str) -> None:
        self._do(DELLINK, 0, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + text(IFLA_IFNAME, name))

    def set_link(
        self, index: int, *, up: bool | None = None, mtu: int | None = None, mac: str | None = None,
        master: int | None = None, alias: str | None = None,
    ) -> None:  # fmt: skip
        """`master` 0 = none."""
        body = struct.pack("=BxHiII", 0, 0, index, IFF_UP if up else 0, 0 if up is None else IFF_UP)
        body += u32(IFLA_MTU, mtu) if mtu is not None else b""
        body += attribute(IFLA_ADDRESS, mac_bytes(mac)) if mac is not None else b""
        body += u32(IFLA_MASTER, master) if master is not None else b""
        body += attribute(IFLA_IFALIAS, alias.encode()) if alias is not None else b""
        self._do(NEWLINK, 0, body)

    def set_port(self, index: int, flags: dict[int, bool]) -> None:
        """Flags of a bridge port: PORT_* -> on."""
        info = nest(IFLA_PROTINFO, *(u8(kind, on) for kind, on in flags.items()))
        self._do(SETLINK, 0, struct.pack("=BxHiII", AF_BRIDGE, 0, index, 0, 0) + info)

    # ---- FDB and neighbours

    def neighbours(self, family: int) -> list[NeighInfo]:
        """`family` AF_BRIDGE: the FDBs."""
        answers = self._ask(GETNEIGH, DUMP, struct.pack("=BxHiHBB", family, 0, 0, 0, 0, 0))
        return [_neigh(payload) for kind, payload in answers if kind == NEWNEIGH]

    def _fdb(self, kind: int, flags: int, index: int, mac: str, dst: str) -> None:
        state, where = (NUD_PERMANENT | NUD_NOARP, NTF_SELF) if dst else (NUD_NOARP, NTF_MASTER)
        body = struct.pack("=BxHiHBB", AF_BRIDGE, 0, index, state, where, 0) + attribute(NDA_LLADDR, mac_bytes(mac))
        self._do(kind, flags, body + (attribute(NDA_DST, socket.inet_aton(dst)) if dst else b""))

    def put_fdb(self, index: int, mac: str, dst: str = "", *, append: bool = False) -> None:
        self._fdb(NEWNEIGH, CREATE | (APPEND if append else REPLACE), index, mac, dst)

    def delete_fdb(self, index: int, mac: str, dst: str = "") -> None:
        self._fdb(DELNEIGH, 0, index, mac, dst)

    def put_neighbour(self, index: int, ip: str, mac: str) -> None:
        body = struct.pack("=BxHiHBB", _family(ip), 0, index, NUD_PERMANENT, 0, 0)
        body += attribute(NDA_DST, ipaddress.ip_address(ip).packed) + attribute(NDA_LLADDR, mac_bytes(mac))
        self._do(NEWNEIGH, CREATE | REPLACE, body)

    def delete_neighbour(self, index: int, ip: str) -> None:
        body = struct.pack("=BxHiHBB", _family(ip), 0, index, 0, 0, 0)
        self._do(DELNEIGH, 0, body + attribute(NDA_DST, ipaddress.ip_address(ip).packed))

    # ---- addresses and routes (IPv4)

    def addresses(self) -> list[tuple[int, str, int]]:
        """(interface index, address, prefix length)."""
        found = []
        for kind, payload in self._ask(GETADDR, DUMP, struct.pack("=BBBBI", socket.AF_INET, 0, 0, 0, 0)):
            if kind == NEWADDR:
                _af, prefix, _flags, _scope, index = struct.unpack_from("=BBBBI", payload)
                found.append((index, socket.inet_ntoa(attributes(payload, 8)[IFA_LOCAL]), prefix))
        return found

    def _addr(self, kind: int, flags: int, index: int, ip: str, prefix: int) -> None:
        raw = socket.inet_aton(ip)
        body = struct.pack("=BBBBI", socket.AF_INET, prefix, 0, 0, index)
        self._do(kind, flags, body + attribute(IFA_LOCAL, raw) + attribute(IFA_ADDRESS, raw))

    def put_address(self, index: int, ip: str, prefix: int) -> None:
        self._addr(NEWADDR, CREATE | REPLACE, index, ip, prefix)

    def delete_address(self, index: int, ip: str, prefix: int) -> None:
        self._addr(DELADDR, 0, index, ip, prefix)

    def routes(self) -> list[tuple[str, str]]:
        """(destination CIDR, next hop) of the main table, without the kernel's own."""
        found = []
        for kind, payload in self._ask(GETROUTE, DUMP, struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)):
            _fam, length, _src, _tos, table, protocol, _scope, rtype, _flags = struct.unpack_from("=BBBBBBBBI", payload)
            parts = attributes(payload, 12)
            if kind == NEWROUTE and table == RT_TABLE_MAIN and protocol != RTPROT_KERNEL and rtype == RTN_UNICAST:
                destination = socket.inet_ntoa(parts.get(RTA_DST, b"\0" * 4))
                found.append((f"{destination}/{length}", socket.inet_ntoa(parts.get(RTA_GATEWAY, b"\0" * 4))))
        return found

    def _route(self, kind: int, flags: int, destination: str, nexthop: str) -> None:
        net = ipaddress.IPv4Network(destination)
        head = struct.pack("=BBBBBBBBI", socket.AF_INET, net.prefixlen, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0)
        body = head + attribute(RTA_DST, net.network_address.packed) + attribute(RTA_GATEWAY, socket.inet_aton(nexthop))
        self._do(kind, flags, body)

    def put_route(self, destination: str, nexthop: str) -> None:
        self._route(NEWROUTE, CREATE | REPLACE, destination, nexthop)

    def delete_route(self, destination: str, nexthop: str) -> None:
        self._route(DELROUTE, 0, destination, nexthop)


def _nf_call(on: bool) -> bytes:
    return u8(BR_NF_CALL_IPTABLES, on) + u8(BR_NF_CALL_IP6TABLES, on)


def _family(ip: str) -> int:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def _link(payload: bytes) -> LinkInfo:
    _af, _type, index, flags, _change = struct.unpack_from("=BxHiII", payload)
    parts = attributes(payload, 16)
    info = attributes(parts.get(IFLA_LINKINFO, b""))
    return LinkInfo(
        index=index,
        name=parts[IFLA_IFNAME].rstrip(b"\0").decode(),
        up=bool(flags & IFF_UP),
        mac=_mac(parts.get(IFLA_ADDRESS, b"")),
        mtu=struct.unpack("=I", parts[IFLA_MTU])[0],
        master=struct.unpack("=I", parts[IFLA_MASTER])[0] if IFLA_MASTER in parts else 0,
        kind=info.get(INFO_KIND, b"").rstrip(b"\0").decode(),
        alias=parts.get(IFLA_IFALIAS, b"").rstrip(b"\0").decode(errors="replace"),
        data=attributes(info.get(INFO_DATA, b"")),
        port=attributes(info.get(INFO_SLAVE_DATA, b"")),
    )


def _neigh(payload: bytes) -> NeighInfo:
    family, _pad, index, state, flags, _type = struct.unpack_from("=BxHiHBB", payload)
    parts = attributes(payload, 12)
    raw = parts.get(NDA_DST, b"")
    dst = str(ipaddress.ip_address(raw)) if len(raw) in (4, 16) else ""
    return NeighInfo(family, index, state, flags, _mac(parts.get(NDA_LLADDR, b"")), dst, NDA_MASTER in parts)
