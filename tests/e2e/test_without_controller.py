"""The controller is away; the site does not notice. It comes back, and nothing has changed."""

from __future__ import annotations

from typing import Any

from skyrack.client.sync import Cloud
from tests.e2e.patience import until
from tests.e2e.running_rack import RunningRack
from tests.e2e.site import Site


def facts(site: Site) -> list[Any]:
    """What must be the same before and after."""
    servers = {s.id: (s.name, s.state, s.addresses, s.attachments, s.task_id) for s in site.tenant.cloud.servers.list()}
    volumes = {v.id: (v.state, v.attachment) for v in site.tenant.cloud.volumes.list()}
    addresses = {a.id: (a.ip, a.port_id, a.state) for a in site.tenant.cloud.floating_ips.list()}
    return [servers, volumes, addresses]


def until_whole(rack: RunningRack, admin: Cloud, site: Site, known: list[Any]) -> None:
    def whole() -> bool:
        assert {node.state for node in admin.nodes.list() if node.name != "c1"} == {"UP"}
        assert facts(site) == known
        return True

    until(whole, "everything is as it was", limit_s=60)


def test_site_lives_on_and_a_guest_reboots(rack: RunningRack, admin: Cloud, site: Site) -> None:
    known, boots = facts(site), site.boots()
    domains = {node: rack.exec(node, "virsh", "-q", "list", "--uuid") for node in ("k1", "k2")}
    rack.stop("c1", "controllerd")
    try:
        assert "web-1" in site.page()
        site.ssh("reboot")
        until(lambda: site.boots() == boots + 1, "the guest is back")
        # address, name and keys are its node's to give
        assert site.web.addresses[0].ip in site.ssh("cat /run/leases")
        assert site.ssh("hostname").strip() == "web-1"
        assert " 0% packet loss" in site.ssh(f"ping -c 2 {site.other.addresses[0].ip}")
    finally:
        rack.start("c1", "controllerd")
    until_whole(rack, admin, site, known)
    assert domains == {node: rack.exec(node, "virsh", "-q", "list", "--uuid") for node in ("k1", "k2")}


def test_agents_come_back_before_their_controller(rack: RunningRack, admin: Cloud, site: Site) -> None:
    """All agents of a compute node are killed while nobody can tell them what to do: they adopt what is there."""
    known = facts(site)
    rack.kill("c1", "controllerd")
    rack.stop("c1", "controllerd")
    try:
        restarts = {unit: rack.unit("k1", unit)["restarts"] for unit in ("computed", "networkd")}
        for unit in restarts:
            rack.kill("k1", unit)
        until(lambda: all(rack.unit("k1", unit)["restarts"] > seen for unit, seen in restarts.items()), "they are restarted")
        until(lambda: all(rack.unit("k1", unit)["state"] == "running" for unit in restarts), "they are ready")
        assert "web-1" in site.page()
        assert " 0% packet loss" in site.ssh(f"ping -c 5 {site.other.addresses[0].ip}")
    finally:
        rack.start("c1", "controllerd")
    until_whole(rack, admin, site, known)
