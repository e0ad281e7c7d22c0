"""The rule that every change touches every node, or network, whose state it changes.

After each random operation only what was touched is compiled again, as sessions do it; then what nodes were sent must be what
compiling everything afresh gives, to the hash. A missed touch shows as a difference, named with the operation that missed it.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from controllerd.agents import compilation
from controllerd.agents.compilation import Compilation, Wanted
from controllerd.agents.desired.network import compile_network
from controllerd.agents.desired.state import State
from controllerd.app.cloud import Cloud, Once
from controllerd.app.floating_ip import FloatingIps
from controllerd.app.network import Networks
from controllerd.app.port import NewPort, Ports, make_port, release_ports, take_port
from controllerd.app.router import Routers
from controllerd.app.security_group import SecurityGroups
from controllerd.app.subnet import Subnets
from controllerd.domain import quota as quota_domain
from controllerd.domain.address import HostRoute
from controllerd.domain.policy import Caller
from controllerd.domain.security_group import Account, Rule
from controllerd.reconcilers.router_placement import place_homeless
from controllerd.store import port as port_store
from controllerd.store import quota
from controllerd.store import server as server_store
from controllerd.store.database import Tx
from controllerd.store.network import CARRIED
from controllerd.store.server import SERVERS
from daemonkit.desired import encode, key_of, state_hash
from daemonkit.errors import SkyrackError
from tests.controllerd.network.rack import add_node, add_server, set_agent

ANEW = Once("", "", "")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGE4xkMf1pOQjc+7BzFGYh8L8Q8UmQYlPnC4T0n1Yx8k tester"


def bodies(tx: Tx, node_id: str) -> dict[str, bytes]:
    return {key_of(o): encode(o) for o in compile_network(tx, node_id)}


class Driver:
    """One random operation after another; what is refused changes nothing."""

    def __init__(self, cloud: Cloud, rng: random.Random, admin: Caller, member: Caller) -> None:
        self.db, self.rng, self.admin, self.member = cloud.database, rng, admin, member
        self.networks, self.subnets, self.ports = Networks(cloud), Subnets(cloud), Ports(cloud)
        self.routers, self.floating_ips, self.groups = Routers(cloud), FloatingIps(cloud), SecurityGroups(cloud)
        self.nodes: list[Any] = []
        self.count = 0
        self.done: Counter[str] = Counter()

    async def rack(self) -> None:
        def make(tx: Tx) -> None:
            self.nodes = [add_node(tx, f"c{n}", f"10.0.0.{n}") for n in (1, 2, 3)]
            self.nodes += [add_node(tx, f"g{n}", f"10.0.0.1{n}", gateway=True) for n in (1, 2)]

        await self.db.write(make)
        await self.provider()
        for _ in range(2):
            await self.network()
            with suppress(SkyrackError):  # both may be drawn on one network, with the same range
                await self.subnet()

    async def ids(self, table: str, where: str = "1") -> str:
        found = await self.db.read(lambda tx: [r["id"] for r in tx.each(f"SELECT id FROM {table} WHERE {where} ORDER BY id")])
        return self.rng.choice(found) if found else "none"

    async def step(self) -> str:
        name, operation = self.rng.choice(self.operations())
        self.count += 1
        try:
            await operation()
            self.done[name] += 1
        except SkyrackError:
            self.done[f"{name} refused"] += 1
        return name

    def operations(self) -> list[tuple[str, Callable[[], Awaitable[object]]]]:
        weights = {
            "network": 2, "subnet": 4, "boot": 8, "port": 4, "take": 3, "move": 4, "release": 3, "router": 3, "gateway": 3,
            "interface": 6, "route": 3, "floating_ip": 4, "map": 6, "group": 2, "rule": 6, "membership": 6,
        }  # fmt: skip
        names = [
            "network", "provider", "subnet", "boot", "port", "take", "move", "release", "router", "gateway", "interface",
            "route", "floating_ip", "map", "group", "rule", "membership", "accounts", "dns", "rename", "vtep", "lose",
            "place", "snat", "protect", "drop_rule", "drop_floating_ip", "drop_router", "drop_interface", "drop_network",
            "drop_subnet", "drop_port", "drop_group", "clear_gateway",
        ]  # fmt: skip
        return [(n, getattr(self, n)) for n in names for _ in range(weights.get(n, 1))]

    # ---- making

    async def network(self) -> None:
        await self.networks.create(self.member, f"n{self.count}", False, False, ANEW)

    async def provider(self) -> None:
        made = await self.networks.create(self.admin, f"x{self.count}", False, True, ANEW)
        await self.subnets.create(self.admin, made.network.id, "", f"203.0.{self.count % 256}.0/24", ANEW)

    async def subnet(self) -> None:
        network = await self.ids("network", "NOT external")
        cidr = f"10.{self.rng.randrange(6)}.0.0/24"
        await self.subnets.create(self.member, network, "", cidr, ANEW, dhcp=self.rng.random() < 0.7)

    async def port(self) -> None:
        await self.ports.create(self.member, NewPort(await self.ids("network", "NOT external")), ANEW)

    async def boot(self) -> None:
        network, node = await self.ids("network", "NOT external"), self.rng.choice(self.nodes).id
        groups = None if self.rng.random() < 0.5 else (await self.ids("security_group"),)

        def make(tx: Tx) -> None:
            server = add_server(tx, self.member, f"web-{self.count}")
            make_port(tx, self.member, NewPort(network, server_id=server.id, made_for_server=True, group_ids=groups))
            port_store.bind(tx, server.id, node)

        await self.db.write(make)

    async def take(self) -> None:
        port, server = await self.ids("port", "purpose = ''"), await self.ids("server")

        def take(tx: Tx) -> None:
            take_port(tx, self.member, port, server, 1)
            bound = [p.node_id for p in port_store.of_server(tx, server)]
            port_store.bind(tx, server, next((n for n in bound if n), self.nodes[0].id))

        await self.db.write(take)

    async def move(self) -> None:
        server = await self.ids("server")
        node = self.rng.choice(["", *(n.id for n in self.nodes)])
        await self.db.write(lambda tx: port_store.bind(tx, server, node))

    async def release(self) -> None:
        server = await self.ids("server")

        def delete(tx: Tx) -> None:
            release_ports(tx, server)
            server_store.delete(tx, SERVERS.get(tx, server))

        await self.db.write(delete)

    async def rename(self) -> None:
        server = await self.ids("server")

        def rename(tx: Tx) -> None:
            SERVERS.update(tx, server, name=f"renamed-{self.count}")
            port_store.touch_server(tx, server)

        await self.db.write(rename)

    # ---- routers

    async def router(self) -> None:
        outside = await self.ids("network", "external") if self.rng.random() < 0.7 else ""
        await self.routers.create(self.member, f"r{self.count}", outside, True, ANEW)

    async def gateway(self) -> None:
        router, network = await self.ids("router"), await self.ids("network", "external")
        await self.routers.update(self.member, router, network)

    async def clear_gateway(self) -> None:
        await self.routers.update(self.member, await self.ids("router"), "")

    async def snat(self) -> None:
        await self.routers.update(self.member, await self.ids("router"), snat=self.rng.random() < 0.5)

    async def interface(self) -> None:
        await self.routers.add_interface(self.member, await self.ids("router"), await self.ids("subnet"))

    async def drop_interface(self) -> None:
        join = "id IN (SELECT subnet_id FROM address a JOIN port p ON p.id = a.port_id WHERE p.purpose = 'router_interface')"
        await self.routers.remove_interface(self.member, await self.ids("router"), await self.ids("subnet", join))

    async def route(self) -> None:
        hop = f"10.{self.rng.randrange(6)}.0.{self.rng.randrange(1, 20)}"
        routes = (HostRoute(f"172.16.{self.count % 256}.0/24", hop),) if self.rng.random() < 0.7 else ()
        await self.routers.update(self.member, await self.ids("router"), routes=routes)

    async def floating_ip(self) -> None:
        await self.floating_ips.create(self.member, await self.ids("network", "external"), ANEW)

    async def map(self) -> None:
        found, server = await self.ids("floating_ip"), await self.ids("server")
        if self.rng.random() < 0.2:
            await self.floating_ips.update(self.member, found)
        else:
            await self.floating_ips.update(self.member, found, server_id=server)

    # ---- groups

    async def group(self) -> None:
        await self.groups.create(self.member, f"g{self.count}", "", (), ANEW)

    async def rule(self) -> None:
        group, remote = await self.ids("security_group"), await self.ids("security_group")
        port = self.rng.randrange(1, 100)
        named = self.rng.random() < 0.6
        wanted = Rule("", group, "", True, False, "tcp", port, port, "", remote if named else "", "", 0.0)
        await self.groups.add_rule(self.member, wanted, ANEW)

    async def membership(self) -> None:
        port, group = await self.ids("port", "purpose IN ('', 'server')"), await self.ids("security_group")
        await self.ports.update(self.member, port, (group,))

    async def protect(self) -> None:
        port = await self.ids("port", "purpose = 'server'")
        await self.ports.update(self.member, port, port_security=self.rng.random() < 0.5)

    async def accounts(self) -> None:
        account = Account(f"u{self.count}", False, (), (KEY,))
        await self.groups.update(self.member, await self.ids("security_group"), (account,))

    async def dns(self) -> None:
        await self.subnets.update(self.member, await self.ids("subnet"), dns_servers=(f"10.0.0.{self.count % 250 + 1}",))

    # ---- the rack

    async def vtep(self) -> None:
        node = self.rng.choice(self.nodes)
        address = self.rng.choice(["", f"10.0.1.{self.rng.randrange(1, 250)}"])
        await self.db.write(lambda tx: set_agent(tx, node, address, "gateway" in node.roles))

    async def lose(self) -> None:
        node = self.rng.choice([n for n in self.nodes if "gateway" in n.roles])
        await self.db.write(lambda tx: set_agent(tx, node, "10.0.2.9", True, lost=True))

    async def place(self) -> None:
        await self.db.write(lambda tx: place_homeless(tx, -1.0))

    # ---- removing

    async def drop_rule(self) -> None:
        await self.groups.delete_rule(self.member, await self.ids("security_group_rule"))

    async def drop_group(self) -> None:
        await self.groups.delete(self.member, await self.ids("security_group"))

    async def drop_port(self) -> None:
        await self.ports.delete(self.member, await self.ids("port", "purpose = ''"))

    async def drop_subnet(self) -> None:
        await self.subnets.delete(self.member, await self.ids("subnet"))

    async def drop_network(self) -> None:
        await self.networks.delete(self.member, await self.ids("network", "NOT external"))

    async def drop_router(self) -> None:
        await self.routers.delete(self.member, await self.ids("router"))

    async def drop_floating_ip(self) -> None:
        await self.floating_ips.delete(self.member, await self.ids("floating_ip"))


class Sent:
    """What sessions of all nodes were sent, and would be sent next."""

    def __init__(self, cloud: Cloud, nodes: list[Any]) -> None:
        self.db, self.nodes = cloud.database, nodes
        self.compilation = Compilation(cloud.database, {"networkd": compile_network})
        self.compiled = {node.id: 0 for node in nodes}
        self.states: dict[str, State] = {}
        self.held: dict[str, dict[str, bytes]] = {node.id: {} for node in nodes}
        self.touched: set[str] = set()
        cloud.database.subscribe(self.touched.update)

    async def push(self) -> None:
        touched = self.touched.copy()
        self.touched.clear()
        for key in touched:
            if key.startswith(CARRIED):
                self.compilation.forget(key.removeprefix(CARRIED))
        asking = []
        for node in self.nodes:
            sent = self.states.get(node.id)
            if sent is None or node.id in touched or any(CARRIED + n in touched for n in sent.wires):
                asking.append(self._push(node, sent, sent is None or node.id in touched))
        await asyncio.gather(*asking)

    async def _push(self, node: Any, sent: State | None, touched: bool) -> None:
        self.compiled[node.id] += 1
        answer = await self.compilation.compile(Wanted(node, "networkd", sent, touched, b"" if sent is None else None))
        self.states[node.id] = answer.state
        if answer.message is not None:
            held = self.held[node.id]
            for key in answer.message.remove:
                del held[key]
            held.update((key_of(o), encode(o)) for o in answer.message.put)
            assert answer.message.hash == state_hash(held)


@pytest.mark.parametrize("seed", range(4))
async def test_what_was_sent_is_what_compiling_afresh_gives(
    cloud: Cloud, admin: Caller, member: Caller, clock, seed: int
) -> None:
    driver = Driver(cloud, random.Random(seed), admin, member)
    await driver.rack()
    for resource in ("networks", "subnets", "routers", "floating_ips", "security_groups"):
        await cloud.database.write(lambda tx, r=resource: quota.set_limit(tx, member.project_id, r, quota_domain.UNLIMITED))
    sent = Sent(cloud, driver.nodes)
    seen: set[str] = set()
    for number in range(160):
        clock.forward(1.0)
        name = await driver.step()
        await sent.push()
        fresh = await cloud.database.read(lambda tx: {node.id: bodies(tx, node.id) for node in driver.nodes})
        for node_id, state in fresh.items():
            held = sent.held[node_id]
            differs = {k for k in state.keys() | held.keys() if state.get(k) != held.get(k)}
            assert not differs, f"seed {seed}, operation {number} ({name}) missed a node: {sorted(differs)[:5]}"
            assert state_hash(state) == sent.states[node_id].hash()
        seen |= {key.partition("/")[0] for state in fresh.values() for key in state}
    assert seen == {"segment", "port", "neighbour", "group", "members", "router"}, driver.done


async def test_a_port_that_comes_costs_others_one_wire(cloud: Cloud, admin: Caller, member: Caller, monkeypatch) -> None:
    """However many nodes carry the network: it is compiled once for all, and of the rest only its own node's."""
    driver = Driver(cloud, random.Random(1), admin, member)
    await driver.rack()
    network = await driver.ids("network", "NOT external AND id IN (SELECT network_id FROM subnet)")

    async def boot(node: Any, name: str) -> None:
        def make(tx: Tx) -> None:
            server = add_server(tx, member, name)
            make_port(tx, member, NewPort(network, server_id=server.id, made_for_server=True))
            port_store.bind(tx, server.id, node.id)

        await cloud.database.write(make)

    nodes = [await cloud.database.write(lambda tx, n=n: add_node(tx, f"k{n}", f"10.0.1.{n}")) for n in range(20)]
    sent = Sent(cloud, nodes)
    for number, node in enumerate(nodes):
        await boot(node, f"first-{number}")
    await sent.push()
    made: list[str] = []
    for name in ("compile_wire", "compile_own"):
        real = getattr(compilation, name)
        monkeypatch.setattr(compilation, name, lambda *a, real=real, name=name: made.append(name) or real(*a))
    await boot(nodes[3], "another")
    await sent.push()
    assert sorted(made) == ["compile_own", "compile_wire"]
    assert all(any("another" in str(body) for body in held.values()) for held in sent.held.values())
