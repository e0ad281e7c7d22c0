"""The steps from an observed picture to a wanted one. Pure.

What must hold on the way: a port's rules are in force before its device joins the bridge; a router's rules before its
interfaces are up; flags of a bridge port are set before it forwards; what is right already is not touched. Applying the plan
to the observed picture gives one for which the plan is empty (see `apply`).
"""

from __future__ import annotations

from dataclasses import dataclass

from networkd.compile import nft
from networkd.spec import name
from networkd.spec.picture import (
    FIXED,
    HERE,
    MENDABLE,
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
    ForgetFlows,
    Link,
    Listen,
    LoadRules,
    Picture,
    SetLink,
    StartDhcp,
    Step,
    StopDhcp,
    Unlisten,
    Via,
)


@dataclass(frozen=True)
class Plan:
    """Carried out in this order; within each, too."""

    edge: tuple[Step, ...]  # bridges, tunnels, ports and their rules
    routers: tuple[Step, ...]
    services: tuple[Step, ...]  # DHCP, DNS, metadata

    def __bool__(self) -> bool:
        return bool(self.edge or self.routers or self.services)

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.edge + self.routers + self.services


def plan(seen: Picture, want: Picture) -> Plan:
    doomed = _doomed(seen, want)
    steps = [*_rules(seen, want), *_namespaces(seen, want), *_links(seen, want, doomed), *_facts(seen, want, doomed)]
    steps += _services(seen, want)
    steps.sort(key=_rank)
    edge = tuple(s for s in steps if s.owner.partition("/")[0] not in ("router", "dhcp"))
    routers = tuple(s for s in steps if s.owner.startswith("router/"))
    services = tuple(s for s in steps if s.owner.startswith("dhcp/"))
    return Plan(edge, routers, services)


_ORDER: tuple[type[Step], ...] = (
    StopDhcp, Unlisten, DelLink, DelNamespace, AddNamespace, LoadRules, AddLink, SetLink, DelFact, ForgetFlows, AddFact,
    Announce, StartDhcp, AddHosts, Listen,
)  # fmt: skip


def _rank(step: Step) -> tuple[int, int]:
    """Rules of this node come before everything. Bridges before their ports; routes last in and first out."""
    match step:
        case LoadRules(ns=""):
            return -1, 0
        case AddLink() | SetLink():
            second = step.link.kind != "bridge"
        case AddFact():
            second = isinstance(step.fact, Via)
        case DelFact():
            second = not isinstance(step.fact, Via)
        case _:
            second = False
    return _ORDER.index(type(step)), int(second)


# ---------------------------------------------------------------- rules and namespaces


def _rules(seen: Picture, want: Picture) -> list[Step]:
    steps: list[Step] = []
    for ns, tables in want.tables.items():
        held = seen.tables.get(ns)
        text = nft.whole(tables) if held is None else nft.delta(held, tables)
        if text:
            owner = "rules/" if ns == HERE else name.owner_of_namespace(ns)
            steps.append(LoadRules(ns, text, tables, owner))
    return steps


def _namespaces(seen: Picture, want: Picture) -> list[Step]:
    steps: list[Step] = [DelNamespace(ns, name.owner_of_namespace(ns)) for ns in seen.namespaces if ns not in want.namespaces]
    for ns, sysctls in want.namespaces.items():
        if ns not in seen.namespaces:
            steps.append(AddNamespace(ns, sysctls, name.owner_of_namespace(ns)))
    return steps


# ---------------------------------------------------------------- links


def _doomed(seen: Picture, want: Picture) -> set[tuple[str, str]]:
    """Observed links that go: nobody wants them, they are of the wrong kind, or they lost their other end."""
    doomed = {link.key for link in seen.links.values() if _unwanted(link, want) and link.ours}
    doomed |= {key for key in seen.links if key[0] != HERE and key[0] not in want.namespaces}
    for key, link in want.links.items():
        held = seen.links.get(key)
        if held is not None and _unfit(held, link):
            doomed.add(key)
    for link in want.links.values():
        if link.peer is None:
            continue
        pair = {link.key, link.peer}
        if pair & doomed or not pair <= seen.links.keys():
            doomed |= pair & seen.links.keys()
    return doomed


def _unwanted(link: Link, want: Picture) -> bool:
    return link.key not in want.links and (link.ns == HERE or link.ns in want.namespaces)


def _unfit(held: Link, link: Link) -> bool:
    """A TAP's name may be held by any device that is there already; everything else must be what we make."""
    if link.kind in ("tap", "device"):
        return False
    return held.kind != link.kind or any(getattr(held, f) != getattr(link, f) for f in FIXED)


