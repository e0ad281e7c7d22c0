"""Servers from creation to deletion, with nodes that obey."""

from __future__ import annotations

import asyncio

import pytest

from controllerd.domain.policy import Caller
from daemonkit.errors import QuotaExceeded
from tests.controllerd.server.rig import Rig


async def test_a_server_is_placed_launched_and_removed(rig: Rig, tenant: Caller) -> None:
    flavor, image = await rig.equip(tenant)
    view = await rig.create(tenant, flavor, image)
    assert (view.state, view.node_name, len(view.addresses)) == ("BUILD", "", 1)
    assert view.task_id and view.addresses[0].ip == "10.1.0.3"
    rig.clock.forward(0.1)
    await rig.run()
    view = await rig.servers.get(tenant, view.server.id)
    assert (view.state, view.task_id, view.node_name) == ("ACTIVE", "", "")
    assert [m.name for m in view.timeline][:2] == ["accepted", "scheduled"]
    assert {m.name for m in view.timeline} == {"accepted", "scheduled", "image", "disk", "network", "defined", "running"}
    assert all(100 <= m.since_accepted_ms <= 110 for m in view.timeline[1:])
    await rig.servers.delete(tenant, view.server.id)
    await rig.run()
    assert await rig.leftovers() == {}
    assert not any(n.guests for n in rig.nodes.values())


async def test_fifty_at_once_at_a_quota_of_ten(rig: Rig, tenant: Caller) -> None:
    flavor, image = await rig.equip(tenant, nodes=4)
    answers = await asyncio.gather(*(rig.create(tenant, flavor, image, f"s{n}") for n in range(50)), return_exceptions=True)
    refused = [a for a in answers if isinstance(a, QuotaExceeded)]
    assert len(refused) == 40 and refused[0].metadata["resource"] == "servers"
    await rig.run()
    states = await rig.rows("SELECT state, count(*) AS n FROM server GROUP BY state")
    assert states == [{"state": "ACTIVE", "n": 10}]
    with pytest.raises(QuotaExceeded):
        await rig.create(tenant, flavor, image)
