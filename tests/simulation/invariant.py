"""What must hold at every moment, and what when all is well again. A breach is an AssertionError that says what was found."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import suppress
from typing import Any

from computed.spec import DomainState
from controllerd.store import quota
from controllerd.store.database import Tx
from controllerd.store.digest import digest
from daemonkit.errors import SkyrackError, Unavailable
from skyrack.testing.seat import Seat
from tests.simulation.population import Population
from tests.simulation.world import World
from tests.torture.history import End, Event, judge

RATIOS = {"vcpus": 4.0, "memory_mib": 1.0, "disk_gib": 1.0}  # as the controllers are configured
USAGE_WITHIN_S = 120.0  # an acknowledgement that was lost costs 15 s
ALIKE_WITHIN_S = 30.0
COUNTED = ("servers", "vcpus", "memory_mib", "volumes", "volume_gib", "floating_ips", "ports")
TRANSITIONAL = ("BUILD", "STARTING", "STOPPING", "REBOOTING", "DELETING", "CREATING")
ROWS = ("server", "volume", "floating_ip", "keypair")  # what clients make


class Watch:
    """Looks at the world again and again; remembers what may only rise."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._epochs: dict[str, int] = {}
        self._led = ""
        self._seen = (0, 0)

    async def look(self) -> None:
        self._one_leads()
        self._epochs_rise()
        self._a_server_runs_once()
        self._controllers_live()
        await self._stored()

    def _one_leads(self) -> None:
        """Also one that is stopped may believe so for as long as its lease lasts, and no longer."""
        believing = [name for name, process in self._world.controllers.items() if process.alive and _believes(process.seat)]
        assert len(believing) < 2, f"{' and '.join(believing)} lead at the same time"
        led = believing[0] if believing else ""
        if led != self._led:
            self._world.note(led or self._led, "LEADS" if led else "leads no more")
            self._led = led

    def _epochs_rise(self) -> None:
        for daemon, session in self._world.rack.sessions.items():
            epoch = session.mirror.epoch
            before = self._epochs.setdefault(daemon, epoch)
            assert epoch >= before or epoch == 0, f"{daemon} obeys epoch {epoch} after {before}"
            self._epochs[daemon] = max(epoch, before)

    def _a_server_runs_once(self) -> None:
        running = Counter(
            server_id
            for machine in self._world.rack.machines.values()
            for server_id, domain in machine.domains.items()
            if domain.state is not DomainState.SHUTOFF
        )
        twice = [server_id for server_id, count in running.items() if count > 1]
        assert not twice, f"servers run on two nodes: {twice}"

    def _controllers_live(self) -> None:
        for name, process in self._world.controllers.items():
            assert process.died is None, f"{name} died of {process.died!r}"

    async def _stored(self) -> None:
        """What is stored, whenever there is something new."""
        leader = self._world.leader
        if leader is None or leader.seat.controller is None:
            return
        database = leader.seat.controller.database
        if self._seen == (database.epoch, database.seq):
            return
        self._seen = (database.epoch, database.seq)
        with suppress(SkyrackError):
            await leader.ask(lambda controller: controller.database.read(_sound))


def _believes(seat: Seat) -> bool:
    if seat.controller is None:
        return False
    try:
        seat.commit_log.assert_leading()
    except Unavailable:
        return False
    return True


_CLAIMED = (
    "SELECT n.name, a.inventory, sum(c.vcpus) AS vcpus, sum(c.memory_mib) AS memory_mib, sum(c.disk_gib) AS disk_gib"
    " FROM claim c JOIN node n ON n.id = c.node_id JOIN agent a ON a.node_id = n.id AND a.kind = 'computed' GROUP BY n.id"
)


def _sound(tx: Tx) -> None:
    """Claims fit on their nodes; no project has more than it may have."""
    for node in tx.all(_CLAIMED):
        there = json.loads(node["inventory"]).get("compute", {})
        for resource, ratio in RATIOS.items():
            capacity = int(there.get(resource, 0)) * ratio
            assert node[resource] <= capacity, f"{resource} of {node['name']}: {node[resource]} claimed of {capacity}"
    for row in tx.all("SELECT DISTINCT project_id AS id FROM server UNION SELECT DISTINCT project_id FROM volume"):
        used, limits = quota.used(tx, row["id"], *COUNTED), quota.limits(tx, row["id"])
        over = {name: count for name, count in used.items() if limits[name] >= 0 and count > limits[name]}
        assert not over, f"project {row['id']} is over its quota: {over}"


# ---- when all is well again


