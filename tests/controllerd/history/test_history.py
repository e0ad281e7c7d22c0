"""Events and tasks looked back on, watched, and paged through while others write."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from controllerd.app.cloud import Cloud, Once
from controllerd.app.flavor import Flavors
from controllerd.app.history import History
from controllerd.app.quota import Quotas
from controllerd.domain.event import Event
from controllerd.domain.page import Page
from controllerd.domain.policy import Caller
from controllerd.store import event, idempotency, quota
from controllerd.store.database import Database, Tx
from controllerd.tasks.operation import Operation, start
from daemonkit.errors import Forbidden, InvalidArgument, NotFound, QuotaExceeded
from tests.controllerd.conftest import ManualClock

ANEW = Once("", "", "")


async def record(database: Database, project_id: str, *resources: str) -> None:
    def write(tx: Tx) -> None:
        for resource_id in resources:
            event.record(tx, "thing.done", project_id, resource_id)

    await database.write(write)


async def test_a_watch_tells_each_event_once_in_order(cloud: Cloud, member: Caller) -> None:
    history, seen = History(cloud), []

    async def watch(after_seq: int, resource_id: str = "") -> None:
        async for item in history.watch(member, after_seq, resource_id, False):
            seen.append(item)

    await record(cloud.database, member.project_id, "before")
    tasks = [asyncio.create_task(watch(0))]
    await asyncio.sleep(0.01)
    numbers = [f"r{n}" for n in range(1200)]
    for n in range(0, 1200, 100):
        await record(cloud.database, member.project_id, *numbers[n : n + 100])
        await record(cloud.database, "another project", "theirs")
    await asyncio.sleep(0.05)
    assert [e.resource_id for e in seen] == numbers
    seq, seen[:] = seen[599].seq, []
    tasks += [asyncio.create_task(watch(seq)), asyncio.create_task(watch(0, "r1"))]
    await asyncio.sleep(0.05)
    await record(cloud.database, member.project_id, "r1")
    await asyncio.sleep(0.05)
    assert len(seen) == 600 + 1 + 1 + 1 and {e.resource_id for e in seen[-3:]} == {"r1"}
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert not history._news


async def test_events_page_back_while_new_ones_come(cloud: Cloud, member: Caller) -> None:
    history = History(cloud)
    await record(cloud.database, member.project_id, *(f"r{n}" for n in range(250)))
    found: list[Event] = []
    token = ""
    while True:
        page = await history.list_events(member, "", "", "", False, Page.parse(60, token))
        found += page.items
        await record(cloud.database, member.project_id, "newer")
        token = page.next_token
        if not token:
            break
    assert [e.resource_id for e in found] == [f"r{n}" for n in reversed(range(250))]


async def test_pages_forth_while_rows_come_and_go(cloud: Cloud, member: Caller, clock: ManualClock) -> None:
    """What was there all the time is told exactly once."""
    flavors = Flavors(cloud)
    await cloud.database.write(lambda tx: quota.set_limit(tx, member.project_id, "flavors", -1))
    made = []
    for n in range(100):
        clock.forward(0.001)
        made.append((await flavors.create(member, f"f{n}", 1, 512, 1, "", False, ANEW)).id)
    seen: list[str] = []
    token, extra = "", 0
    while True:
        page = await flavors.list(member, "", Page.parse(7, token))
        seen += [f.id for f in page.items]
        clock.forward(0.001)
        extra += 1
        if extra < 10:
            await flavors.create(member, f"new{extra}", 1, 512, 1, "", False, ANEW)
            await flavors.delete(member, made[extra * 3])
        token = page.next_token
        if not token:
            break
    gone = {made[n * 3] for n in range(1, 10)}
    assert len(seen) == len(set(seen)) and set(made) - gone <= set(seen)


@pytest.mark.parametrize("token", ["x", "e30=", "WzEsMl0=", "W05hTiwieCJd", "WzFlOTk5LCJ4Il0=", "[" * 600, "é", "bnVsbA=="])
def test_page_tokens_of_others(token: str) -> None:
    """{}, [1,2], [NaN,"x"], [1e999,"x"], null..."""
    with pytest.raises(InvalidArgument):
        Page.parse(10, token)
    with pytest.raises(InvalidArgument):
        Page.parse(1001, "")


async def test_tasks_are_the_projects(cloud: Cloud, member: Caller, admin: Caller, caller) -> None:  # type: ignore[no-untyped-def]
    stranger, history = await caller("beta"), History(cloud)
    operation = Operation("op", 60.0, ())
    tasks = [
        await cloud.database.write(lambda tx, n=n: start(tx, operation, member.project_id, "thing", f"r{n}")) for n in range(25)
    ]
    assert (await history.get_task(member, tasks[0].id)).resource_id == "r0"
    with pytest.raises(NotFound):
        await history.get_task(stranger, tasks[0].id)
    with pytest.raises(Forbidden):
        await history.list_tasks(member, "", False, True, Page())
    assert not (await history.list_tasks(stranger, "", False, False, Page())).items
    assert len((await history.list_tasks(admin, "", True, True, Page())).items) == 25
    found, token = [], ""
    while True:
        page = await history.list_tasks(member, "", True, False, Page.parse(10, token))
        found += [t.id for t in page.items]
        token = page.next_token
        if not token:
            break
    assert len(found) == len(set(found)) == 25
    assert [t.id for t in (await history.list_tasks(member, "r7", False, False, Page())).items] == [tasks[7].id]


async def test_fifty_create_where_ten_are_allowed(cloud: Cloud, member: Caller) -> None:
    flavors = Flavors(cloud)
    await cloud.database.write(lambda tx: quota.set_limit(tx, member.project_id, "flavors", 10))
    results = await asyncio.gather(
        *(flavors.create(member, f"f{n}", 1, 512, 1, "", False, ANEW) for n in range(50)), return_exceptions=True
    )
    assert sum(isinstance(r, QuotaExceeded) for r in results) == 40
    assert len((await flavors.list(member, "", Page())).items) == 10


async def test_quotas_are_seen_and_set(cloud: Cloud, member: Caller, admin: Caller, caller) -> None:  # type: ignore[no-untyped-def]
    quotas, stranger = Quotas(cloud), await caller("beta")
    with pytest.raises(Forbidden):
        await quotas.update(member, "", {"servers": 5})
    with pytest.raises(NotFound):
        await quotas.get(stranger, member.project_id)
    for limits, field in (
        ({"kings": 1}, "limits"),
        ({"servers": -2}, "limits.servers"),
        ({"servers": 1 << 41}, "limits.servers"),
    ):
        with pytest.raises(InvalidArgument) as refused:
            await quotas.update(admin, member.project_id, limits)
        assert refused.value.field == field
    await quotas.update(admin, member.project_id, {"servers": 5, "flavors": -1})
    _project, items = await quotas.get(member, "")
    assert {i.resource: i.limit for i in items}["servers"] == 5
    with pytest.raises(NotFound):
        await quotas.update(admin, "no such project", {"servers": 5})


async def test_keys_are_forgotten_after_a_day(cloud: Cloud, member: Caller, clock: ManualClock) -> None:
    flavors, once = Flavors(cloud), Once("k", "m", "f")
    first = await flavors.create(member, "a", 1, 512, 1, "", False, once)
    with suppress(NotFound):
        await flavors.delete(member, first.id)
    with pytest.raises(NotFound):  # a retry tells what became of it
        await flavors.create(member, "a", 1, 512, 1, "", False, once)
    clock.forward(idempotency.KEPT_S + 1)
    assert await cloud.database.write(lambda tx: idempotency.forget_old(tx, 10)) == 1
    assert (await flavors.create(member, "a", 1, 512, 1, "", False, once)).id != first.id
