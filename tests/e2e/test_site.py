"""A tenant's site from the first page to the last reboot: what a user sees, on real guests, with real packets."""

from __future__ import annotations

import re
import subprocess

import pytest

from skyrack.client.sync import Cloud
from tests.e2e.patience import LIMIT_S, until
from tests.e2e.running_rack import RunningRack
from tests.e2e.site import Site

SLOW = """cat > /www/cgi-bin/slow <<'END'
#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\n'
for second in $(seq 60); do echo $second; sleep 1; done
END
chmod +x /www/cgi-bin/slow; httpd -p 81 -h /www"""


def refused(site: Site, port: int) -> bool:
    try:
        site.page(port=port, limit_s=3)
    except subprocess.CalledProcessError:
        return True
    return False


def test_two_servers_on_two_nodes(site: Site, admin: Cloud) -> None:
    nodes = {admin.servers.get(server).node for server in (site.web, site.other)}
    assert nodes == {"k1", "k2"}
    assert site.tenant.cloud.servers.get(site.web).node == "", "where it runs is not the tenant's business"
    assert [step.name for step in site.web.timeline][-1:] == ["running"]


def test_page_answers_on_the_floating_ip(site: Site) -> None:
    page = site.page()
    assert "<h1>web-1</h1>" in page
    assert site.web.addresses[0].ip in page
    # nothing between: the guest sees who asked
    assert re.search(r"you are .*203\.0\.113\.254", page)


def test_servers_ping_each_other_over_vxlan(site: Site) -> None:
    answer = site.ssh(f"ping -c 3 {site.other.addresses[0].ip}")
    assert " 0% packet loss" in answer
    # as large as the tenant's network lets through, which the underlay's MTU must fit around
    assert " 0% packet loss" in site.ssh(f"ping -c 2 -s 1422 {site.other.addresses[0].ip}")


def test_names_and_the_internet_are_reached_from_inside(site: Site) -> None:
    assert " 0% packet loss" in site.ssh("ping -c 2 web-2")
    assert " 0% packet loss" in site.ssh("ping -c 2 203.0.113.254")


def test_accounts_of_the_security_group_log_in(site: Site) -> None:
    assert site.ssh("id -un", user="ops").strip() == "ops"
    assert site.ssh("sudo id -u", user="ops").strip() == "0"


def test_port_follows_the_rules(site: Site) -> None:
    """Closed though something listens; open with a rule; a running download cut when the rule goes."""
    groups = site.tenant.cloud.security_groups
    site.ssh(SLOW + "; timeout 5 wget -q -O /dev/null http://127.0.0.1:81/")
    assert refused(site, 81)

    rule = groups.add_rule(site.tenant.group, protocol="tcp", port_min=81, port_max=81)
    until(lambda: "web-1" in site.page(port=81), "port 81 answers")
    # exit code 28: for 5 seconds nothing came
    stalls = ("curl", "-sN", "--noproxy", "*", "--speed-limit", "1", "--speed-time", "5")
    url = f"http://{site.address.ip}:81/cgi-bin/slow"
    with subprocess.Popen(site.rack.enter("internet", *stalls, url), stdout=subprocess.PIPE) as download:
        assert download.stdout is not None and download.stdout.readline() == b"1\n"
        groups.delete_rule(rule)
        assert download.wait(40) == 28
    until(lambda: refused(site, 81), "port 81 is closed")
    assert "web-1" in site.page(), "and nothing else with it"


def test_volume_goes_to_the_other_server_with_its_contents(site: Site) -> None:
    servers, volumes = site.tenant.cloud.servers, site.tenant.cloud.volumes
    site.ssh("echo carried over > /mnt/vdb/letter; sync; umount /mnt/vdb")
    servers.remove_volume(site.web, site.volume)
    volumes.wait(site.volume, "AVAILABLE", deadline_s=60)
    until(lambda: site.ssh("test ! -e /sys/block/vdb && echo gone"), "the disk is gone from web-1")

    servers.add_volume(site.other, site.volume)
    volumes.wait(site.volume, "IN_USE", deadline_s=60)
    until(lambda: "letter (13 bytes): carried over" in site.page_of_other(), "web-2 shows what web-1 wrote")


def test_console_log_is_what_the_guest_wrote(site: Site) -> None:
    log = site.tenant.cloud.servers.console_log(site.web).decode()
    assert "mini: " in log and "hostname web-1" in log
    assert len(site.tenant.cloud.servers.console_log(site.web, bytes_max=100)) == 100


def test_reboots_of_one_while_the_other_stops_and_starts(site: Site, rack: RunningRack, admin: Cloud) -> None:
    servers = site.tenant.cloud.servers
    boots, node = site.boots(), admin.servers.get(site.other).node
    servers.reboot(site.web)
    servers.stop(site.other)
    servers.wait(site.other, "STOPPED", deadline_s=LIMIT_S)
    assert rack.exec(node, "virsh", "-q", "list", "--name").strip() == ""
    until(lambda: site.boots() == boots + 1, "web-1 was booted once more")
    with pytest.raises(subprocess.CalledProcessError):
        site.page_of_other()

    servers.start(site.other)
    servers.reboot(site.web, hard=True)
    for server in (site.other, site.web):
        servers.wait(server, "ACTIVE", deadline_s=LIMIT_S)
    until(lambda: site.boots() == boots + 2, "web-1 was booted once more, the hard way")
    until(lambda: "carried over" in site.page_of_other(), "web-2 is back, with its volume")
