"""The controller's disk is lost, and the backup is older than what runs: guests do not notice, differences are told."""

from __future__ import annotations

import datetime
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import pytest

from skyrack.client import CloudError
from skyrack.client.connection import Patience
from skyrack.client.server import Server
from skyrack.client.sync import Cloud
from skyrack.client.volume import Volume
from skyrack.sandbox.config import PROGRAMS, SET_UP, program
from tests.e2e.patience import LIMIT_S, until
from tests.e2e.ping import Ping
from tests.e2e.running_rack import RunningRack
from tests.e2e.site import Site
from tests.e2e.test_without_controller import facts

FILE = "/var/tmp/cloud.backup"  # as c1 sees it
STATE, CERTIFICATES = "/var/lib/skyrack/controllerd", "/etc/skyrack/tls"
COMPUTES = ("k1", "k2")


class Session:
    """A TCP connection to web-1, through the floating IP, that stays open while the block runs."""

    def __init__(self, site: Site) -> None:
        self._argv = site.rack.enter("internet", *site.login("exec cat"))

    def __enter__(self) -> Self:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._argv, stdin=pipe, stdout=pipe, text=True, bufsize=1)
        assert self.echoes("hello")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def echoes(self, line: str) -> bool:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{line}\n")
        return self._process.stdout.readline() == f"{line}\n"


@dataclass(frozen=True)
class Aftermath:
    """The cloud is as of the backup; `guests` are as they were when its controller was lost."""

    site: Site
    session: Session
    ping: Ping
    goes: Server
    """Deleted after the backup."""
    late: Server
    """Made after it, with a volume."""
    late_data: Volume
    guests: dict[str, str]
    facts: list[Any]
    """Of the site and `goes`, as of the backup."""
    boots: int

    def unnoticed(self) -> bool:
        """By any guest, and by whoever talks to the site."""
        rack = self.site.rack
        assert guests(rack) == self.guests
        assert self.session.echoes("still there") and "web-1" in self.site.page() and self.site.boots() == self.boots
        return True


def guests(rack: RunningRack) -> dict[str, str]:
    """Server id to its node and the process there that is its guest."""
    found = {}
    for node in COMPUTES:
        for line in rack.exec(node, "pgrep", "-a", "qemu-system", check=False).splitlines():
            if "-uuid " in line:  # one that is ending has no arguments any more
                found[line.partition("-uuid ")[2].split()[0]] = f"{node} {line.split()[0]}"
    return found


