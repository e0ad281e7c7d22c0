"""Sends one forged (or honest) Ethernet frame, or listens for them. Run inside a guest; each frame carries its name."""

import contextlib
import socket
import struct
import sys
import time

MARK = b"frame:"
BROADCAST = b"\xff" * 6


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip4(source: str, target: str, payload: bytes, sport: int = 1234, dport: int = 5000) -> bytes:
    udp = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(target)
    )
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + udp


def ip6(source: str, target: str, icmp: bytes) -> bytes:
    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target)
    padded = icmp + b"\0" * (len(icmp) % 2)
    total = checksum(addresses + struct.pack("!IHBB", len(icmp), 0, 0, 58) + padded)
    return struct.pack("!IHBB", 6 << 28, len(icmp), 58, 255) + addresses + icmp[:2] + struct.pack("!H", total) + icmp[4:]


def arp(operation: int, sender_mac: bytes, sender_ip: str, target_ip: str) -> bytes:
    return struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, operation, sender_mac, socket.inet_aton(sender_ip), b"\0" * 6,
                       socket.inet_aton(target_ip))  # fmt: skip


def link_local(own: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET6, b"\xfe\x80" + bytes(6) + bytes([own[0] ^ 2]) + own[1:3] + b"\xff\xfe" + own[3:])


def frame(name: str, own: bytes, peer: bytes) -> bytes:
    text, stranger = MARK + name.encode() + b";", mac("02:de:ad:00:00:01")
    mine, other, victim = "192.168.0.11", "192.168.0.77", "192.168.0.12"
    local = link_local(own)
    advert = b"\x88\0\0\0\x60\0\0\0" + socket.inet_pton(socket.AF_INET6, "fe80::1") + text
    route = b"\x86\0\0\0\x40\0\x07\x08" + b"\0" * 8 + text
    return {
        "good_ip": peer + own + b"\x08\x00" + ip4(mine, victim, text),
        "good_arp": BROADCAST + own + b"\x08\x06" + arp(1, own, mine, victim) + text,
        "end": peer + own + b"\x08\x00" + ip4(mine, victim, text),
        "mac": peer + stranger + b"\x08\x00" + ip4(mine, victim, text),
        "ip": peer + own + b"\x08\x00" + ip4(other, victim, text),
        "arp_ip": BROADCAST + own + b"\x08\x06" + arp(2, own, "192.168.0.1", victim) + text,
        "arp_mac": BROADCAST + own + b"\x08\x06" + arp(2, stranger, mine, victim) + text,
        "vlan": peer + own + b"\x81\x00\x00\x05\x08\x00" + ip4(mine, victim, text),
        "lldp": BROADCAST + own + b"\x88\xcc" + text,
        "dhcp_server": BROADCAST + own + b"\x08\x00" + ip4(mine, "255.255.255.255", text, 67, 68),
        "router_advert": mac("33:33:00:00:00:01") + own + b"\x86\xdd" + ip6(local, "ff02::1", route),
        "neighbour_advert": mac("33:33:00:00:00:01") + own + b"\x86\xdd" + ip6(local, "ff02::1", advert),
        "ip6": peer + own + b"\x86\xdd" + ip6("fd00::99", "fd00::12", b"\x80\0\0\0\0\1\0\1" + text),
    }[name]


def listen() -> None:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sock.bind(("eth0", 0x0003))
    print("listening", flush=True)
    ends_s = time.monotonic() + 15
    while time.monotonic() < ends_s:
        sock.settimeout(max(0.01, ends_s - time.monotonic()))
        with contextlib.suppress(TimeoutError):
            data = sock.recv(4096)
            if MARK in data:
                name = data.split(MARK, 1)[1].split(b";")[0].decode()
                print(name, flush=True)
                if name == "end":
                    ends_s = time.monotonic() + 0.3


if sys.argv[1] == "listen":
    listen()
else:
    out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    out.bind(("eth0", 0))
    out.send(frame(sys.argv[2], mac(sys.argv[3]), mac(sys.argv[4])).ljust(60, b"\0"))
