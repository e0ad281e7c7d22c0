"""Tenants at random: whatever they ask for in whatever order, no quota is exceeded, no address given twice, and no row points
at what is not there. When all is deleted nothing is left."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controllerd.domain.server import TRANSITIONAL
from controllerd.store import quota
from controllerd.store.database import Tx
from daemonkit.runtime import InlineThreads, Runtime
from tests.controllerd.api.rig import Api, furnish, public_api
from tests.controllerd.conftest import ManualClock

LIMITS = {
    "servers": 3, "vcpus": 3, "memory_mib": 1536, "volumes": 3, "volume_gib": 4, "networks": 3, "subnets": 4, "ports": 6,
    "routers": 2, "floating_ips": 3, "security_groups": 4, "security_group_rules": 14,
}  # fmt: skip
# Column -> tables of which one must have it as id. "" points at nothing, and may.
POINTERS = {
    "subnet.network_id": "network", "port.network_id": "network", "port.server_id": "server", "port.router_id": "router",
    "address.port_id": "port", "address.subnet_id": "subnet", "router.external_network_id": "network",
    "floating_ip.external_network_id": "network", "floating_ip.subnet_id": "subnet", "floating_ip.holder_port_id": "port",
    "floating_ip.port_id": "port", "floating_ip.router_id": "router", "security_group_rule.security_group_id": "security_group",
    "security_group_rule.remote_group_id": "security_group", "port_security_group.port_id": "port",
    "port_security_group.security_group_id": "security_group", "attachment.volume_id": "volume",
    "attachment.server_id": "server", "claim.server_id": "server", "claim.node_id": "node", "user_data.server_id": "server",
    "server.node_id": "node", "volume.node_id": "node", "port.node_id": "node", "router.node_id": "node",
    "agent_task.id": "task", "agent_task.node_id": "node", "tombstone.node_id": "node",
}  # fmt: skip
OWNED = ("server", "volume", "image", "flavor", "network", "subnet", "port", "router", "floating_ip", "security_group", "task")
VERBS = ("StartServer", "StopServer", "RebootServer", "DeleteServer")
NOUNS = {"server": "Server", "volume": "Volume", "port": "Port", "floating_ip": "FloatingIp", "router": "Router",
         "subnet": "Subnet", "network": "Network", "security_group": "SecurityGroup"}  # fmt: skip

Act = tuple[int, int, int, bool]


class Tenants:
    """Alpha and beta, who know all ids of each other's."""

    def __init__(self, api: Api) -> None:
        self.api = api
        nouns = (*NOUNS, "flavor", "image", "external_network")
        self.known = {
            "alpha/member": {noun: [api.ids[noun]] for noun in nouns},
            "beta/member": {noun: [api.ids[f"beta/{noun}"]] for noun in nouns},
        }

    def some(self, who: str, noun: str, number: int) -> str:
        """Mostly the newer ones of one's own; at times another's."""
        if number % 8 == 7:
            who = "beta/member" if who == "alpha/member" else "alpha/member"
        return self.known[who][noun][-1 - number % min(3, len(self.known[who][noun]))]

    def calls(self, who: str, a: int, b: int) -> list[tuple[str, dict[str, Any]]]:
        """Everything that may be asked for; `a` and `b` choose what of."""
        it = {noun: self.some(who, noun, a) for noun in self.known[who]}
        other = {noun: self.some(who, noun, b) for noun in self.known[who]}
        out, net = it["external_network"], {"networks": [{"network_id": other["network"]}]}
        machine = {"name": "s", "flavor_id": it["flavor"], "image_id": it["image"], **net}
        group = {"security_group_id": it["security_group"]}
        groups = {"security_group_ids": [other["security_group"]], "replace_security_groups": True}
        ingress = {"direction": 1, "protocol": "tcp", "port_min": b % 65535 + 1, "remote_group_id": other["security_group"]}
        return [
            ("CreateServer", machine), ("CreateServer", machine | {"networks": [{"port_id": other["port"]}]}),
            ("CreateServer", machine | {"volume_ids": [other["volume"]], "security_group_ids": [other["security_group"]]}),
            *((verb, {"server_id": it["server"]}) for verb in VERBS), ("CreateVolume", {"name": "v", "size_gib": b % 5}),
            ("AttachVolume", {"server_id": it["server"], "volume_id": other["volume"]}),
            ("DetachVolume", {"server_id": it["server"], "volume_id": other["volume"]}), ("CreateNetwork", {"name": "n"}),
            ("CreateSubnet", {"network_id": it["network"], "cidr": f"10.{b % 4}.{a % 2 * 8}.0/29"}),
            ("CreatePort", {"network_id": it["network"], "security_group_ids": [other["security_group"]][: a % 2]}),
            ("CreatePort", {"network_id": it["network"], "fixed_ips": [{"ip": f"10.{a % 3}.0.{b % 9}"}]}),
            ("CreateRouter", {"name": "r", "external_network_id": out}),
            ("UpdateRouter", {"router_id": it["router"], "external_network_id": out if b % 2 else ""}),
            ("AddRouterInterface", {"router_id": it["router"], "subnet_id": other["subnet"]}),
            ("RemoveRouterInterface", {"router_id": it["router"], "subnet_id": other["subnet"]}),
            ("CreateFloatingIp", {"external_network_id": out, "server_id": other["server"]}),
            ("UpdateFloatingIp", {"floating_ip_id": it["floating_ip"], "port_id": other["port"] if b % 3 else ""}),
            ("CreateSecurityGroup", {"name": "g"}), ("CreateSecurityGroupRule", ingress | group),
            ("UpdatePort", groups | {"port_id": it["port"]}),
            *((f"Delete{name}", {f"{noun}_id": it[noun]}) for noun, name in NOUNS.items()),
        ]  # fmt: skip

    async def act(self, act: Act) -> None:
        which, a, b, goes_on = act
        who = ("alpha/member", "beta/member")[(a ^ b) & 1]
        calls = self.calls(who, a >> 1, b >> 1)
        name, fields = calls[which % len(calls)]
        answer = await self.api.call(name, who, **fields)
        assert answer.code.name not in ("INTERNAL", "UNKNOWN"), (name, fields, answer)
        noun = next((noun for noun, title in NOUNS.items() if name == f"Create{title}"), "")
        if answer.ok and noun and answer.sent is not None:
            self.known[who][noun].append(answer.sent.id)  # type: ignore[attr-defined]
        if goes_on:
            await self.api.world.run()

    def all(self, noun: str) -> list[str]:
        return [item for known in self.known.values() for item in known[noun]]

    async def delete_all(self) -> None:
        """As often as one thing is in the way of another."""
        for _ in range(3):
            for noun, name in NOUNS.items():
                for item in self.all(noun):
                    await self._unlink(noun, item)
                    await self.api.call(f"Delete{name}", "admin", **{f"{noun}_id": item})
            await self.api.world.run()

    async def _unlink(self, noun: str, item: str) -> None:
        if noun == "router":
            for subnet in self.all("subnet"):
                await self.api.call("RemoveRouterInterface", "admin", router_id=item, subnet_id=subnet)


