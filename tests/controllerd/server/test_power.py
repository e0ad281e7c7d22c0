"""Start, stop, reboot; guests that change by themselves; lost nodes; nodes that refuse."""

from __future__ import annotations

import pytest

from controllerd.domain.policy import Caller
from controllerd.store.server import SERVERS
from controllerd.tasks.server_create import FAILED_FINAL_S
from daemonkit.errors import Conflict
from skyrack.v1 import agent_pb2 as pb
from tests.controllerd.server.rig import Rig, ScriptedNode


async def running(rig: Rig, tenant: Caller, nodes: int = 1) -> tuple[str, ScriptedNode]:
    flavor, image = await rig.equip(tenant, nodes=nodes)
    view = await rig.create(tenant, flavor, image)
    await rig.run()
    server = await rig.server(view.server.id)
    assert server.state == "ACTIVE"
    return server.id, rig.nodes[server.node_id]


async def state(rig: Rig, tenant: Caller, server_id: str) -> str:
    return (await rig.servers.get(tenant, server_id)).state


async def events(rig: Rig, server_id: str) -> list[str]:
    rows = await rig.rows("SELECT kind FROM event WHERE resource_id = ? ORDER BY seq", server_id)
    return [row["kind"].removeprefix("server.") for row in rows]


async def test_stop_start_reboot(rig: Rig, tenant: Caller) -> None:
    server_id, node = await running(rig, tenant)
    for verb, between, after, guest in (
        ("stop", "STOPPING", "STOPPED", pb.OBSERVED_STATE_STOPPED),
        ("start", "STARTING", "ACTIVE", pb.OBSERVED_STATE_RUNNING),
    ):
        view = await getattr(rig.servers, verb)(tenant, server_id)
        assert view.state == between and view.task_id
        await rig.run()
        assert (await state(rig, tenant, server_id), node.guests[server_id]) == (after, guest)
    view = await rig.servers.reboot(tenant, server_id, hard=True)
    assert view.state == "REBOOTING"
    await rig.advance()
    [order] = await rig.rows("SELECT body FROM agent_task")
    assert pb.Task.FromString(order["body"]).reboot_server == pb.RebootServer(server_id=server_id, hard=True)
    await rig.run()
    assert await state(rig, tenant, server_id) == "ACTIVE"
    assert not await rig.rows("SELECT * FROM agent_task")
    assert len(await rig.rows("SELECT * FROM usage_interval")) == 1
    assert [e for e in await events(rig, server_id) if e.endswith("ed")][-3:] == ["stopped", "started", "rebooted"]


async def test_illegal_verbs_say_why(rig: Rig, tenant: Caller) -> None:
    flavor, image = await rig.equip(tenant, nodes=1)
    view = await rig.create(tenant, flavor, image)
    with pytest.raises(Conflict, match=f"busy: task {view.task_id}"):
        await rig.servers.stop(tenant, view.server.id)
    await rig.run()
    with pytest.raises(Conflict, match="it is ACTIVE, and must be STOPPED"):
        await rig.servers.start(tenant, view.server.id)
    await rig.servers.stop(tenant, view.server.id)
    await rig.run()
    with pytest.raises(Conflict, match="must be ACTIVE"):
        await rig.servers.reboot(tenant, view.server.id, hard=False)


async def test_a_guest_that_ends_or_starts_by_itself(rig: Rig, tenant: Caller) -> None:
    server_id, node = await running(rig, tenant)
    await rig.see(node, server_id, pb.OBSERVED_STATE_STOPPED)
    server = await rig.server(server_id)
    assert (server.state, server.power) == ("STOPPED", "STOPPED")  # else its node would start it again
    await rig.see(node, server_id, pb.OBSERVED_STATE_RUNNING)
    server = await rig.server(server_id)
    assert (server.state, server.power) == ("ACTIVE", "RUNNING")
    assert (await events(rig, server_id))[-2:] == ["stopped", "started"]


async def test_a_guest_that_is_held(rig: Rig, tenant: Caller) -> None:
    server_id, node = await running(rig, tenant)
    await rig.see(node, server_id, pb.OBSERVED_STATE_PAUSED, "a disk does not answer")
    assert await state(rig, tenant, server_id) == "PAUSED"
    assert (await rig.server(server_id)).power == "RUNNING"
    await rig.see(node, server_id, pb.OBSERVED_STATE_RUNNING)
    assert await state(rig, tenant, server_id) == "ACTIVE"
    assert (await events(rig, server_id))[-2:] == ["paused", "resumed"]