def _links(seen: Picture, want: Picture, doomed: set[tuple[str, str]]) -> list[Step]:
    steps: list[Step] = [_delete(seen.links[key]) for key in sorted(doomed) if key[0] == HERE or key[0] in want.namespaces]
    steps += [
        _release(k) for k in seen.links.values() if _unwanted(k, want) and not k.ours and k.key not in doomed and _held(k)
    ]
    inner = {link.peer for link in want.links.values() if link.peer}
    for key, link in want.links.items():
        held = seen.links.get(key) if key not in doomed else None
        if held is None and key not in inner and link.kind != "device":
            peer = want.links[link.peer] if link.peer else None
            steps.append(AddLink(link, peer, link.owner))
        fields = {f for f in MENDABLE if getattr(link, f) is not None}
        if held is not None:
            fields = {f for f in fields if getattr(held, f) != getattr(link, f)}
            if link.kind == "tap":  # whoever opened it may have set its MTU
                fields.discard("mtu")
        if fields:
            steps.append(SetLink(link, frozenset(fields), link.owner))
    return steps


def _held(link: Link) -> bool:
    return (link.master or "").startswith(name.OWN_PREFIXES[0])


def _delete(link: Link) -> Step:
    owner = link.owner or (name.owner_of_namespace(link.ns) if link.ns else "leftover/")
    return DelLink(link.ns, link.name, owner)


def _release(link: Link) -> Step:
    """Not ours to delete: a device of somebody else leaves our bridge."""
    bare = Link(link.name, link.kind, link.ns, master="", up=False, ours=False, owner="leftover/")
    return SetLink(bare, frozenset({"master", "up"}), "leftover/")


# ---------------------------------------------------------------- facts


def _facts(seen: Picture, want: Picture, doomed: set[tuple[str, str]]) -> list[Step]:
    lost = _also_lost(seen, doomed)
    gone = [f for slot, f in seen.facts.items() if slot not in want.facts and _stands(f, want) and (f.ns, f.dev) not in lost]
    steps: list[Step] = []
    for fact in gone:
        steps.append(DelFact(fact, _owner(fact)))
        if isinstance(fact, Addr) and _public(fact):
            steps.append(ForgetFlows(fact.ns, fact.ip, owner=_owner(fact)))
    # The kernel drops routes with the address or interface they leave by: those are put again.
    shaken = {ns for ns, _name in doomed} | {f.ns for f in gone if isinstance(f, Addr)}
    for slot, fact in want.facts.items():
        held = seen.facts.get(slot)
        right = held is fact or held == fact
        if right and (fact.ns, fact.dev) not in lost and not (fact.ns in shaken and isinstance(fact, Via)):
            continue
        steps.append(AddFact(fact, fact.owner))
        if isinstance(fact, Addr) and _public(fact):
            steps.append(Announce(fact.ns, fact.dev, fact.ip, fact.owner))
    return steps


def _also_lost(seen: Picture, doomed: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """With a bridge go the entries of its ports."""
    bridges = {key for key in doomed if key in seen.links and seen.links[key].kind == "bridge"}
    return doomed | {k.key for k in seen.links.values() if (k.ns, k.master or "") in bridges}


def _stands(fact: Fact, want: Picture) -> bool:
    return fact.ns == HERE or fact.ns in want.namespaces


def _public(addr: Addr) -> bool:
    return addr.dev.startswith("qg-")


def _owner(fact: Fact) -> str:
    return fact.owner or (name.owner_of_namespace(fact.ns) if fact.ns else "leftover/")


# ---------------------------------------------------------------- services


def _services(seen: Picture, want: Picture) -> list[Step]:
    steps: list[Step] = [StopDhcp(n, f"dhcp/{n}") for n in seen.dhcp if n not in want.dhcp]
    steps += [Unlisten(n, f"dhcp/{n}") for n in sorted(seen.listening - want.listening)]
    fresh = {ns for ns in want.namespaces if ns not in seen.namespaces}
    for network_id, service in want.dhcp.items():
        held = seen.dhcp.get(network_id)
        owner = f"dhcp/{network_id}"
        if held is None or held.conf != service.conf or name.dhcp_namespace(network_id) in fresh:
            steps.append(StartDhcp(service, owner))
        elif held != service:
            before, after = {**held.hosts, **_names(held.names)}, {**service.hosts, **_names(service.names)}
            only_new = before.items() <= after.items()
            new = tuple(k for k in after if k not in before)
            steps.append(AddHosts(service, new, owner) if only_new else StartDhcp(service, owner))
    for network_id in sorted(want.listening):
        if network_id not in seen.listening or name.dhcp_namespace(network_id) in fresh:
            steps.append(Listen(network_id, f"dhcp/{network_id}"))
    return steps


def _names(names: object) -> dict[str, str]:
    assert isinstance(names, dict)
    return {f"names/{k}": v for k, v in names.items()}
