"""What the rack tells of itself: usage for who pays, metrics and logs for who runs it."""

from __future__ import annotations

import datetime
import json
import secrets
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from skyrack.client.usage import ServerUsage
from tests.e2e.patience import until
from tests.e2e.reflecting import Reflected
from tests.e2e.remains import metrics
from tests.e2e.running_rack import RunningRack
from tests.e2e.site import Site
from tests.e2e.tenant import Tenant

ENDPOINTS = [
    ("c1", "10.10.0.11:9700", "controllerd", "skyrack_rpc_seconds"),
    ("n1", "10.10.0.21:9710", "networkd", "skyrack_networkd_routers"),
    ("k1", "10.10.0.41:9710", "networkd", "skyrack_networkd_ports"),
    ("k2", "10.10.0.42:9720", "computed", "skyrack_computed_servers"),
    ("s1", "10.10.0.31:9730", "storaged", "skyrack_storaged_volumes"),
]


def test_usage_counts_what_a_guest_did(site: Site) -> None:
    def sampled() -> ServerUsage:
        now = datetime.datetime.now(datetime.UTC)
        usage = site.tenant.cloud.usages.get(start=now - datetime.timedelta(hours=1), end=now)
        mine: ServerUsage = next(server for server in usage.servers if server.server_id == site.web.id)
        assert mine.cpu_s > 1 and mine.rx_bytes > 1000 and mine.tx_bytes > 1000 and mine.read_bytes > 1_000_000, mine
        assert 0 < mine.hours <= usage.server_hours
        return mine

    mine = until(sampled, "samples have come in")
    assert (mine.name, mine.vcpus, mine.memory_mib) == ("web-1", site.web.vcpus, site.web.memory_mib)


@pytest.mark.parametrize(("node", "address", "daemon", "family"), ENDPOINTS)
def test_metrics(rack: RunningRack, site: Site, node: str, address: str, daemon: str, family: str) -> None:
    families = {found.name: found for found in text_string_to_metric_families(metrics(rack, node, address))}
    assert {sample.labels["daemon"] for sample in families["skyrack_info"].samples} == {daemon}
    assert families[family].samples and families[family].documentation
    assert "skyrack_loop_lag_seconds" in families


def test_every_log_line_is_one_event(rack: RunningRack, site: Site) -> None:
    for path in rack.directory.glob("hosts/*/var/log/skyrack/*d.log"):
        daemon = path.stem
        if daemon in ("libvirtd", "virtlogd"):
            continue
        for line in path.read_text().splitlines():
            event = json.loads(line)
            assert event["daemon"] == daemon and event["event"], line
            assert datetime.datetime.fromisoformat(event["time"]).tzinfo is not None
            assert event["level"] in ("debug", "info", "warning", "error", "critical")


def test_request_id_leads_from_the_call_to_event_and_log(rack: RunningRack, tenant: Tenant) -> None:
    mine = f"mine-{secrets.token_hex(8)}"
    token = tenant.cloud.tokens.create(user="tenant", password=tenant.password).token
    credentials = grpc.ssl_channel_credentials(Path(rack.env["SKYRACK_CA"]).read_bytes())
    with grpc.secure_channel(rack.env["SKYRACK_ENDPOINT"], credentials) as channel:
        request = {"name": "traced", "size_gib": 1}
        marks = {"authorization": f"Bearer {token}", "x_request_id": mine}
        volume = Reflected(channel).call("skyrack.v1.VolumeService/CreateVolume", request, **marks)
    tenant.cloud.volumes.wait(volume["id"], "AVAILABLE", deadline_s=60)
    events = list(tenant.cloud.events.list(request_id=mine))
    assert volume["id"] in {event.resource_id for event in events}
    lines = [json.loads(line) for line in rack.log("c1", "controllerd").splitlines() if mine in line]
    assert lines and {line["request_id"] for line in lines} == {mine}
    tenant.cloud.volumes.delete(volume["id"])
    tenant.cloud.volumes.wait_gone(volume["id"], deadline_s=60)
