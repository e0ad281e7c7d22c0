"""The Linux kernel of this machine, or of the host namespace that we run in.

One worker thread does the blocking part (netlink, nft, namespaces); dnsmasq and the metadata sockets belong to the event loop.
Everything is idempotent: to make what is there, or to remove what is gone, succeeds.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import re
import shutil
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from daemonkit import command, failpoint
from daemonkit.errors import ConfigError, SkyrackError
from daemonkit.runtime import Runtime
from networkd.drivers import metadata, netns, nftables
from networkd.drivers import rtnetlink as rt
from networkd.drivers.base import NOT_IN_FORCE, Answer
from networkd.drivers.dnsmasq import Dnsmasq
from networkd.drivers.rtnetlink import LinkInfo, Rtnetlink
from networkd.spec import name
from networkd.spec.picture import (
    HERE,
    AddFact,
    AddHosts,
    AddLink,
    AddNamespace,
    Addr,
    Announce,
    DelFact,
    DelLink,
    DelNamespace,
    Fact,
    Fdb,
    ForgetFlows,
    Link,
    Listen,
    LoadRules,
    Neigh,
    Picture,
    SetLink,
    StartDhcp,
    Step,
    StopDhcp,
    Table,
    Unlisten,
    Via,
)

log = logging.getLogger(__name__)

VXLAN_PORT = 4789
PROGRAMS = ("dnsmasq", "conntrack", "nsenter")
TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
ETH_P_ARP = 0x0806
PORT_FLAGS = {"learning": rt.PORT_LEARNING, "flood": rt.PORT_UNICAST_FLOOD, "neigh_suppress": rt.PORT_NEIGH_SUPPRESS}
GONE = (errno.ENOENT, errno.ENODEV, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENXIO)
ON_LOOP = (ForgetFlows, StartDhcp, AddHosts, StopDhcp, Listen, Unlisten, DelNamespace)


class KernelDriver:
    """`external_device` "" on nodes without gateway. `answer` is the metadata's content."""

    def __init__(self, runtime: Runtime, run_dir: Path, external_device: str, answer: Answer) -> None:
        self._thread = runtime.threads("kernel", 1)
        self._external_device = external_device
        self._dnsmasq = Dnsmasq(run_dir)
        self._metadata = metadata.MetadataService(answer)
        self._sockets: dict[str, tuple[int, Rtnetlink]] = {}  # namespace -> (inode, socket)
        self._rules: dict[str, tuple[int, tuple[Table, ...]]] = {}  # namespace -> (generation, tables in force)
        self._loading = False
        self._trouble: Callable[[], None] = lambda: None
        self._nft: nftables.Nft
        self._rules_watch: nftables.RulesWatch

    async def open(self) -> list[str]:
        warnings = await self._thread.run(self._open)
        self._dnsmasq.adopt()
        self._rules_watch = nftables.RulesWatch(self._rules_changed)
        return warnings

    def _rules_changed(self) -> None:
        """Our port filter is not left to the next safety pass."""
        generation, _tables = self._rules.get(HERE, (0, ()))
        if not self._loading and generation and nftables.generation() != generation:
            self._trouble()

    def _open(self) -> list[str]:
        if not Path("/proc/sys/net/bridge").is_dir():
            raise ConfigError("br_netfilter is not loaded, security groups can't work: modprobe br_netfilter")
        for program in PROGRAMS:
            if shutil.which(program) is None:
                raise ConfigError(f"{program} is not installed")
        netns.sweep(name.NAMESPACE_PREFIX)
        self._nft = nftables.Nft()
        for family in ("iptables", "ip6tables", "arptables"):
            netns.set_sysctl(f"net.bridge.bridge-nf-call-{family}", "0")
        return check_foreign_rules(self._nft.run("list ruleset"))

    def watch(self, trouble: Callable[[], None]) -> None:
        self._trouble = self._dnsmasq.ended = trouble

    async def close(self) -> None:
        for network_id in self._metadata.listening:
            await self._metadata.close(network_id)
        self._dnsmasq.close()
        self._rules_watch.close()
        await self._thread.run(self._close)
        self._thread.close()

    def _close(self) -> None:
        for _inode, sock in self._sockets.values():
            sock.close()
        self._nft.close()

    def _netlink(self, ns: str) -> Rtnetlink:
        """The kept socket of a namespace; a new one when the namespace was made anew under its name."""
        inode = netns.path(ns).stat().st_ino if ns else 0
        held = self._sockets.get(ns)
        if held is None or held[0] != inode:
            if held is not None:
                held[1].close()
            held = self._sockets[ns] = (inode, Rtnetlink(netns.inside(ns, Rtnetlink.new_socket)))
        return held[1]

    # ---------------------------------------------------------------- observing

    async def observe(self) -> Picture:
        picture = await self._thread.run(self._observe)
        picture.dhcp = self._dnsmasq.observe()
        picture.listening = self._metadata.listening
        return picture

    def _observe(self) -> Picture:
        picture = Picture(namespaces=dict.fromkeys(netns.names(name.NAMESPACE_PREFIX), ()))
        self._observe_here(picture)
        for ns in picture.namespaces:
            self._observe_namespace(picture, ns)
        for ns in (HERE, *picture.namespaces):
            generation, tables = self._rules.get(ns, (0, ()))
            if generation and netns.inside(ns, nftables.generation) == generation:
                picture.tables[ns] = tables
        return picture

    def _observe_here(self, picture: Picture) -> None:
        netlink = self._netlink(HERE)
        infos = {i.index: i for i in netlink.links()}
        names = {i.index: i.name for i in infos.values()}
        for info in infos.values():
            master = names.get(info.master, "")
            if info.name.startswith((*name.OWN_PREFIXES, name.TAP_PREFIX)) or info.name == self._external_device:
                link = _observed(info, master)
                picture.links[link.key] = link
        for entry in netlink.neighbours(rt.AF_BRIDGE):
            dev = names.get(entry.index, "")
            if (HERE, dev) not in picture.links or not entry.mac:
                continue
            if entry.flags & rt.NTF_SELF and entry.dst:
                picture.add(Fdb(dev, entry.mac, entry.dst))
            elif entry.bridge and entry.state == rt.NUD_NOARP:
                picture.add(Fdb(dev, entry.mac))
        for family in (socket.AF_INET, socket.AF_INET6):
            for entry in netlink.neighbours(family):
                dev = names.get(entry.index, "")
                if (HERE, dev) in picture.links and entry.state == rt.NUD_PERMANENT:
                    picture.add(Neigh(dev, entry.dst, entry.mac))

    def _observe_namespace(self, picture: Picture, ns: str) -> None:
        netlink = self._netlink(ns)
        names = {}
        for info in netlink.links():
            if info.kind == "veth":
                names[info.index] = info.name
                picture.links[ns, info.name] = replace(_observed(info, ""), ns=ns)
        picture.add(*(Addr(ns, names[index], ip, prefix) for index, ip, prefix in netlink.addresses() if index in names))
        picture.add(*(Via(ns, destination, nexthop) for destination, nexthop in netlink.routes()))

    # ---------------------------------------------------------------- doing

    async def carry_out(self, steps: Sequence[Step]) -> list[str | None]:
        faults: list[str | None] = []
        for on_loop, group in groupby(steps, key=lambda step: isinstance(step, ON_LOOP)):
            batch = list(group)
            done = [await self._on_loop(s) for s in batch] if on_loop else await self._thread.run(self._in_thread, batch)
            faults += done
            if len(done) < len(batch):
                break
        return faults + [NOT_IN_FORCE] * (len(steps) - len(faults))

    def _in_thread(self, steps: list[Step]) -> list[str | None]:
        """Shorter than `steps` when rules were refused: there it stopped."""
        faults: list[str | None] = []
        for step in steps:
            try:
                self._carry_out(step)
                failpoint.hit("networkd.step")
                faults.append(None)
            except OSError as error:
                faults.append(f"{type(step).__name__} {_subject(step)}: {error.strerror or error}")
                if isinstance(step, LoadRules):
                    self._rules.pop(step.ns, None)  # next time all of them, not a difference
                    break
        return faults

    async def _on_loop(self, step: Step) -> str | None:
        failpoint.hit("networkd.step")
        try:
            match step:
                case StartDhcp():
                    await self._dnsmasq.start(step.service)
                case AddHosts():
                    self._dnsmasq.add(step.service, step.files)
                case StopDhcp():
                    await self._dnsmasq.stop(step.network_id)
                case Listen():
                    sock = await self._thread.run(metadata.listening_socket, step.network_id)
                    await self._metadata.listen(step.network_id, sock)
                case Unlisten():
                    await self._metadata.close(step.network_id)
                case ForgetFlows():
                    await _forget(step)
                case DelNamespace():
                    await self._thread.run(self._delete_namespace, step.name)
        except (OSError, SkyrackError) as error:
            return f"{type(step).__name__} {_subject(step)}: {error}"
        return None

    def _carry_out(self, step: Step) -> None:
        match step:
            case LoadRules():
                self._load(step)
            case AddNamespace():
                if step.name not in netns.names(name.NAMESPACE_PREFIX):
                    netns.create(step.name, step.sysctls, _loopback_up)
            case AddLink():
                self._add_link(step.link, step.peer)
            case DelLink():
                self._delete_link(step.ns, step.name)
            case SetLink():
                self._set_link(step.link, step.fields)
            case AddFact():
                self._put(step.fact)
            case DelFact():
                with _unless_gone():
                    self._remove(step.fact)
            case Announce():
                netns.inside(step.ns, lambda: _announce(step.dev, step.ip))

    def _load(self, step: LoadRules) -> None:
        if step.ns != HERE:
            self._rules[step.ns] = (netns.inside(step.ns, lambda: nftables.once(step.text)), step.tables)
            return
        self._loading = True
        try:
            before = nftables.generation()
            self._nft.run(step.text)
            # Somebody else's transaction in between would hide behind ours: then nothing is known of the rules.
            self._rules[HERE] = (before + 1, step.tables)
        finally:
            self._loading = False

    def _delete_namespace(self, ns: str) -> None:
        held = self._sockets.pop(ns, None)
        if held is not None:
            held[1].close()
        self._rules.pop(ns, None)
        netns.delete(ns)

    # ---- interfaces

    def _add_link(self, link: Link, peer: Link | None) -> None:
        netlink = self._netlink(link.ns)
        if netlink.link(link.name) is not None:
            return
        if link.kind == "bridge":
            netlink.add_bridge(link.name, link.mac or "", link.mtu or 1500, nf_call=bool(link.nf_call))
        elif link.kind == "vxlan":
            netlink.add_vxlan(link.name, link.vni or 0, link.local or "", VXLAN_PORT, link.mtu or 1500)
        elif link.kind == "veth":
            assert peer is not None
            with open(netns.path(peer.ns), "rb") as namespace:  # noqa: PTH123
                netlink.add_veth(link.name, link.mtu or 1500, peer.name, peer.mac or "", peer.mtu or 1500, namespace.fileno())
        else:
            add_tap(link.name, lambda: netlink.set_link(netlink.index(link.name), mtu=link.mtu, alias=name.ALIAS))

    def _delete_link(self, ns: str, device: str) -> None:
        """A device that has a port's name but was not made by us only leaves the bridge."""
        with _unless_gone():
            netlink = self._netlink(ns)
            info = netlink.link(device)
            if info is not None and device.startswith(name.TAP_PREFIX) and info.alias != name.ALIAS:
                netlink.set_link(info.index, master=0, up=False)
            elif info is not None:
                netlink.delete_link(device)

    def _set_link(self, link: Link, fields: frozenset[str]) -> None:
        netlink = self._netlink(link.ns)
        index = netlink.index(link.name)
        if link.up and link.ns == HERE and "up" in fields:
            _hush(link)
        if "nf_call" in fields:
            netlink.set_nf_call(link.name, bool(link.nf_call))
        if fields & {"mac", "mtu", "master"}:
            netlink.set_link(
                index,
                mac=link.mac if "mac" in fields else None,
                mtu=link.mtu if "mtu" in fields else None,
                master=(netlink.index(link.master) if link.master else 0) if "master" in fields else None,
            )
        flags = {number: bool(getattr(link, f)) for f, number in PORT_FLAGS.items() if f in fields}
        if flags and link.master:
            netlink.set_port(index, flags)
        if "up" in fields:
            netlink.set_link(index, up=link.up)

    # ---- facts

    def _put(self, fact: Fact) -> None:
        netlink = self._netlink(fact.ns)
        match fact:
            case Fdb():
                head = fact.mac == "00:00:00:00:00:00"
                with suppress(FileExistsError):
                    netlink.put_fdb(netlink.index(fact.dev), fact.mac, fact.dst, append=head)
            case Neigh():
                netlink.put_neighbour(netlink.index(fact.dev), fact.ip, fact.mac)
            case Addr():
                netlink.put_address(netlink.index(fact.dev), fact.ip, fact.prefix)
            case _:
                netlink.put_route(fact.destination, fact.nexthop)

    def _remove(self, fact: Fact) -> None:
        netlink = self._netlink(fact.ns)
        match fact:
            case Fdb():
                netlink.delete_fdb(netlink.index(fact.dev), fact.mac, fact.dst)
            case Neigh():
                netlink.delete_neighbour(netlink.index(fact.dev), fact.ip)
            case Addr():
                netlink.delete_address(netlink.index(fact.dev), fact.ip, fact.prefix)
            case _:
                netlink.delete_route(fact.destination, fact.nexthop)


