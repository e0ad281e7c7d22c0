"""A node's network as a value: what is there (observed) or should be (wanted), and the steps that lead from one to the other.

The kernel driver carries steps out on the kernel; `apply` carries them out on a picture. The fake driver is nothing more than
that, and the reconciler uses it to know what it has done without looking again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

HERE = ""  # the node's own namespace


@dataclass(frozen=True)
class Link:
    """An interface. None = we do not care."""

    name: str
    kind: str  # bridge, vxlan, veth, tap; "device" = not ours to make
    ns: str = HERE
    mac: str | None = None
    mtu: int | None = None
    master: str | None = None
    up: bool = True
    peer: tuple[str, str] | None = None  # (namespace, name) of the other end, for a veth we make
    vni: int | None = None
    local: str | None = None  # VXLAN: our end's address
    learning: bool | None = None
    flood: bool | None = None  # of unknown unicast
    neigh_suppress: bool | None = None
    nf_call: bool | None = None
    ours: bool = field(default=True, compare=False)  # observed: may be deleted
    owner: str = field(default="", compare=False)

    @property
    def key(self) -> tuple[str, str]:
        return self.ns, self.name


MENDABLE = ("mac", "mtu", "master", "up", "learning", "flood", "neigh_suppress", "nf_call")
FIXED = ("vni", "local")


@dataclass(frozen=True)
class Fdb:
    """Bridge: `dst` "" and the device is a port. VXLAN: where a MAC is; the zero MAC is the head-end list."""

    dev: str
    mac: str
    dst: str = ""
    ns: str = HERE
    owner: str = field(default="", compare=False)

    @property
    def slot(self) -> tuple[str, ...]:
        """Two facts of one slot replace each other."""
        if self.mac == "00:00:00:00:00:00":
            return ("head", self.dev, self.dst)
        return ("fdb", self.dev, self.mac, "self" if self.dst else "")


@dataclass(frozen=True)
class Neigh:
    dev: str
    ip: str
    mac: str
    ns: str = HERE
    owner: str = field(default="", compare=False)

    @property
    def slot(self) -> tuple[str, ...]:
        return ("neigh", self.dev, self.ip)


@dataclass(frozen=True)
class Addr:
    ns: str
    dev: str
    ip: str
    prefix: int
    owner: str = field(default="", compare=False)

    @property
    def slot(self) -> tuple[str, ...]:
        return ("addr", self.ns, self.dev, f"{self.ip}/{self.prefix}")


@dataclass(frozen=True)
class Via:
    """A route through a next hop."""

    ns: str
    destination: str  # CIDR; 0.0.0.0/0 = default
    nexthop: str
    owner: str = field(default="", compare=False)
    dev: str = field(default="", compare=False)

    @property
    def slot(self) -> tuple[str, ...]:
        return ("via", self.ns, self.destination)


Fact = Fdb | Neigh | Addr | Via


@dataclass(frozen=True)
class NftSet:
    """A set, or a map when elements have values. `spec`: its type (and flags) as nft text."""

    spec: str
    elements: Mapping[str, str]  # key -> value; "" for a set
    is_map: bool = False


@dataclass(frozen=True)
class Chain:
    rules: tuple[str, ...]
    hook: str = ""  # of a base chain, as nft text


@dataclass(frozen=True)
class Table:
    family: str
    name: str
    sets: Mapping[str, NftSet]
    chains: Mapping[str, Chain]


@dataclass(frozen=True)
class DhcpService:
    """dnsmasq of one network. `hosts` and `names`: file name -> line."""

    network_id: str
    conf: str
    hosts: Mapping[str, str]
    names: Mapping[str, str]


@dataclass
class Picture:
    namespaces: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)  # name -> sysctls
    links: dict[tuple[str, str], Link] = field(default_factory=dict)
    facts: dict[tuple[str, ...], Fact] = field(default_factory=dict)  # by slot
    tables: dict[str, tuple[Table, ...]] = field(default_factory=dict)  # namespace -> our tables
    dhcp: dict[str, DhcpService] = field(default_factory=dict)
    listening: set[str] = field(default_factory=set)  # networks whose metadata address we serve
    faults: dict[str, str] = field(default_factory=dict)  # owner -> why it can't be pictured

    def add(self, *facts: Fact) -> None:
        self.facts.update((f.slot, f) for f in facts)

    def copy(self) -> Picture:
        return Picture(dict(self.namespaces), dict(self.links), dict(self.facts), dict(self.tables), dict(self.dhcp),
                       set(self.listening))  # fmt: skip


# ---------------------------------------------------------------- steps


@dataclass(frozen=True)
class AddNamespace:
    name: str
    sysctls: tuple[tuple[str, str], ...]
    owner: str = ""


@dataclass(frozen=True)
class DelNamespace:
    name: str
    owner: str = ""


@dataclass(frozen=True)
class AddLink:
    """Makes it, down and alone; a veth with its peer."""

    link: Link
    peer: Link | None = None
    owner: str = ""


@dataclass(frozen=True)
class DelLink:
    ns: str
    name: str
    owner: str = ""


@dataclass(frozen=True)
class SetLink:
    link: Link
    fields: frozenset[str]
    owner: str = ""


@dataclass(frozen=True)
class AddFact:
    fact: Fact
    owner: str = ""


@dataclass(frozen=True)
class DelFact:
    fact: Fact
    owner: str = ""


@dataclass(frozen=True)
class LoadRules:
    """One nft transaction, after which `tables` are in force."""

    ns: str
    text: str
    tables: tuple[Table, ...]
    owner: str = ""


@dataclass(frozen=True)
class ForgetFlows:
    """Connection tracking entries of an address (in a router), or of a whole zone (here)."""

    ns: str
    ip: str = ""
    zone: int = 0
    owner: str = ""


@dataclass(frozen=True)
class Announce:
    """Gratuitous ARP."""

    ns: str
    dev: str
    ip: str
    owner: str = ""


@dataclass(frozen=True)
class StartDhcp:
    """Starts, or starts again with another configuration."""

    service: DhcpService
    owner: str = ""


@dataclass(frozen=True)
class AddHosts:
    """Only new files: dnsmasq notices them by itself."""

    service: DhcpService
    files: tuple[str, ...]
    owner: str = ""


@dataclass(frozen=True)
class StopDhcp:
    network_id: str
    owner: str = ""


@dataclass(frozen=True)
class Listen:
    network_id: str
    owner: str = ""


@dataclass(frozen=True)
class Unlisten:
    network_id: str
    owner: str = ""


Step = (
    AddNamespace | DelNamespace | AddLink | DelLink | SetLink | AddFact | DelFact | LoadRules | ForgetFlows | Announce
    | StartDhcp | AddHosts | StopDhcp | Listen | Unlisten
)  # fmt: skip


def apply(picture: Picture, step: Step) -> None:
    """Changes `picture` as the kernel would change."""
    match step:
        case AddNamespace():
            picture.namespaces[step.name] = step.sysctls
        case DelNamespace():
            _drop_namespace(picture, step.name)
        case AddLink():
            for link in (step.link, step.peer):
                if link is not None:
                    picture.links[link.key] = _bare(link)
        case DelLink():
            _drop_link(picture, (step.ns, step.name))
        case SetLink():
            seen = picture.links[step.link.key]
            changed = {f: getattr(step.link, f) for f in step.fields}
            picture.links[seen.key] = replace(seen, **changed)
        case AddFact():
            picture.facts[step.fact.slot] = step.fact
        case DelFact():
            picture.facts.pop(step.fact.slot, None)
        case LoadRules():
            picture.tables[step.ns] = step.tables
        case _:
            _apply_service(picture, step)


def _apply_service(picture: Picture, step: Step) -> None:
    match step:
        case StartDhcp() | AddHosts():
            picture.dhcp[step.service.network_id] = step.service
        case StopDhcp():
            picture.dhcp.pop(step.network_id, None)
        case Listen():
            picture.listening.add(step.network_id)
        case Unlisten():
            picture.listening.discard(step.network_id)


def _bare(link: Link) -> Link:
    ports = dict.fromkeys(("learning", "flood", "neigh_suppress"))
    return replace(link, up=False, master="", **ports)  # type: ignore[arg-type]


def _drop_link(picture: Picture, key: tuple[str, str]) -> None:
    link = picture.links.pop(key, None)
    if link is None:
        return
    picture.facts = {slot: f for slot, f in picture.facts.items() if (f.ns, f.dev) != key}
    for other in list(picture.links.values()):
        if other.peer == key or (link.peer is not None and other.key == link.peer):
            _drop_link(picture, other.key)
        elif link.kind == "bridge" and other.ns == link.ns and other.master == link.name:
            picture.links[other.key] = replace(other, master="")


def _drop_namespace(picture: Picture, name: str) -> None:
    picture.namespaces.pop(name, None)
    picture.tables.pop(name, None)
    for key in [k for k in picture.links if k[0] == name]:
        _drop_link(picture, key)
    picture.facts = {slot: f for slot, f in picture.facts.items() if f.ns != name}