async def unsettled(world: World) -> list[str]:
    """What still moves; nothing when all has come to rest."""
    leader = world.leader
    if leader is None:
        return ["nobody leads"]
    try:
        moving: list[str] = await leader.ask(lambda controller: controller.database.read(_moving))
    except SkyrackError as error:
        return [error.message]
    return moving + _differences(world, await _rows(world))


def _moving(tx: Tx) -> list[str]:
    states = ", ".join(f"'{state}'" for state in TRANSITIONAL)
    asked = {
        "task": "SELECT id || ' ' || kind || ' ' || state FROM task WHERE state IN ('RUNNING', 'UNWINDING')",
        "server": f"SELECT id || ' ' || state FROM server WHERE state IN ({states})",
        "volume": f"SELECT id || ' ' || state FROM volume WHERE state IN ({states})",
        "attachment": "SELECT id || ' ' || state FROM attachment WHERE state != 'ATTACHED'",
        "tombstone": "SELECT kind || ' ' || object_id FROM tombstone",
        "agent task": "SELECT id FROM agent_task WHERE ended = 0",
        "agent": "SELECT node_id || ' ' || kind FROM agent WHERE NOT connected OR lost",
    }
    return [f"{what} {row}" for what, sql in asked.items() for row in (tx.value(sql),) if row is not None]


async def _rows(world: World) -> dict[str, Any]:
    def read(tx: Tx) -> dict[str, Any]:
        nodes = {row["id"]: row["name"] for row in tx.all("SELECT id, name FROM node")}
        return {
            "servers": {r["id"]: {**r, "node": nodes.get(r["node_id"], "")} for r in tx.all("SELECT * FROM server")},
            "volumes": {r["id"]: {**r, "node": nodes.get(r["node_id"], "")} for r in tx.all("SELECT * FROM volume")},
            "exports": {r["export_name"] for r in tx.all("SELECT export_name FROM attachment WHERE exported")},
            "claims": {r["server_id"]: nodes[r["node_id"]] for r in tx.all("SELECT * FROM claim")},
            "ports": [{**r, "node": nodes.get(r["node_id"], "")} for r in tx.all("SELECT * FROM port")],
        }

    return await world.controller.database.read(read)


def _differences(world: World, rows: dict[str, Any]) -> list[str]:
    """Between what is stored and what is there; both ways, so that nothing is orphaned."""
    rack, found = world.rack, []
    placed = {i: s for i, s in rows["servers"].items() if s["node"] and s["power"]}
    for name, machine in rack.machines.items():
        here = {i for i, s in placed.items() if s["node"] == name}
        found += [f"domain {i} on {name}, and no server" for i in machine.domains.keys() - here]
        found += [f"disk of {i} on {name}, and no server" for i in machine.root_disks - here]
        for i in here & machine.domains.keys():
            runs, should = machine.domains[i].state is not DomainState.SHUTOFF, placed[i]["state"] == "ACTIVE"
            if runs != should and placed[i]["state"] in ("ACTIVE", "STOPPED"):
                found.append(f"server {i} is {placed[i]['state']}, its domain {machine.domains[i].state.name}")
    found += [f"server {i} is {s['state']} on {s['node']}, and has no domain" for i, s in placed.items()
              if s["state"] in ("ACTIVE", "STOPPED") and i not in rack.machines[s["node"]].domains]  # fmt: skip
    for name, volumes in rack.volumes.items():
        here = {i for i, v in rows["volumes"].items() if v["node"] == name and not v["absent"]}
        found += [f"volume {i} on {name}, and nobody's" for i in volumes.sizes.keys() - here]
        found += [f"volume {i} is not on {name}" for i in here - volumes.sizes.keys() if rows["volumes"][i]["state"] != "ERROR"]
    exports = {export.name for v in rack.volumes.values() for tags in v.exports.values() for export in tags.values()}
    found += [f"export {name} differs" for name in exports ^ rows["exports"]]
    found += _of_claims(rows) + _of_ports(world, rows)
    return sorted(found)


def _of_claims(rows: dict[str, Any]) -> list[str]:
    servers, claims = rows["servers"], rows["claims"]
    orphans = [f"claim of {i} on {node}" for i, node in claims.items() if servers.get(i, {}).get("node") != node]
    return orphans + [f"server {i} has no claim" for i, s in servers.items() if s["state"] == "ACTIVE" and i not in claims]


