"""A cloud is brought back from a backup while its nodes go on: no guest dies, nothing is made twice, all is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from controllerd.app.cloud import Cloud
from controllerd.app.cluster import Cluster
from controllerd.config import ControllerConfig
from controllerd.domain.page import Page
from controllerd.domain.policy import SYSTEM, Caller
from controllerd.leadership.member import Member
from controllerd.terms import Alone
from daemonkit.errors import Conflict, Forbidden, NotLeader, Unavailable
from tests.controllerd.cluster.house import ANEW, House, content_of, house, in_virtual_time, until

STARTS = ("start", "define", "make_disks")


def story(directory: Path, tell: Callable[[House], Coroutine[Any, Any, None]]) -> None:
    async def live() -> None:
        async with house(directory) as h:
            await tell(h)

    in_virtual_time(live)


async def bring_back(h: House, file: Path) -> None:
    await h.kill()
    await h.restore(file)
    await h.start()


def test_what_was_there_is_adopted_and_nothing_is_touched(tmp_path: Path) -> None:
    async def tell(h: House) -> None:
        data = await h.volume("data")
        web, idle = await h.launch("web", data), await h.launch("idle")
        await h.controller.servers.stop(h.ann, idle)
        await h.reach(idle, "STOPPED")
        file = await h.backup()
        before, taps, exports, calls = h.guests(), h.taps(), h.exports(), len(h.calls())
        await bring_back(h, file)
        await h.released()
        await asyncio.sleep(60)
        assert (h.guests(), h.taps(), h.exports()) == (before, taps, exports)
        assert h.calls()[calls:] == []
        assert [(await h.server(s)).state for s in (web, idle)] == ["ACTIVE", "STOPPED"]
        assert await h.differences() == {}
        view = await h.cluster.get(SYSTEM)
        assert view.recovery is not None
        assert (view.recovery.adopted, view.recovery.missing, view.recovery.foreign) == (3, 0, 0)
        await h.delete(web)  # it works as before
        await h.launch("new")

    story(tmp_path, tell)


def test_what_nobody_owns_is_held_until_somebody_lets_go(tmp_path: Path) -> None:
    """One server is made after the backup, one deleted: neither dies, neither is made anew."""

    async def tell(h: House) -> None:
        kept, gone = await h.launch("kept"), await h.launch("gone")
        file = await h.backup()
        late_data = await h.volume("late-data")
        late = await h.launch("late", late_data)
        await h.delete(gone)
        before, taps, exports, calls = h.guests(), h.taps(), h.exports(), len(h.calls())
        assert set(before) == {kept, late} and exports
        await bring_back(h, file)
        await asyncio.sleep(300)
        assert (h.guests(), h.taps(), h.exports()) == (before, taps, exports)
        found = await h.differences()
        assert found["foreign_server"] == [late] and found["missing_server"] == [gone]
        assert found["foreign_volume"] == [late_data] and found["node_held"]
        owners = {d.kind: d.owner for d in (await h.verify.compare()).differences}
        assert {owners["foreign_server"], owners["missing_server"], owners["node_held"]} == {"operator"}
        assert (await h.server(gone)).state == "ERROR" and (await h.server(kept)).state == "ACTIVE"
        with pytest.raises(Unavailable, match="held"):
            await h.order("too early")

        await h.cluster.release(SYSTEM)
        await h.released()
        await asyncio.sleep(60)
        assert h.guests() == before  # also of what nobody owns; its network and disks went
        assert h.taps() < taps and not h.exports()
        assert {call for call in h.calls()[calls:] if call[0] in STARTS} == set()
        assert set(await h.differences()) == {"foreign_server", "foreign_volume", "missing_server"}
        await h.delete(gone)
        assert "missing_server" not in await h.differences()
        await h.launch("new")
        with pytest.raises(Conflict):
            await h.cluster.release(SYSTEM)

    story(tmp_path, tell)


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    async def tell(h: House) -> None:
        await h.launch("kept")
        gone = await h.launch("gone")
        file = await h.backup()
        await h.delete(gone)
        await bring_back(h, file)
        await h.released()
        await asyncio.sleep(10)
        before = await h.rows("SELECT id, state, power, node_id, fault_reason FROM server ORDER BY id")
        events = len(await h.rows("SELECT 1 FROM event WHERE kind IN ('server.adopted', 'server.missing')"))
        calls = len(h.calls())
        await h.kill()
        await h.start()
        await asyncio.sleep(120)
        assert await h.rows("SELECT id, state, power, node_id, fault_reason FROM server ORDER BY id") == before
        assert len(await h.rows("SELECT 1 FROM event WHERE kind IN ('server.adopted', 'server.missing')")) == events == 2
        assert len(h.calls()) == calls
        await bring_back(h, file)  # the whole restore again
        await h.released()
        await asyncio.sleep(60)
        assert await h.rows("SELECT id, state, power, node_id, fault_reason FROM server ORDER BY id") == before
        assert len(h.calls()) == calls

    story(tmp_path, tell)


def test_power_and_disks_are_as_they_are_now_not_as_they_were(tmp_path: Path) -> None:
    """Started, stopped, attached and detached since the backup: the nodes are right."""

    async def tell(h: House) -> None:
        data, other = await h.volume("data"), await h.volume("other")
        stops, starts, loses = await h.launch("stops"), await h.launch("starts"), await h.launch("loses", data)
        await h.controller.servers.stop(h.ann, starts)
        await h.reach(starts, "STOPPED")
        file = await h.backup()
        await h.controller.servers.start(h.ann, starts)
        await h.controller.servers.stop(h.ann, stops)
        await h.reach(starts, "ACTIVE")
        await h.reach(stops, "STOPPED")
        await h.controller.volumes.detach(h.ann, loses, data)
        await until(lambda: _free(h, data), "the detachment")
        before, calls = h.guests(), len(h.calls())
        await bring_back(h, file)
        await h.released()
        await asyncio.sleep(60)
        assert h.guests() == before and h.calls()[calls:] == [] and not h.exports()
        assert [(await h.server(s)).state for s in (stops, starts, loses)] == ["STOPPED", "ACTIVE", "ACTIVE"]
        assert await _free(h, data) and await _free(h, other)
        assert await h.differences() == {}

    story(tmp_path, tell)


async def _free(h: House, volume_id: str) -> bool:
    return (await h.controller.volumes.get(h.ann, volume_id)).attachment is None


def test_what_was_under_way_ends_as_it_ended_on_the_node(tmp_path: Path) -> None:
    """Backups at every moment of a launch and of a deletion."""

    async def tell(h: House) -> None:
        made, ended = [], []
        for number in range(6):
            server_id = await h.order(f"s{number}")
            await asyncio.sleep(number * 0.1)
            made.append((server_id, await h.backup()))
            await h.reach(server_id, "ACTIVE")
        for server_id, _file in made[:3]:
            await h.controller.servers.delete(h.ann, server_id)
            ended.append(await h.backup())
            await until(lambda s=server_id: _gone(h, s), "its end")  # type: ignore[misc]
        before = h.guests()
        for _server_id, file in made[3:]:
            await bring_back(h, file)
            await h.cluster.release(SYSTEM)
            await h.released()
            await asyncio.sleep(30)
            assert h.guests() == before
        survivors = {server_id for server_id, _file in made[3:]}
        await bring_back(h, ended[-1])
        await h.released()
        await asyncio.sleep(60)
        assert h.guests() == before and {i for i, s in h.guests().items() if s == "running"} == survivors
        rows = {row["id"]: row["state"] for row in await h.rows("SELECT id, state FROM server")}
        assert rows == dict.fromkeys(survivors, "ACTIVE")

    story(tmp_path, tell)


async def _gone(h: House, server_id: str) -> bool:
    return not await h.rows("SELECT 1 FROM server WHERE id = ?", server_id)


def test_a_node_that_comes_late_is_compared_by_itself(tmp_path: Path) -> None:
    async def tell(h: House) -> None:
        first, second = await h.launch("a"), await h.launch("b")
        file = await h.backup()
        node = (await h.server(second)).node_name
        assert node != (await h.server(first)).node_name
        await h.delete(second)
        h.rack.link(node).cut()
        await bring_back(h, file)
        await until(lambda: _released_but(h, node), "the release of the others")
        assert (await h.server(second)).state == "UNKNOWN"
        await h.launch("meanwhile")
        h.rack.link(node).mend()
        await h.released()
        await asyncio.sleep(10)
        assert (await h.server(second)).state == "ERROR" and second not in h.guests()
        assert set(await h.differences()) == {"missing_server"}

    story(tmp_path, tell)


async def _released_but(h: House, node: str) -> bool:
    rows = await h.rows("SELECT DISTINCT n.name FROM hold h JOIN node n ON n.id = h.node_id")
    return [row["name"] for row in rows] == [node]


def test_nodes_that_forgot_what_they_were_told_keep_their_guests(tmp_path: Path) -> None:
    """Blank ledgers, too: what they run is told as foreign, and is known all the same."""

    async def tell(h: House) -> None:
        data = await h.volume("data")
        web, idle = await h.launch("web", data), await h.launch("idle")
        await h.controller.servers.stop(h.ann, idle)
        await h.reach(idle, "STOPPED")
        file = await h.backup()
        await h.kill()
        for node in ("k1", "k2", "s1"):
            daemon = h.rack.daemons_of(node)[-1]
            await h.rack.kill(daemon)
            for ledger in (tmp_path / daemon).glob("ledger.db*"):
                ledger.unlink()
            await h.rack.start(daemon)
        before, calls = h.guests(), len(h.calls())
        await h.restore(file)
        await h.start()
        await h.released()
        await asyncio.sleep(60)
        assert h.guests() == before and h.calls()[calls:] == []
        assert [(await h.server(s)).state for s in (web, idle)] == ["ACTIVE", "STOPPED"]
        assert not await _free(h, data) and await h.differences() == {}

    story(tmp_path, tell)


def test_routers_disks_and_images_of_nobody_are_held_too(tmp_path: Path) -> None:
    async def tell(h: House) -> None:
        data = await h.volume("data")
        web = await h.launch("web")
        file = await h.backup()
        external = await h.controller.networks.create(SYSTEM, "internet", False, True, ANEW)
        await h.controller.subnets.create(SYSTEM, external.network.id, "", "203.0.113.0/24", ANEW)
        late = (await h.controller.routers.create(h.ann, "late", external.network.id, True, ANEW)).router.id
        await h.controller.volumes.attach(h.ann, web, data, ANEW)
        image = await h.controller.images.create(SYSTEM, "late", "raw", True, 0, 0, {}, ANEW)
        await h.controller.images.upload(SYSTEM, image.id, content_of(b"another" * 100))
        await until(lambda: _attached(h, data), "the disk")
        await asyncio.sleep(5)
        blobs, exports = len(h.rack.blobs.stores["s1:7730"].held), h.exports()
        await bring_back(h, file)
        await asyncio.sleep(1000)
        found = await h.differences()
        assert found["foreign_router"] == [late] and len(found["foreign_attachment"]) == 1 and "node_held" in found
        assert h.exports() == exports and len(h.rack.blobs.stores["s1:7730"].held) == blobs
        assert h.rack.machines[(await h.server(web)).node_name].domains[web].disks
        await h.cluster.release(SYSTEM)
        await h.released()
        await asyncio.sleep(1000)
        assert await h.differences() == {} and not h.exports()
        assert len(h.rack.blobs.stores["s1:7730"].held) == blobs - 1

    story(tmp_path, tell)


async def _attached(h: House, volume_id: str) -> bool:
    link = (await h.controller.volumes.get(h.ann, volume_id)).attachment
    return link is not None and link.state == "ATTACHED"


def test_a_node_that_joined_after_the_backup_is_held_when_it_joins_again(tmp_path: Path) -> None:
    async def tell(h: House) -> None:
        file = await h.backup()
        h.rack.nodes["k3"] = ("compute", "edge")
        await h.rack.join(h.controller, "k3")
        for daemon in h.rack.daemons_of("k3"):
            await h.rack.start(daemon)
        for node in ("k1", "k2"):
            await h.controller.nodes.set_enabled(SYSTEM, node, False)

        async def there() -> bool:
            return bool(await h.rows("SELECT 1 FROM agent a JOIN node n ON n.id = a.node_id WHERE n.name = 'k3' AND connected"))

        await until(there, "the new node")
        late = await h.launch("late")
        assert (await h.server(late)).node_name == "k3"
        taps = h.taps()
        await bring_back(h, file)
        await h.released()
        await asyncio.sleep(30)
        assert h.taps() == taps and late in h.guests()
        for daemon in h.rack.daemons_of("k3"):
            await h.rack.kill(daemon)
        await h.rack.join(h.controller, "k3")
        for daemon in h.rack.daemons_of("k3"):
            await h.rack.start(daemon)
        await asyncio.sleep(120)
        found = await h.differences()
        assert found["foreign_server"] == [late] and len(found["node_held"]) == 1
        assert h.taps() == taps
        await h.cluster.release(SYSTEM)
        await h.released()
        await asyncio.sleep(30)
        assert h.guests()[late] == "running" and not h.taps()

    story(tmp_path, tell)


class Deposed(Alone):
    async def transfer(self, successor: str) -> None:
        raise NotLeader("c2:7701", 7)


async def test_a_hand_over_in_doubt_is_not_told_as_not_done(cloud: Cloud, admin: Caller, tmp_path: Path) -> None:
    """Whoever forwards calls would send it to the next leader, which would hand over, too."""
    membership = Deposed(ControllerConfig(data_dir=tmp_path), cloud.runtime)
    cluster = Cluster(cloud, membership, None, Member("c1", "", "", "", 1), tmp_path, dict)  # type: ignore[arg-type]
    with pytest.raises(Unavailable):
        await cluster.transfer(admin, "")


async def test_the_verbs_are_for_admins(cloud: Cloud, member: Caller, tmp_path: Path) -> None:
    cluster = Cluster(cloud, None, None, Member("c1", "", "", "", 1), tmp_path, dict)  # type: ignore[arg-type]
    for call in (
        cluster.get(member),
        cluster.transfer(member, ""),
        cluster.release(member),
        cluster.differences(member, Page()),
    ):
        with pytest.raises(Forbidden):
            await call
    with pytest.raises(Forbidden):
        await anext(aiter(cluster.backup(member)))