async def test_reports_during_a_task_change_no_state(rig: Rig, tenant: Caller) -> None:
    server_id, node = await running(rig, tenant)
    await rig.servers.stop(tenant, server_id)
    await rig.advance()
    await rig.see(node, server_id, pb.OBSERVED_STATE_RUNNING)  # sent before it was told
    await rig.advance()
    assert await state(rig, tenant, server_id) == "STOPPING"
    await rig.run()
    assert await state(rig, tenant, server_id) == "STOPPED"


async def test_a_node_has_no_say_in_what_it_does_not_hold(rig: Rig, tenant: Caller) -> None:
    server_id, node = await running(rig, tenant, nodes=2)
    [other] = [n for n in rig.nodes.values() if n is not node]
    before = await rig.server(server_id)
    await rig.see(other, server_id, pb.OBSERVED_STATE_STOPPED)
    await rig.see(other, server_id, pb.OBSERVED_STATE_GONE)
    await rig.see(other, "no such server", pb.OBSERVED_STATE_RUNNING, foreign=True)
    assert await rig.server(server_id) == before


async def test_a_whole_report_of_an_agent_that_has_not_looked_yet_changes_nothing(rig: Rig, tenant: Caller) -> None:
    server_id, node = await running(rig, tenant)
    before = await rig.server(server_id)
    await rig.report(node, "computed", [], whole=True)
    assert await rig.server(server_id) == before
    await rig.servers.delete(tenant, server_id)
    await rig.advance()
    await rig.report(node, "computed", [], whole=True)
    await rig.advance()
    assert (await rig.server(server_id)).state == "DELETING"  # only an explicit word counts


async def test_a_reboot_that_fails(rig: Rig, tenant: Caller) -> None:
    server_id, _node = await running(rig, tenant)
    await rig.servers.reboot(tenant, server_id, hard=False)
    await rig.advance()
    await rig.write(lambda tx: tx.run("UPDATE agent_task SET ended = 1, ok = 0, fault = 'the guest ignores us'"))
    await rig.run()
    assert await state(rig, tenant, server_id) == "ACTIVE"
    [task] = await rig.rows("SELECT * FROM task WHERE kind = 'server_reboot'")
    assert (task["state"], task["fault_message"]) == ("FAILED", "the guest ignores us")


@pytest.mark.parametrize(("verb", "after"), [("stop", "ACTIVE"), ("reboot", "ACTIVE"), ("start", "STOPPED")])
async def test_the_node_lost_meanwhile(rig: Rig, tenant: Caller, verb: str, after: str) -> None:
    server_id, node = await running(rig, tenant)
    if verb == "start":
        await rig.servers.stop(tenant, server_id)
        await rig.run()
    await (rig.servers.reboot(tenant, server_id, False) if verb == "reboot" else getattr(rig.servers, verb)(tenant, server_id))
    await rig.advance()
    await rig.lose(node)
    assert await state(rig, tenant, server_id) == "UNKNOWN"
    await rig.run()
    [task] = await rig.rows("SELECT state, fault_reason FROM task WHERE kind = ?", f"server_{verb}")
    assert task == {"state": "FAILED", "fault_reason": "NODE_LOST"}
    assert await state(rig, tenant, server_id) == "UNKNOWN"
    with pytest.raises(Conflict, match="lost"):
        await rig.servers.stop(tenant, server_id)
    await rig.find_again(node)
    await rig.run()
    assert await state(rig, tenant, server_id) == after
    assert not await rig.rows("SELECT * FROM agent_task")


async def test_a_guest_that_can_not_be_started_stays_stopped(rig: Rig, tenant: Caller) -> None:
    server_id, node = await running(rig, tenant)
    await rig.servers.stop(tenant, server_id)
    await rig.run()
    node.refuses = "no memory"
    await rig.servers.start(tenant, server_id)
    await rig.run()
    assert await state(rig, tenant, server_id) == "STARTING"  # it may yet get over it
    rig.clock.forward(FAILED_FINAL_S)
    await rig.run()
    assert await state(rig, tenant, server_id) == "STOPPED"
    [task] = await rig.rows("SELECT fault_reason, fault_message FROM task WHERE kind = 'server_start'")
    assert task == {"fault_reason": "NODE_FAILED", "fault_message": "no memory"}
    node.refuses = ""
    await rig.servers.start(tenant, server_id)
    await rig.run()
    assert await state(rig, tenant, server_id) == "ACTIVE"


