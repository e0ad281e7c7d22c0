"""The board of nodes that the store keeps in memory: it is what the rows say whatever is undone, and reads little."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from typing import Any

import pytest

from controllerd.domain.placement import Ratios
from controllerd.scheduler.stock import Stock
from controllerd.store import claim, tombstone
from controllerd.store.database import Database, Tx
from tests.controllerd.server.rig import Rig


class Undone(Exception):
    pass


def scribble(tx: Tx, rng: random.Random) -> None:
    """Some write of some kind to some node's rows, by SQL of any form."""
    node, server = f"n{rng.randrange(8)}", f"s{rng.randrange(12)}"
    inventory = {
        "compute": {"vcpus": rng.randrange(9), "memory_mib": "64", "disk_gib": "9", "images_cached": [rng.choice("ab")]}
    }
    statements: list[tuple[str, tuple[Any, ...]]] = [
        ("INSERT OR REPLACE INTO claim VALUES (?, ?, 1, ?, 1, 0)", (server, node, rng.randrange(9))),
        ("DELETE FROM claim WHERE node_id = ?", (node,)),
        ("UPDATE claim SET node_id = ? WHERE server_id = ?", (node, server)),
        ("INSERT OR IGNORE INTO tombstone VALUES (?, 'server', ?, 1, 1, 1, 0)", (node, server)),
        ("DELETE FROM tombstone WHERE object_id = ?", (server,)),
        ("INSERT OR REPLACE INTO agent VALUES (?, ?, ?, 0, ?, '', '', ?)",
         (node, rng.choice(["computed", "networkd"]), rng.randrange(2), rng.randrange(2), json.dumps(inventory))),
        ("UPDATE agent SET connected = 0", ()),
        ("UPDATE node SET enabled = NOT enabled WHERE id = ?", (node,)),
        ("INSERT OR IGNORE INTO node VALUES (?1, ?1, '[\"compute\", \"edge\"]', 1, '', 0)", (node,)),
        ("DELETE FROM node WHERE id = ? AND id NOT IN (SELECT node_id FROM agent)", (node,)),
    ]  # fmt: skip
    sql, values = rng.choice(statements)
    with suppress(Exception):
        tx.run(sql, *values)


def look(tx: Tx) -> None:
    board = claim.board(tx, lambda: Stock(Ratios()))
    assert sorted(board, key=lambda c: c.name) == claim.candidates(tx)


@pytest.mark.parametrize("seed", range(6))
async def test_the_board_is_what_the_rows_say_whatever_is_undone(database: Database, seed: int) -> None:
    rng = random.Random(seed)

    def live(tx: Tx) -> None:
        for _ in range(rng.randrange(6)):
            with suppress(Undone), tx.savepoint():
                for _ in range(rng.randrange(4)):
                    scribble(tx, rng)
                    if rng.random() < 0.4:
                        look(tx)
                if rng.random() < 0.4:
                    raise Undone
            if rng.random() < 0.4:
                look(tx)
        if rng.random() < 0.3:
            raise Undone

    for _ in range(60):
        with suppress(Undone):
            await database.write(live)
        if rng.random() < 0.15:  # a whole group that is not committed
            await database.write(lambda tx: tx.connection.execute("SELECT 1"))
            writer = database._writer._db
            writer.execute("BEGIN IMMEDIATE")
            tx = Tx(writer, 0.0, 1, database._runtime)
            scribble(tx, rng)
            look(tx)
            writer.execute("ROLLBACK")
    await database.write(look)


async def test_a_placement_reads_only_nodes_that_were_written_to(rig: Rig, tenant: Any) -> None:
    flavor, image = await rig.equip(tenant, nodes=30, memory_mib=64)
    for _ in range(2):  # what the board was first filled with is read once more when that transaction has ended
        await rig.create(tenant, flavor, image)
        await rig.run()
    asked: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        read = claim.candidates
        patch.setattr(claim, "candidates", lambda tx, ids=None: asked.append(30 if ids is None else len(ids)) or read(tx, ids))
        for _ in range(5):
            await rig.create(tenant, flavor, image)
            await rig.advance()
    assert asked and max(asked) <= 1


async def test_no_more_is_claimed_than_there_is(rig: Rig, tenant: Any) -> None:
    """Also where whoever chose the node was wrong about it."""
    flavor, image = await rig.equip(tenant, nodes=1, memory_mib=1000)
    for _ in range(4):
        await rig.create(tenant, flavor, image)
    await rig.run()
    node_id = next(iter(rig.nodes))
    created = await rig.create(tenant, flavor, image)

    def claim_fifth(tx: Tx) -> tuple[bool, bool]:
        refused = claim.hold(tx, created.server, node_id, Ratios())
        tx.run("DELETE FROM claim WHERE server_id = (SELECT min(server_id) FROM claim)")
        tombstone.put(tx, node_id, "server", "gone")
        tx.run("UPDATE tombstone SET memory_mib = 1000")
        return refused, claim.hold(tx, created.server, node_id, Ratios())

    assert await rig.database.write(claim_fifth) == (False, False)
    await rig.database.write(lambda tx: tx.run("DELETE FROM tombstone"))
    assert await rig.database.write(lambda tx: claim.hold(tx, created.server, node_id, Ratios()))
    assert await rig.database.write(lambda tx: claim.hold(tx, created.server, node_id, Ratios()))  # twice is once