def verify(rack: RunningRack) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Exit code of `skyrack cluster verify`, and what it lists, by kind."""
    try:
        code, told = 0, rack.skyrack("cluster", "verify", "--json")
    except subprocess.CalledProcessError as error:
        code, told = error.returncode, error.stdout
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(told):
        kinds.setdefault(row["kind"], []).append(row)
    return code, kinds


def ids(kinds: dict[str, list[dict[str, Any]]]) -> dict[str, set[str]]:
    return {kind: {row["resource_id"] for row in rows} for kind, rows in kinds.items()}


def restore(rack: RunningRack, *words: str) -> str:
    """As docs/backup.md says, on the controller."""
    names = ("--api-name", "127.0.0.1", "--api-name", "localhost")  # the sandbox's door
    return rack.exec("c1", *SET_UP, "restore", FILE, *names, *words)


def until_compared(admin: Cloud) -> None:
    def compared() -> bool:
        seen = admin.cluster.get().recovery
        assert seen is not None and seen.adopted + seen.missing > 0
        return not [d for d in admin.cluster.differences() if d.owner != "operator"]

    until(compared, "all nodes are compared", limit_s=90)


@pytest.fixture(scope="module")
def aftermath(rack: RunningRack, admin: Cloud, site: Site) -> Iterator[Aftermath]:
    tenant, backup = site.tenant, rack.directory / "hosts/c1" / FILE.lstrip("/")
    goes = tenant.cloud.servers.wait(tenant.create("goes"), "ACTIVE", deadline_s=LIMIT_S)
    known = facts(site)
    rack.skyrack("cluster", "backup", str(backup))
    data = tenant.cloud.volumes.wait(tenant.cloud.volumes.create("late", size_gib=1), "AVAILABLE", deadline_s=60)
    late = tenant.cloud.servers.wait(tenant.create("late", volumes=[data]), "ACTIVE", deadline_s=LIMIT_S)
    tenant.delete([goes])
    running, boots = guests(rack), site.boots()
    with Session(site) as session, Ping(rack, site.address) as ping:
        with pytest.raises(subprocess.CalledProcessError):
            restore(rack, "--replace")  # while it runs
        rack.stop("c1", "controllerd")
        rack.exec("c1", "rm", "-r", STATE, CERTIFICATES)
        restore(rack)
        rack.start("c1", "controllerd")
        until_compared(admin)
        yield Aftermath(site, session, ping, goes, late, data, running, known, boots)
    backup.unlink()
    assert ping.whole, ping.answered


def test_no_guest_noticed(rack: RunningRack, aftermath: Aftermath) -> None:
    assert aftermath.unnoticed()
    assert set(aftermath.guests) == {server.id for server in (aftermath.site.web, aftermath.site.other, aftermath.late)}


def test_what_is_missing_and_what_nobody_owns(rack: RunningRack, admin: Cloud, aftermath: Aftermath) -> None:
    code, kinds = verify(rack)
    assert code == 1
    held = {node.id for node in admin.nodes.list() if "controller" not in node.roles}
    assert ids(kinds) == {
        "missing_server": {aftermath.goes.id}, "foreign_server": {aftermath.late.id},
        "foreign_volume": {aftermath.late_data.id}, "node_held": held,
    }  # fmt: skip
    for row in (row for rows in kinds.values() for row in rows):
        assert row["owner"] == "operator" and datetime.datetime.fromisoformat(row["since"]).tzinfo, row
    assert kinds["foreign_server"][0]["node"] in COMPUTES and kinds["foreign_volume"][0]["node"] == "s1"
    with Cloud.connect(environ=rack.env, patience=Patience(total_s=0.5)) as cloud, pytest.raises(CloudError, match="held"):
        cloud.volumes.create("too early", size_gib=1)


def test_letting_go(rack: RunningRack, admin: Cloud, aftermath: Aftermath) -> None:
    rack.skyrack("cluster", "release")
    until_as_decided(rack, aftermath)
    missing = aftermath.site.tenant.cloud.servers.get(aftermath.goes)
    assert missing.state == "ERROR" and missing.fault.reason == "MISSING"
    servers, volumes, addresses = facts(aftermath.site)
    before = aftermath.facts
    assert {id: seen for id, seen in servers.items() if id != missing.id} == {
        id: seen for id, seen in before[0].items() if id != missing.id
    }
    assert [volumes, addresses] == before[1:]
    assert aftermath.unnoticed()


def test_a_second_restore_changes_nothing(rack: RunningRack, admin: Cloud, aftermath: Aftermath) -> None:
    known, before = facts(aftermath.site), admin.cluster.get()
    rack.stop("c1", "controllerd")
    daemon_is_found = f"PATH={PROGRAMS}:/usr/bin:/bin"
    told = rack.exec("c1", "env", daemon_is_found, program("skyrack"), "cluster", "restore", FILE, "--replace")
    assert "kept" in told
    rack.start("c1", "controllerd")
    until_compared(admin)
    rack.skyrack("cluster", "release")
    until_as_decided(rack, aftermath)
    assert facts(aftermath.site) == known and admin.cluster.get().epoch > before.epoch
    assert aftermath.unnoticed()


def test_the_operator_cleans_up(rack: RunningRack, admin: Cloud, aftermath: Aftermath) -> None:
    """As docs/backup.md says."""
    aftermath.site.tenant.delete([aftermath.goes])
    node, late = aftermath.guests[aftermath.late.id].split()[0], aftermath.late.id
    computed = "/var/lib/skyrack/computed"
    for command in (
        f"virsh -q destroy {late}", f"virsh -q undefine {late}", f"rm -r {computed}/disks/{late} {computed}/console/{late}.log",
    ):  # fmt: skip
        rack.exec(node, *command.split())
    rack.exec("s1", "rm", f"/var/lib/skyrack/storaged/volumes/{aftermath.late_data.id}.qcow2")
    until(lambda: verify(rack) == (0, {}), "nothing differs", limit_s=60)
    assert set(guests(rack)) == aftermath.guests.keys() - {late}


def until_as_decided(rack: RunningRack, aftermath: Aftermath) -> None:
    """Nodes are told what to do; what is not as it should be goes on being told."""
    left = {
        "missing_server": {aftermath.goes.id}, "foreign_server": {aftermath.late.id},
        "foreign_volume": {aftermath.late_data.id},
    }  # fmt: skip

    def decided() -> bool:
        code, kinds = verify(rack)
        assert (code, ids(kinds)) == (1, left)
        return True

    until(decided, "nodes are released, and agree", limit_s=60)
