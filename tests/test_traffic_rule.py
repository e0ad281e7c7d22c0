"""The rule of the machine: a sandbox adds nothing to the machine's own network but listeners on 127.0.0.1.

`machine_untouched` in conftest.py asserts it over all tests; here it is asserted while a rack is up, with traffic in it.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from daemonkit.command import run
from skyrack.sandbox import namespace
from skyrack.sandbox.rack import Rack
from tests import machine
from tests.sandbox import stand_in
from tests.sandbox.test_rack import COUNTS, ask, reaches

DOCUMENTATION_ADDRESS = "192.0.2.1"  # RFC 5737: belongs to nobody


async def test_rack_adds_nothing_to_the_machine_and_has_no_way_out(tmp_path: Path) -> None:
    before, listeners = machine.picture(), machine.open_listeners()
    name = f"t{uuid.uuid4().hex[:8]}"
    rack = Rack(name, tmp_path / name, units=stand_in.units)
    try:
        await rack.power_on(COUNTS)
        await rack.host("c1").until("echo")
        assert await ask(rack) == b"echo hello" and await reaches(rack, "k1", "10.20.0.21")
        assert machine.changes(before, machine.picture()) == {}
        assert machine.open_listeners() <= listeners
        for inside in namespace.names(rack.prefix):
            await no_way_out(inside)
    finally:
        await rack.down()
    assert machine.changes(before, machine.picture()) == {}


async def no_way_out(inside: str) -> None:
    """No default route, no interface but loopback, bridges and cables, and the kernel itself says so."""
    for family in ("-4", "-6"):
        assert "default" not in await run(*namespace.enter(inside, "ip", family, "route"))
    links = json.loads(await run(*namespace.enter(inside, "ip", "-d", "-j", "link")))
    kinds = {link.get("linkinfo", {}).get("info_kind", link["link_type"]) for link in links}
    assert kinds <= {"veth", "bridge", "loopback"}, (inside, kinds)
    answer = await run(*namespace.enter(inside, "sh", "-c", f"ip route get {DOCUMENTATION_ADDRESS} 2>&1 || true"))
    assert "unreachable" in answer, (inside, answer)


def test_the_picture_sees_changes() -> None:
    """The comparison is not blind: each kind of change is one."""
    before = machine.picture()
    for part in before:
        assert machine.changes(before, {**before, part: "other"}) == {part: (before[part], "other")}
    assert before["links"] and before["addresses"] and before["routes"] and before["rules"] and before["sysctls"]