@contextmanager
def _unless_gone() -> Iterator[None]:
    """Passes over the kernel's "there is no such thing"."""
    try:
        yield
    except OSError as error:
        if error.errno not in GONE:
            raise


def _subject(step: Step) -> str:
    match step:
        case AddLink() | SetLink():
            return step.link.name
        case DelLink() | AddNamespace() | DelNamespace():
            return step.name
        case AddFact() | DelFact():
            return " ".join(step.fact.slot)
        case StartDhcp() | AddHosts():
            return step.service.network_id
        case StopDhcp() | Listen() | Unlisten():
            return step.network_id
        case LoadRules() | ForgetFlows() | Announce():
            return step.ns or "of this node"


def _observed(info: LinkInfo, master: str) -> Link:
    """`ours`: made by us, told by its name; a TAP by its alias."""
    tap = info.name.startswith(name.TAP_PREFIX)
    flags = {f: bool(info.port[n][0]) if n in info.port else None for f, n in PORT_FLAGS.items()}
    vxlan = info.kind == "vxlan"
    return Link(
        info.name,
        "tap" if tap else info.kind,
        mac=info.mac,
        mtu=info.mtu,
        master=master,
        up=info.up,
        vni=struct.unpack("=I", info.data[rt.VXLAN_ID])[0] if vxlan else None,
        local=socket.inet_ntoa(info.data.get(rt.VXLAN_LOCAL, b"\0" * 4)) if vxlan else None,
        nf_call=bool(info.data[rt.BR_NF_CALL_IPTABLES][0]) if info.kind == "bridge" else None,
        ours=info.alias == name.ALIAS if tap else info.name.startswith(name.OWN_PREFIXES),
        learning=flags["learning"],
        flood=flags["flood"],
        neigh_suppress=flags["neigh_suppress"],
    )


