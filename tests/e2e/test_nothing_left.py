"""Deleting everything leaves nothing: no guest, tap, rule, disk, export or claim on any node."""

from __future__ import annotations

import subprocess

import pytest

from skyrack.client.sync import Cloud
from tests.e2e.remains import Picture, changes, picture, until_as_before
from tests.e2e.running_rack import RunningRack
from tests.e2e.site import Site


def test_site_is_deleted(rack: RunningRack, admin: Cloud, site: Site, before: Picture) -> None:
    full = picture(rack, admin)
    held = {sort.split()[-1] for sort in changes(before, full)}
    assert {"interfaces", "firewall", "dnsmasq", "domains", "guests", "disks", "volumes", "claims", "exports"} <= held

    cloud = site.tenant.cloud
    site.tenant.delete([site.web, site.other])
    assert cloud.volumes.get(site.volume).state == "AVAILABLE", "volumes outlive servers"
    cloud.volumes.delete(site.volume)
    cloud.volumes.wait_gone(site.volume, deadline_s=60)
    cloud.floating_ips.delete(site.address)
    with pytest.raises(subprocess.CalledProcessError):
        site.page(limit_s=2)
    until_as_before(rack, admin, before)