async def test_a_launch_survives_a_passing_failure_but_not_a_lasting_one(rig: Rig, tenant: Caller) -> None:
    flavor, image = await rig.equip(tenant, nodes=1)
    [node] = rig.nodes.values()
    view = await rig.create(tenant, flavor, image)
    node.refuses = "storage is away"
    await rig.run()
    rig.clock.forward(FAILED_FINAL_S / 2)
    node.refuses = ""
    await rig.run()
    assert await state(rig, tenant, view.server.id) == "ACTIVE"
    node.refuses = "no room on the disk"
    second = await rig.create(tenant, flavor, image, "second")
    await rig.run()
    rig.clock.forward(FAILED_FINAL_S)
    await rig.run()
    failed = await rig.servers.get(tenant, second.server.id)
    assert (failed.state, failed.server.fault_reason, failed.server.fault_message) == (
        "ERROR",
        "NODE_FAILED",
        "no room on the disk",
    )
    assert len(await rig.rows("SELECT * FROM claim")) == 1 and (await rig.server(second.server.id)).node_id == ""
    assert failed.addresses  # its ports stay with it until it is deleted
    with pytest.raises(Conflict):
        await rig.servers.start(tenant, second.server.id)
    await rig.servers.delete(tenant, second.server.id)
    await rig.run()
    assert await rig.server(second.server.id) is None


async def test_a_launch_that_nobody_answers_ends_at_its_deadline(rig: Rig, tenant: Caller) -> None:
    flavor, image = await rig.equip(tenant, nodes=1)
    [node] = rig.nodes.values()
    node.deaf = True
    view = await rig.create(tenant, flavor, image)
    await rig.run()
    rig.clock.forward(301)
    await rig.run()
    assert await state(rig, tenant, view.server.id) == "BUILD"  # the node is told to remove it, and is waited for
    assert (await rig.server(view.server.id)).power == "ABSENT"
    node.deaf = False
    await rig.run()
    failed = await rig.servers.get(tenant, view.server.id)
    assert (failed.state, failed.server.fault_reason) == ("ERROR", "DEADLINE_EXCEEDED")
    assert not await rig.rows("SELECT * FROM claim")


async def test_a_delete_that_the_node_can_not_do_may_be_repeated(rig: Rig, tenant: Caller) -> None:
    server_id, node = await running(rig, tenant)
    node.deaf = True
    await rig.servers.delete(tenant, server_id)
    await rig.run()
    await rig.see(node, server_id, pb.OBSERVED_STATE_FAILED, "busy disk")
    rig.clock.forward(601)
    await rig.run()
    view = await rig.servers.get(tenant, server_id)
    assert (view.state, view.server.fault_reason, list(view.fault_details)) == ("ERROR", "DEADLINE_EXCEEDED", ["busy disk"])
    with pytest.raises(Conflict):
        await rig.servers.start(tenant, server_id)
    node.deaf = False
    first, again = await rig.servers.delete(tenant, server_id), await rig.servers.delete(tenant, server_id)
    assert first.task_id == again.task_id
    await rig.run()
    assert await rig.leftovers() == {}


async def test_clocks_that_differ_do_not_disturb_the_timeline(rig: Rig, tenant: Caller) -> None:
    flavor, image = await rig.equip(tenant, nodes=1)
    [node] = rig.nodes.values()
    node.clock_skew_s = -3600.0
    view = await rig.create(tenant, flavor, image)
    rig.clock.forward(0.2)
    await rig.run()
    timeline = (await rig.servers.get(tenant, view.server.id)).timeline
    assert all(0 <= m.since_accepted_ms <= 210 for m in timeline) and len(timeline) == 7


async def test_shown_states_are_the_same_in_sql(rig: Rig, tenant: Caller) -> None:
    from controllerd.domain.page import Page
    from controllerd.domain.server import SHOWN

    server_id, _node = await running(rig, tenant)
    for stored in ("BUILD", "ACTIVE", "STOPPED", "ERROR", "STARTING", "STOPPING", "REBOOTING", "DELETING"):
        for observed in ("RUNNING", "PAUSED", ""):
            for lost in (0, 1):
                changes = {"state": stored, "observed_state": observed}
                await rig.database.write(lambda tx, c=changes: SERVERS.update(tx, server_id, **c))
                await rig.database.write(lambda tx, v=lost: tx.run("UPDATE agent SET lost = ?", v))
                shown = await state(rig, tenant, server_id)
                found = [s for s in SHOWN if (await rig.servers.list(tenant, "", s, False, Page())).items]
                assert found == [shown], (stored, observed, lost)