def add_tap(device: str, mark: Callable[[], None]) -> None:
    """A persistent TAP, as QEMU wants it: with the virtio-net header, one queue. Errors: OSError.

    `mark()` is called before it is persistent: when this process is killed there, no TAP stays that nobody knows for ours.
    """
    with open("/dev/net/tun", "r+b", buffering=0) as tun:  # noqa: PTH123
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        mark()
        fcntl.ioctl(tun, TUNSETPERSIST, 1)


def _hush(link: Link) -> None:
    """No router solicitations or listener reports of the node into tenants' networks.

    A bridge keeps IPv6 (else it takes no neighbour entries), but without an address; its ports lose IPv6.
    """
    if link.kind == "bridge":
        for key, value in (("addr_gen_mode", "1"), ("accept_ra", "0"), ("autoconf", "0")):
            netns.set_sysctl(f"net.ipv6.conf.{link.name}.{key}", value)
    else:
        netns.set_sysctl(f"net.ipv6.conf.{link.name}.disable_ipv6", "1")


def _loopback_up() -> None:
    netlink = Rtnetlink(Rtnetlink.new_socket())
    try:
        netlink.set_link(netlink.index("lo"), up=True)
    finally:
        netlink.close()


def _announce(device: str, ip: str) -> None:
    """Gratuitous ARP (RFC 5227, section 3): a request and a reply, since peers differ in what they heed."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.htons(ETH_P_ARP)) as sock:
        sock.bind((device, ETH_P_ARP))
        mac, address = sock.getsockname()[4], socket.inet_aton(ip)
        for operation, target in ((1, bytes(6)), (2, mac)):
            arp = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, operation, mac, address, target, address)
            sock.send(b"\xff" * 6 + mac + struct.pack("!H", ETH_P_ARP) + arp)


async def _forget(step: ForgetFlows) -> None:
    """conntrack says 1 when there was nothing to forget."""
    enter = ["nsenter", f"--net={netns.path(step.ns)}"] if step.ns else []
    filters = [["-w", str(step.zone)]] if step.zone else [["-d", step.ip], ["-q", step.ip]]
    for selection in filters:
        await command.run(*enter, "conntrack", "-D", *selection, timeout_s=10.0, check=False)


def check_foreign_rules(ruleset: str) -> list[str]:
    """Looks at other programs' rules on this node; gives warnings. Errors: ConfigError for what breaks our isolation."""
    warnings = []
    for family, table, body in _tables(ruleset):
        if table.startswith("sk_"):
            continue
        if family == "bridge" and re.search(r"^\s*(?:.*\s)?ct \w+", body, re.MULTILINE):
            raise ConfigError(
                f"nft table bridge {table} uses connection tracking: with it the kernel ignores our zones and tenants' flows "
                "mix; remove that table"
            )
        if family in ("inet", "ip", "ip6") and re.search(r"hook forward[^;]*;\s*policy drop", body):
            warnings.append(f"nft table {family} {table} drops forwarded packets: bridged guests' packets pass there too")
        if family in ("inet", "ip", "ip6") and "masquerade" in body:
            warnings.append(f"nft table {family} {table} masquerades: it may rewrite packets between guests")
    return warnings


def _tables(ruleset: str) -> Iterable[tuple[str, str, str]]:
    for block in re.split(r"^table ", ruleset, flags=re.MULTILINE)[1:]:
        family, table, *_rest = block.split(maxsplit=2)
        yield family, table, block