def broken(tx: Tx) -> list[str]:
    """What does not hold."""
    found = list(_pointers(tx))
    for project in ("id-alpha", "id-beta"):
        used, limits = quota.used(tx, project), quota.limits(tx, project)
        found += [f"{project} {resource}: {used[resource]}" for resource in LIMITS if used[resource] > limits[resource]]
    found += [f"address {r}" for r in tx.all("SELECT s.network_id, ip FROM address JOIN subnet s ON s.id = subnet_id"
                                             " GROUP BY s.network_id, ip HAVING count(*) > 1")]  # fmt: skip
    found += [f"port without address {r}" for r in tx.all("SELECT id FROM port WHERE id NOT IN (SELECT port_id FROM address)")]
    states = ", ".join(repr(s) for s in TRANSITIONAL)
    idle = "NOT EXISTS (SELECT 1 FROM task t WHERE t.resource_id = server.id AND t.state IN ('RUNNING', 'UNWINDING'))"
    found += [f"nobody works on {r}" for r in tx.all(f"SELECT id, state FROM server WHERE state IN ({states}) AND {idle}")]
    twice = "SELECT resource_id FROM task WHERE state IN ('RUNNING', 'UNWINDING') GROUP BY resource_id HAVING count(*) > 1"
    return found + [f"two tasks {r}" for r in tx.all(twice)]


def _pointers(tx: Tx) -> Iterable[str]:
    pointers = POINTERS | {f"{table}.project_id": "project" for table in OWNED}
    for column, target in pointers.items():
        table, name = column.split(".")
        sql = f"SELECT {name} AS lost FROM {table} WHERE {name} != '' AND {name} NOT IN (SELECT id FROM {target})"
        yield from (f"{column} {row['lost']}" for row in tx.all(sql))


async def play(acts: list[Act], path: Path) -> None:
    runtime = Runtime(ManualClock(), random.Random(1), lambda _name, _workers: InlineThreads())
    async with public_api(path, runtime) as api:
        await furnish(api)
        for project in ("id-alpha", "id-beta"):
            await api.make("UpdateQuota", "admin", project_id=project, limits=LIMITS)
        tenants, database = Tenants(api), api.controller.database
        for number, act in enumerate(acts):
            await tenants.act(act)
            assert not await database.read(broken), acts[: number + 1]
        await tenants.delete_all()
        assert not await database.read(broken)
        assert not await api.world.leftovers()
        rows = await api.rows()
        left = {noun: rows[noun] for noun in (*NOUNS, "attachment") if rows[noun]}
        # the provider's network, and the default groups that a project keeps
        assert left.pop("network") == 1 and left.pop("subnet") == 1 and left.pop("security_group", 0) <= 2 and not left, left


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 63), st.integers(0, 63), st.booleans()), min_size=30, max_size=60))
def test_tenants_at_random(acts: list[Act]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(play(acts, Path(directory)))
