"""What store and nodes do not agree on: found, with its owner and its age, and gone when it is mended."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from controllerd.domain.difference import Difference
from controllerd.reconcilers.verify import DIFFERENCES, PASS_INTERVAL_S, Verify
from controllerd.store import difference
from controllerd.store.database import Database, Tx
from daemonkit.errors import Unavailable
from daemonkit.runtime import Runtime
from tests.controllerd.cluster.house import House, house, in_virtual_time, until

SERVERS = 10_000
PASS_MAX_S = 5.0  # a hang limit: it takes some 0.1 s


async def by_kind(h: House) -> dict[str, Difference]:
    return {item.kind: item for item in (await h.verify.compare()).differences}


def test_a_quiet_cloud_agrees_and_a_working_one_names_its_tasks(tmp_path: Path) -> None:
    async def tell() -> None:
        async with house(tmp_path) as h:
            await h.launch("web", await h.volume("data"))
            await asyncio.sleep(10)
            assert await by_kind(h) == {}
            server_id = await h.order("late")
            await asyncio.sleep(0.05)
            found = await by_kind(h)
            tasks = await h.rows("SELECT id FROM task WHERE resource_id = ?", server_id)
            assert {item.owner for item in found.values()} == {tasks[0]["id"]} and "server_differs" in found
            await h.reach(server_id, "ACTIVE")
            await asyncio.sleep(10)
            assert await by_kind(h) == {}

    in_virtual_time(tell)


def test_what_changes_behind_our_back_is_found(tmp_path: Path) -> None:
    async def tell() -> None:
        async with house(tmp_path) as h:
            data = await h.volume("data")
            web = await h.launch("web", data)
            node = (await h.server(web)).node_name
            machine = h.rack.machines[node]
            machine.domains["00000000-0000-4000-8000-000000000001"] = machine.domains[web]  # of nobody
            machine.fail("start", Unavailable("no"), 10_000)
            machine.power_cycle()
            await asyncio.sleep(120)
            found = await by_kind(h)
            assert found["foreign_server"].resource_id.startswith("00000000") and found["foreign_server"].node == node
            assert (found["foreign_server"].owner, found["server_differs"].owner) == ("operator", "computed")
            assert "shall be running" in found["server_differs"].message
            since = found["server_differs"].since
            await asyncio.sleep(120)
            assert (await by_kind(h))["server_differs"].since == since  # it grows old
            assert DIFFERENCES.labels("foreign_server")._value.get() == 1
            await h.kill()
            await h.start()

            async def again() -> bool:
                return "foreign_server" in await by_kind(h)

            await until(again, "the report")
            del machine.domains["00000000-0000-4000-8000-000000000001"]
            await asyncio.sleep(120)
            assert "foreign_server" not in await by_kind(h)
            assert DIFFERENCES.labels("foreign_server")._value.get() == 0

    in_virtual_time(tell)


def test_a_lost_node_is_one_difference(tmp_path: Path) -> None:
    async def tell() -> None:
        async with house(tmp_path) as h:
            web = await h.launch("web")
            node = (await h.server(web)).node_name
            h.rack.link(node).cut()
            await h.reach(web, "UNKNOWN")
            assert [(d.kind, d.node, d.owner) for d in (await h.verify.compare()).differences] == [
                ("node_lost", node, "operator")
            ]
            await h.controller.servers.delete(h.ann, web)
            await asyncio.sleep(30)
            found = await by_kind(h)
            assert set(found) == {"node_lost", "not_removed"} and found["not_removed"].owner == "computed"
            h.rack.link(node).mend()
            await asyncio.sleep(30)
            assert await by_kind(h) == {}

    in_virtual_time(tell)


def test_it_looks_by_itself(tmp_path: Path) -> None:
    async def tell() -> None:
        async with house(tmp_path) as h:
            await h.controller.database.write(
                lambda tx: tx.run("INSERT INTO claim (server_id, node_id, vcpus, memory_mib, disk_gib, created_at)"
                                  " VALUES ('s', 'n', 1, 1, 1, 1)")
            )  # fmt: skip
            await asyncio.sleep(PASS_INTERVAL_S + 5)
            assert DIFFERENCES.labels("orphan_claim")._value.get() == 1
            assert (await by_kind(h))["orphan_claim"].owner == "orphan_claim"

    in_virtual_time(tell)


async def test_a_pass_over_ten_thousand_servers_is_short(database: Database, runtime: Runtime) -> None:
    await database.write(_fill)
    began_s = time.monotonic()
    found = await Verify(database, runtime).compare()
    assert time.monotonic() - began_s < PASS_MAX_S
    assert [d.kind for d in found.differences].count("server_differs") == SERVERS // 1000


def _fill(tx: Tx) -> None:
    """Every thousandth server is not as it shall be."""
    _put(tx, "node", id="n", name="k1", roles="[]")
    for kind in ("computed", "networkd"):
        _put(tx, "agent", node_id="n", kind=kind, inventory="{}", lost=0)
    _put(tx, "network", id="w", name="w")
    for number in range(SERVERS):
        seen = "RUNNING" if number % 1000 else "STOPPED"
        server = {"id": f"s{number}", "node_id": "n", "state": "ACTIVE", "power": "RUNNING", "observed_state": seen}
        _put(tx, "server", **server)
        if number % 10 == 0:
            _put(tx, "attachment", id=f"a{number}", volume_id=f"v{number}", server_id=f"s{number}", connected=0, exported=0)
        _put(tx, "claim", server_id=f"s{number}", node_id="n")
        port = {"id": f"p{number}", "mac": str(number), "network_id": "w", "server_id": f"s{number}", "node_id": "n"}
        _put(tx, "port", **port, purpose="server", observed_state="READY")


_COLUMNS: dict[str, dict[str, str | int]] = {}


def _put(tx: Tx, table: str, **values: str | int) -> None:
    """What is not given is 1 or empty."""
    if table not in _COLUMNS:
        rows = tx.each("SELECT name, type FROM pragma_table_info(?)", table)
        _COLUMNS[table] = {row["name"]: "" if row["type"] == "TEXT" else 1 for row in rows}
    row = _COLUMNS[table] | values
    tx.run(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", *row.values())


def test_every_query_has_a_kind_of_its_own() -> None:
    kinds = [query.kind for query in difference._QUERIES]
    assert len(kinds) == len(set(kinds))
