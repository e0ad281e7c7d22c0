"""A whole rack with stand-ins for the daemons: wires, the door at 127.0.0.1, faults, two racks side by side."""

from __future__ import annotations

import asyncio
import json

import pytest

from daemonkit.command import run
from daemonkit.errors import Conflict, NotFound
from skyrack.sandbox import namespace
from skyrack.sandbox.rack import Rack
from tests.sandbox.conftest import RackMaker
from tests.sandbox.leftover import traces

COUNTS = {"controllers": 1, "networks": 1, "computes": 1, "storages": 1}
PING = ("ping", "-c1", "-W1")
HANG_S = 30.0


async def ask(rack: Rack) -> bytes:
    """What the controller's stand-in answers through the door; b"" when nobody is there."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", rack.state().api_ports["c1"])
        writer.write(b"hello")
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        return answer
    except ConnectionError:
        return b""


async def reaches(rack: Rack, node: str, address: str) -> bool:
    return " 0% packet loss" in await run(*rack.enter(node, *PING, address), check=False)


async def test_wires_door_and_status(make_rack: RackMaker) -> None:
    rack = make_rack()
    await rack.power_on(COUNTS)
    await rack.host("c1").until("echo")
    assert await ask(rack) == b"echo hello"
    assert await reaches(rack, "k1", "10.10.0.11") and await reaches(rack, "k1", "10.20.0.21")
    assert not await reaches(rack, "internet", "10.10.0.11")
    seen = await rack.status()
    assert json.loads(json.dumps(seen)) == seen
    assert [(n["name"], n["power"]) for n in seen["nodes"]] == [("c1", "on"), ("n1", "on"), ("s1", "on"), ("k1", "on")]
    assert {u["name"]: u["state"] for u in seen["nodes"][0]["units"]} == {"echo": "running"}
    assert seen["endpoints"] == [rack.endpoint("c1")]


async def test_cut_and_heal(make_rack: RackMaker) -> None:
    rack = make_rack()
    await rack.power_on(COUNTS)
    await rack.host("c1").until("echo")
    await rack.cut("k1", "management")
    assert not await reaches(rack, "k1", "10.10.0.11") and await reaches(rack, "k1", "10.20.0.21")
    await rack.cut("c1", None)
    assert await ask(rack) == b"echo hello"  # the door leads into the controller, not to its wire
    assert sorted((await rack.status())["cut"]) == [["c1", "management"], ["k1", "management"]]
    await rack.fabric.heal()
    async with asyncio.timeout(HANG_S):
        while not await reaches(rack, "k1", "10.10.0.11"):  # the kernel tells of a carrier once a second
            pass
    with pytest.raises(NotFound, match="cable"):
        await rack.cut("k1", "internet")
    with pytest.raises(NotFound, match="there are c1, n1, s1, k1"):
        await rack.cut("k7", None)


async def test_power_failure_and_return(make_rack: RackMaker) -> None:
    rack = make_rack()
    await rack.power_on(COUNTS)
    await rack.host("c1").until("echo")
    await rack.kill("c1", None)
    assert await ask(rack) == b""
    assert (await rack.status())["nodes"][0]["power"] == "off"
    await rack.start(rack.nodes()[0])
    await rack.host("c1").until("echo")
    assert await ask(rack) == b"echo hello"
    assert await reaches(rack, "k1", "10.10.0.11")


async def test_paused_node_is_hung(make_rack: RackMaker) -> None:
    rack = make_rack()
    await rack.power_on(COUNTS)
    await rack.host("c1").until("echo")
    await rack.pause("c1", None, True)
    assert (await rack.status())["nodes"][0]["power"] == "hung"
    await rack.pause("c1", None, False)
    assert await ask(rack) == b"echo hello"
    await rack.pause("c1", "echo", True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await ask(rack)
    await rack.pause("c1", "echo", False)


async def test_two_racks_side_by_side(make_rack: RackMaker) -> None:
    one, other = make_rack(), make_rack()
    await asyncio.gather(one.power_on(COUNTS), other.power_on(COUNTS))
    for rack in (one, other):
        await rack.host("c1").until("echo")
        assert await ask(rack) == b"echo hello"
    await one.down()
    assert await ask(other) == b"echo hello"
    assert await reaches(other, "k1", "10.10.0.11")


async def test_door_keeps_its_port(make_rack: RackMaker) -> None:
    rack = make_rack()
    await rack.power_on(COUNTS)
    port = rack.endpoint("c1")
    for pid in namespace.pids(rack.fabric.namespace):
        await run("kill", "-9", str(pid))
    await rack.power_on(COUNTS)
    await rack.host("c1").until("echo")
    assert rack.endpoint("c1") == port
    assert await ask(rack) == b"echo hello"
    assert port in await run("ss", "-Hltn")


async def test_other_counts_and_foreign_sandboxes_are_refused(make_rack: RackMaker) -> None:
    rack = make_rack()
    await rack.power_on(COUNTS)
    with pytest.raises(Conflict, match="comes first"):
        await rack.power_on({**COUNTS, "computes": 2})
    stranger = Rack(rack.name, rack.directory.parent / "elsewhere")
    with pytest.raises(Conflict, match="elsewhere"):
        await stranger.power_on(COUNTS)
    async with rack.alone():
        with pytest.raises(Conflict, match="another command"):
            async with rack.alone():
                pass


async def test_down_leaves_nothing_and_may_be_repeated(make_rack: RackMaker) -> None:
    rack = make_rack()
    await rack.down()
    await rack.power_on(COUNTS)
    await rack.pause("k1", None, True)
    await rack.kill("s1", None)
    await rack.down()
    assert traces(rack.prefix, rack.directory) == {}
    await rack.down()
    with pytest.raises(NotFound):
        await rack.status()