def _of_ports(world: World, rows: dict[str, Any]) -> list[str]:
    """Those of servers, on the compute nodes."""
    found = []
    wanted = {p["id"]: p["node"] for p in rows["ports"] if p["purpose"] == "server" and p["node"]}
    for port in rows["ports"]:
        if port["purpose"] == "server" and port["server_id"] not in rows["servers"]:
            found.append(f"port {port['id']} of a server that is gone")
    for name, networkd in world.rack.networkds.items():
        there = set(networkd.reconciler.desired.ports)
        found += [f"port {i} on {name}, and not wanted there" for i in there if i in wanted and wanted[i] != name]
        found += [f"port {i} is not on {name}" for i, node in wanted.items() if node == name and i not in there]
    return found


async def final(world: World, population: Population) -> None:
    """Acknowledged is kept, done once, in order; usage is exact; the copies are the same."""
    await _usage_is_exact(world)

    def read(tx: Tx) -> tuple[list[Event], dict[str, list[str]]]:
        sql = "SELECT seq, kind, resource_kind, resource_id, message FROM event ORDER BY seq"
        rows = [row for row in tx.all(sql) if row["resource_kind"] in ROWS]
        events = [Event(r["seq"], r["kind"], r["resource_id"], _name_of(r)) for r in rows]
        return events, {kind: [r["name"] for r in tx.all(_alive(kind))] for kind in ROWS}

    events, alive = await world.controller.database.read(read)
    verdict = judge(population.operations, End(events, alive, await copies(world)))
    assert verdict.good, "\n".join([*verdict.lost, *verdict.doubled, *verdict.reordered, *verdict.diverged])
    _no_more_than_asked(population, alive)


async def _usage_is_exact(world: World) -> None:
    """At some moment at which nothing is under way: samples go on coming."""
    until_s = world.now_s + USAGE_WITHIN_S
    while wrong := await world.controller.database.read(lambda tx: _miscounted(world, tx)):
        assert world.now_s < until_s, f"usage is not exact: {wrong}"
        await asyncio.sleep(0.1)


def _miscounted(world: World, tx: Tx) -> list[str]:
    """A server that was taken back before it was launched used nothing that anybody pays for."""
    sql = (
        "SELECT s.id, coalesce(c.cpu_ns, 0) AS cpu_ns FROM server s LEFT JOIN usage_counter c ON c.server_id = s.id"
        " WHERE s.node_id != ''"
    )
    both = [(row["id"], row["cpu_ns"], world.samples.total(row["id"]).cpu_ns) for row in tx.all(sql)]
    return [f"server {i}: {found} ns of CPU are counted of {used}" for i, found, used in both if found != used]


def _name_of(row: dict[str, Any]) -> str:
    return str(row["resource_id"] if row["kind"].startswith("floating_ip") else row["message"])


def _alive(kind: str) -> str:
    return f"SELECT {'id' if kind == 'floating_ip' else 'name'} AS name FROM {kind}"


def _no_more_than_asked(population: Population, alive: dict[str, list[str]]) -> None:
    """What is there beyond what was acknowledged is what nobody knows the outcome of."""
    for kind, names in alive.items():
        known = {o.name for o in population.operations if o.kind == kind and o.outcome == "done"}
        unknown = [o for o in population.operations if o.kind == kind and o.outcome == "unknown"]
        extra = [name for name in names if name not in known]
        assert len(extra) <= len(unknown), f"{kind}: {extra} are there, and only {len(unknown)} are in doubt"


async def copies(world: World) -> dict[str, str]:
    """Controller -> digest of its copy, at a moment at which all have the same entries."""
    if len(world.controllers) == 1:
        return {}
    seats = {name: process.seat for name, process in world.controllers.items()}
    until_s = world.now_s + ALIKE_WITHIN_S
    while len({seat.terms.applied_seq for seat in seats.values()}) > 1:
        assert world.now_s < until_s, f"{[(n, s.terms.applied_seq) for n, s in seats.items()]}: a copy stays behind"
        await asyncio.sleep(0.01)
    return {name: await _digest(seat) for name, seat in seats.items()}


async def _digest(seat: Seat) -> str:
    if seat.controller is not None:
        return await seat.controller.database.read(lambda tx: digest(tx.connection))
    return await seat.terms._replica.digest()


def bare(world: World) -> None:
    """When every server and volume has been deleted, nothing is left of them."""
    for name, machine in world.rack.machines.items():
        left = [*machine.domains, *machine.root_disks, *machine.config_drives]
        assert not left, f"left on {name}: {left}"
    for name, volumes in world.rack.volumes.items():
        assert not volumes.sizes, f"left on {name}: {list(volumes.sizes)}"
        assert not any(volumes.exports.values()), f"still served by {name}: {volumes.exports}"
    for name, networkd in world.rack.networkds.items():
        assert not networkd.reconciler.desired.ports, f"ports left on {name}"
