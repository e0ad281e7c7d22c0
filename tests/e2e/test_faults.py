"""Daemons killed at any moment of a create and a delete, nodes without power, cables cut: all ends well, nothing is left."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from skyrack.client.server import Server
from skyrack.client.sync import Cloud
from skyrack.client.volume import Volume
from tests.e2e.patience import LIMIT_S, until
from tests.e2e.remains import Picture, picture, until_as_before
from tests.e2e.running_rack import RunningRack
from tests.e2e.tenant import Tenant

VICTIMS = [
    [("c1", "controllerd")],
    [("k1", "computed"), ("k2", "computed")],
    [("k1", "networkd"), ("k2", "networkd")],
    [("s1", "storaged")],
]
MOMENTS_S = (0.0, 0.2, 0.6)
LOST_LIMIT_S = 25.0
"""15 s are promised (`lost_after_s` and `silence_max_s`); the rest is for a machine that has other things to do."""


@pytest.fixture(scope="module")
def volume(rack: RunningRack, admin: Cloud, tenant: Tenant, before: Picture) -> Iterator[Volume]:
    volumes = tenant.cloud.volumes
    made = volumes.wait(volumes.create("spare", size_gib=1), "AVAILABLE", deadline_s=60)
    yield made
    volumes.delete(made)
    volumes.wait_gone(made, deadline_s=60)
    until_as_before(rack, admin, before)


@pytest.fixture
def idle(rack: RunningRack, admin: Cloud, before: Picture) -> Iterator[None]:
    """What the test makes leaves nothing."""
    at_first = picture(rack, admin)
    yield
    until_as_before(rack, admin, at_first)


@pytest.fixture
def on_k2(admin: Cloud) -> Iterator[None]:
    """New servers go to k2."""
    admin.nodes.update("k1", enabled=False)
    yield
    admin.nodes.update("k1", enabled=True)


def until_up(admin: Cloud) -> None:
    until(lambda: {n.state for n in admin.nodes.list() if "controller" not in n.roles} == {"UP"}, "all nodes are up")


def ended(tenant: Tenant, server: Server) -> Server:
    """Its create came to an end, one or the other."""

    def seen() -> Server:
        now: Server = tenant.cloud.servers.get(server)
        assert now.state in ("ACTIVE", "ERROR") and not now.task_id, f"{now.state} {now.task_id}"
        return now

    return until(seen, "the create ends", limit_s=120)


# ---------------------------------------------------------------- daemons


@pytest.mark.parametrize("moment_s", MOMENTS_S)
def test_daemons_killed_during_create_and_delete(
    rack: RunningRack, admin: Cloud, tenant: Tenant, volume: Volume, idle: None, moment_s: float
) -> None:
    """One after the other, each in a create and in a delete; with a volume, so that every agent has its part in it."""
    for victims in VICTIMS:
        server = tenant.create("victim", volumes=[volume])
        kill_after(rack, moment_s, victims)
        assert ended(tenant, server).state == "ACTIVE", f"without {victims} for a moment a launch takes longer, no more"
        tenant.cloud.servers.delete(server)
        kill_after(rack, moment_s, victims)
        tenant.cloud.servers.wait_gone(server, deadline_s=120)
        tenant.cloud.volumes.wait(volume, "AVAILABLE", deadline_s=60)
    until_up(admin)


def kill_after(rack: RunningRack, moment_s: float, victims: list[tuple[str, str]]) -> None:
    time.sleep(moment_s)
    for victim in victims:
        until(lambda victim=victim: rack.unit(*victim)["pid"], "it runs")  # type: ignore[misc]
        rack.kill(*victim)


# ---------------------------------------------------------------- nodes


def pair(tenant: Tenant) -> tuple[Server, Server]:
    made = [tenant.create(name) for name in ("stays", "goes")]
    stays, goes = (tenant.cloud.servers.wait(server, "ACTIVE", deadline_s=LIMIT_S) for server in made)
    return stays, goes


def until_unknown(tenant: Tenant, servers: tuple[Server, ...]) -> None:
    began_s = time.monotonic()
    until(lambda: {tenant.cloud.servers.get(s).state for s in servers} == {"UNKNOWN"}, "they show that their node is lost")
    assert time.monotonic() - began_s < LOST_LIMIT_S


def guests(rack: RunningRack) -> dict[str, str]:
    """Server id to the process that is its guest, on k2."""
    lines = rack.exec("k2", "pgrep", "-a", "qemu-system", check=False).splitlines()
    told = [line for line in lines if "-uuid " in line]  # one that is ending has no arguments any more
    return {line.partition("-uuid ")[2].split()[0]: line.split()[0] for line in told}


def test_power_failure(rack: RunningRack, admin: Cloud, tenant: Tenant, idle: None, on_k2: None) -> None:
    """What was deleted meanwhile is cleaned up when the node is back; what was not is started again."""
    stays, goes = pair(tenant)
    rack.kill("k2")
    until_unknown(tenant, (stays, goes))
    tenant.delete([goes])
    rack.start("k2")
    until_up(admin)
    until(lambda: list(guests(rack)) == [stays.id], "one was started again, the other is gone")
    tenant.cloud.servers.wait(stays, "ACTIVE", deadline_s=60)
    tenant.delete([stays])


def test_management_cable_cut(rack: RunningRack, tenant: Tenant, idle: None, on_k2: None) -> None:
    """Guests go on. When the cable is mended, they are adopted, except the one that was deleted meanwhile."""
    stays, goes = pair(tenant)
    known = guests(rack)
    assert set(known) == {stays.id, goes.id}
    rack.cut("k2", "management")
    try:
        until_unknown(tenant, (stays, goes))
        tenant.delete([goes])
        assert guests(rack) == known, "nobody could tell the node"
    finally:
        rack.heal()
    tenant.cloud.servers.wait(stays, "ACTIVE", deadline_s=60)
    until(lambda: guests(rack) == {stays.id: known[stays.id]}, "one goes on running, the other is gone")
    tenant.delete([stays])
