"""What must hold for ever: lost nodes are seen, orphans freed, stuck states ended, old things forgotten."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from controllerd.domain.policy import Caller
from controllerd.reconcilers import expiry, stuck_state
from controllerd.reconcilers.lost_node import LostNodes, give_up
from controllerd.reconcilers.orphan_claim import OrphanClaims
from controllerd.reconcilers.stuck_state import StuckStates
from controllerd.store import claim, event, idempotency, node
from controllerd.store.database import Tx
from controllerd.store.server import SERVERS
from daemonkit.runtime import system_runtime
from tests.controllerd.server.rig import AGENTS, Rig

HANG_S = 20.0


async def until(rig: Rig, sql: str) -> None:
    async with asyncio.timeout(HANG_S):
        while not await rig.rows(sql):  # noqa: ASYNC110 - the reconciler tells nobody
            await asyncio.sleep(0.01)


async def stop(job: asyncio.Task[None]) -> None:
    job.cancel()
    with suppress(asyncio.CancelledError):
        await job


async def test_an_agent_is_given_up_after_its_grace_only(rig: Rig, tenant: Caller) -> None:
    flavor, image = await rig.equip(tenant, nodes=2)
    view = await rig.create(tenant, flavor, image)
    await rig.run()
    node_id = (await rig.server(view.server.id)).node_id
    await rig.database.write(lambda tx: node.disconnected(tx, node_id, "computed"))
    rig.clock.forward(7.9)
    assert await rig.database.write(lambda tx: give_up(tx, 8.0)) == []
    rig.clock.forward(0.1)
    rig.touched.clear()
    assert await rig.database.write(lambda tx: give_up(tx, 8.0)) == [(node_id, "computed")]
    assert await rig.database.write(lambda tx: give_up(tx, 8.0)) == []
    assert {node_id, view.server.id} <= rig.touched  # tasks that wait for it, and its session, look again
    assert (await rig.servers.get(tenant, view.server.id)).state == "UNKNOWN"
    assert (await rig.server(view.server.id)).state == "ACTIVE"  # it may well be running
    [told] = await rig.rows("SELECT project_id, message FROM event WHERE kind = 'node.lost'")
    assert told["project_id"] == ""
    await rig.find_again(rig.nodes[node_id])
    assert (await rig.servers.get(tenant, view.server.id)).state == "ACTIVE"


async def test_the_loop_sees_it_in_time(rig: Rig, tenant: Caller) -> None:
    """With the real clock: an agent leaves, and its grace of 0.3 s ends."""
    await rig.equip(tenant, nodes=1)
    [scripted] = rig.nodes.values()
    runtime = system_runtime()
    rig.clock.now_s = runtime.clock.wall_s()
    lost_nodes = LostNodes(rig.database, rig.runtime, 0.3)
    rig.database.subscribe(lost_nodes.notice)
    job = asyncio.create_task(lost_nodes.run())
    try:
        await asyncio.sleep(0.05)
        for kind in AGENTS:
            await rig.database.write(lambda tx, kind=kind: node.disconnected(tx, scripted.node.id, kind))
        await asyncio.sleep(0.05)
        assert not await rig.rows("SELECT * FROM agent WHERE lost")
        rig.clock.forward(0.3)
        await until(rig, "SELECT * FROM agent WHERE lost")
        assert len(await rig.rows("SELECT * FROM agent WHERE lost")) == len(AGENTS)
    finally:
        await stop(job)


async def test_orphan_claims_are_freed(rig: Rig, tenant: Caller) -> None:
    flavor, image = await rig.equip(tenant)
    view = await rig.create(tenant, flavor, image)
    await rig.run()
    await rig.database.write(lambda tx: tx.run("INSERT INTO claim VALUES ('ghost', 'n', 1, 1, 1, 0)"))
    job = asyncio.create_task(OrphanClaims(rig.database).run())
    try:
        await until(rig, "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM claim WHERE server_id = 'ghost')")
    finally:
        await stop(job)
    assert [row["server_id"] for row in await rig.rows("SELECT server_id FROM claim")] == [view.server.id]
    assert await rig.database.write(claim.release_orphans) == []


async def test_stuck_states_become_error_and_can_be_deleted(rig: Rig, tenant: Caller) -> None:
    flavor, image = await rig.equip(tenant)
    views = [await rig.create(tenant, flavor, image, f"s{n}") for n in range(3)]
    await rig.run()
    stuck, busy, fine = (v.server.id for v in views)
    await rig.database.write(lambda tx: SERVERS.update(tx, stuck, state="STOPPING"))
    await rig.servers.stop(tenant, busy)
    assert await rig.database.write(stuck_state.free) == [stuck]
    view = await rig.servers.get(tenant, stuck)
    assert (view.state, view.server.fault_reason) == ("ERROR", "STUCK")
    assert [(await rig.server(i)).state for i in (busy, fine)] == ["STOPPING", "ACTIVE"]
    await rig.servers.stop(tenant, stuck)  # there is a guest: it may be led out, or deleted
    await rig.run()
    assert (await rig.servers.get(tenant, stuck)).state == "STOPPED"
    assert (await rig.server(stuck)).fault_reason == ""
    for server_id in (stuck, busy, fine):
        await rig.servers.delete(tenant, server_id)
    await rig.run()
    assert await rig.leftovers() == {}
    job = asyncio.create_task(StuckStates(rig.database).run())
    await asyncio.sleep(0.01)
    await stop(job)


async def test_old_things_are_forgotten(rig: Rig, tenant: Caller, monkeypatch) -> None:
    flavor, image = await rig.equip(tenant)
    await rig.create(tenant, flavor, image)
    await rig.run()

    def prepare(tx: Tx) -> None:
        for expires_at in (tx.now - 1, tx.now + 100):
            tx.run(
                "INSERT INTO token VALUES (?, ?, ?, ?, ?)",
                f"h{expires_at}",
                tenant.user_id,
                tenant.project_id,
                tx.now,
                expires_at,
            )
            tx.run("INSERT INTO join_token VALUES (?, 'k', '[]', ?, 0)", f"j{expires_at}", expires_at)
        idempotency.remember(tx, tenant.project_id, tenant.user_id, "k", "m", "f", "r")
        for number in range(5000):
            event.record(tx, "x.y", "", "r", str(number))

    await rig.database.write(prepare)
    monkeypatch.setattr(expiry, "EVENTS_KEPT", 100)
    job = asyncio.create_task(expiry.Expiry(rig.database).run())
    try:
        await until(rig, "SELECT 1 FROM (SELECT count(*) AS n FROM event) WHERE n = 100")
    finally:
        await stop(job)
    for table in ("token", "join_token", "idempotency", "task"):
        assert len(await rig.rows(f"SELECT * FROM {table}")) == 1, table
    assert [e["message"] for e in await rig.rows("SELECT message FROM event ORDER BY seq DESC LIMIT 1")] == ["4999"]
    rig.clock.forward(8 * 24 * 3600.0)
    for expire in expiry.PASSES:
        await rig.database.write(expire)
    for table in ("token", "join_token", "idempotency", "task"):
        assert not await rig.rows(f"SELECT * FROM {table}"), table
