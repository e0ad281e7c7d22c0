"""`advance`: every way in which a step can end, at every step, each pass in a transaction of its own.

The steps write one row each; so what of a task's work is left is what is in the store.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controllerd.domain.task import DONE, FAILED, RUNNING, UNWINDING, Task
from controllerd.store import agent_task
from controllerd.store.database import Database, Tx
from controllerd.store.task import TASKS
from controllerd.tasks.engine import advance
from controllerd.tasks.operation import Operation, Step, overtake, start
from daemonkit.errors import Conflict, NodeFailed, QuotaExceeded, Unavailable

STEPS = ("one", "two", "three")
DEADLINE_S = 100.0


@dataclass
class World:
    """What happens: (step, act) -> errors to raise, or False answers to give, one a call. `calls`: what was asked."""

    raises: dict[tuple[str, str], list[Exception]] = field(default_factory=dict)
    waits: dict[tuple[str, str], int] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)

    def act(self, step: str, act: str) -> bool:
        self.calls.append((step, act))
        errors = self.raises.get((step, act), [])
        if errors:
            raise errors[0].error if isinstance(errors[0], Always) else errors.pop(0)
        left = self.waits.get((step, act), 0)
        self.waits[step, act] = left - 1
        return left <= 0


class Always(Exception):
    def __init__(self, error: Exception) -> None:
        self.error = error


class Written(Step):
    def __init__(self, name: str, world: World) -> None:
        self.name, self._world = name, world

    def do(self, tx: Tx, task: Task) -> None:
        tx.run("INSERT OR REPLACE INTO quota_limit VALUES (?, ?, 1)", task.resource_id, self.name)
        self._world.act(self.name, "do")

    def done(self, tx: Tx, task: Task) -> bool:
        return self._world.act(self.name, "done")

    def undo(self, tx: Tx, task: Task) -> None:
        tx.run("DELETE FROM quota_limit WHERE project_id = ? AND resource = ?", task.resource_id, self.name)
        self._world.act(self.name, "undo")

    def undone(self, tx: Tx, task: Task) -> bool:
        return self._world.act(self.name, "undone")


@dataclass(frozen=True)
class Recorded(Operation):
    world: World

    def finish(self, tx: Tx, task: Task) -> None:
        tx.run("INSERT OR REPLACE INTO quota_limit VALUES (?, 'finish', 1)", task.resource_id)
        self.world.act("", "finish")

    def fail(self, tx: Tx, task: Task) -> None:
        self.world.act("", "fail")


def operation(world: World) -> Recorded:
    return Recorded("op", DEADLINE_S, tuple(Written(name, world) for name in STEPS), world)


async def left(database: Database, resource_id: str = "r") -> list[str]:
    return await database.read(
        lambda tx: [r["resource"] for r in tx.each("SELECT resource FROM quota_limit WHERE project_id = ?", resource_id)]
    )


async def begin(database: Database, world: World, resource_id: str = "r") -> str:
    return (await database.write(lambda tx: start(tx, operation(world), "p", "server", resource_id))).id


async def once(database: Database, world: World, task_id: str) -> Task:
    """One pass, from what is stored: as if the process had ended before it."""
    return await database.write(lambda tx: advance(tx, operation(world), TASKS.get(tx, task_id)))


async def to_end(database: Database, world: World, task_id: str, passes_max: int = 30) -> Task:
    for _ in range(passes_max):
        task = await once(database, world, task_id)
        assert task == await database.read(lambda tx: TASKS.get(tx, task_id))
        if not task.unfinished:
            return task
    raise AssertionError(f"no end: {task}")


async def test_steps_that_are_ready_run_in_one_transaction(database: Database) -> None:
    world = World()
    task = await once(database, world, await begin(database, world))
    assert task.state == DONE and tuple(task.step_times) == STEPS
    assert sorted(await left(database)) == sorted([*STEPS, "finish"])
    assert [c for c in world.calls if c[1] == "do"] == [(name, "do") for name in STEPS]


@pytest.mark.parametrize("step", STEPS)
async def test_waiting_does_not_do_again(database: Database, step: str) -> None:
    world = World(waits={(step, "done"): 3})
    task_id = await begin(database, world)
    for _ in range(3):
        task = await once(database, world, task_id)
        assert (task.state, STEPS[task.step], task.entered) == (RUNNING, step, True)
    assert (await once(database, world, task_id)).state == DONE
    assert Counter(world.calls)[step, "do"] == 1


@pytest.mark.parametrize(("step", "act"), list(itertools.product(STEPS, ("do", "done"))))
async def test_a_failure_at_each_step_leaves_nothing(database: Database, step: str, act: str) -> None:
    world = World(raises={(step, act): [NodeFailed("broken")]})
    task = await to_end(database, world, await begin(database, world))
    assert (task.state, task.fault_reason, task.fault_message) == (FAILED, "NODE_FAILED", "broken")
    assert await left(database) == []
    undone = [name for name, a in world.calls if a == "undo"]
    assert undone == list(reversed(STEPS[: STEPS.index(step)]))  # its own writes went with its transaction
    assert world.calls[-1] == ("", "fail")


@pytest.mark.parametrize("step", STEPS)
async def test_a_failure_after_waiting_undoes_that_step_too(database: Database, step: str) -> None:
    world = World(waits={(step, "done"): 1})
    task_id = await begin(database, world)
    await once(database, world, task_id)
    world.raises[step, "done"] = [NodeFailed("broken")]
    assert (await to_end(database, world, task_id)).state == FAILED
    assert await left(database) == []
    assert [name for name, a in world.calls if a == "undo"] == list(reversed(STEPS[: STEPS.index(step) + 1]))


@pytest.mark.parametrize("step", STEPS)
async def test_the_deadline(database: Database, clock, step: str) -> None:
    world = World(waits={(step, "done"): 99})
    task_id = await begin(database, world)
    await once(database, world, task_id)
    clock.forward(DEADLINE_S)
    assert (await once(database, world, task_id)).state == RUNNING
    clock.forward(0.5)
    task = await to_end(database, world, task_id)
    assert (task.state, task.fault_reason) == (FAILED, "DEADLINE_EXCEEDED") and step in task.fault_message
    assert await left(database) == []


async def test_what_is_done_when_it_is_asked_too_late_counts(database: Database, clock) -> None:
    """A controller that was away while a guest was started must not remove it."""
    world = World(waits={("three", "done"): 1})
    task_id = await begin(database, world)
    await once(database, world, task_id)
    clock.forward(DEADLINE_S * 10)
    assert (await once(database, world, task_id)).state == DONE


@pytest.mark.parametrize("act", ["do", "done"])
@pytest.mark.parametrize("step", STEPS)
async def test_unavailable_is_tried_again_until_the_deadline(database: Database, clock, step: str, act: str) -> None:
    world = World(raises={(step, act): [Unavailable("not now"), Unavailable("not now"), Always(Unavailable("never"))]})
    task_id = await begin(database, world)
    for _ in range(3):
        task = await once(database, world, task_id)
        assert (task.state, STEPS[task.step], task.entered) == (RUNNING, step, False)
        assert step not in await left(database)  # what `do` wrote went too, so `do` must run again
    clock.forward(DEADLINE_S + 1)
    task = await to_end(database, world, task_id)
    assert (task.state, task.fault_reason) == (FAILED, "DEADLINE_EXCEEDED") and "never" in task.fault_message
    assert await left(database) == []


async def test_unavailable_at_first(database: Database) -> None:
    world = World(raises={("two", "do"): [Unavailable("not now"), Unavailable("not now")]})
    world.raises["two", "do"].append(Always(Unavailable("x")))
    task_id = await begin(database, world)
    await once(database, world, task_id)
    world.raises.clear()
    assert (await once(database, world, task_id)).state == DONE
    assert sorted(await left(database)) == sorted([*STEPS, "finish"])


async def test_a_finish_that_fails_unwinds(database: Database) -> None:
    world = World(raises={("", "finish"): [QuotaExceeded("x", 1, 1, 1)]})
    task = await to_end(database, world, await begin(database, world))
    assert (task.state, task.fault_reason) == (FAILED, "QUOTA_EXCEEDED") and "limit: 1" in task.fault_details
    assert await left(database) == []
    assert [name for name, a in world.calls if a == "undo"] == list(reversed(STEPS))


async def test_our_own_bugs_tell_the_tenant_nothing(database: Database) -> None:
    world = World(raises={("two", "do"): [KeyError("/etc/secret")]})
    task = await to_end(database, world, await begin(database, world))
    assert (task.fault_reason, task.fault_message) == ("INTERNAL", "internal error")


@pytest.mark.parametrize("act", ["undo", "undone"])
@pytest.mark.parametrize("step", STEPS)
async def test_an_undo_that_raises_is_tried_again_and_keeps_what_came_before(database: Database, step: str, act: str) -> None:
    world = World(raises={("", "finish"): [NodeFailed("x")], (step, act): [KeyError("bug"), KeyError("bug"), Unavailable("y")]})
    task_id = await begin(database, world)
    for _ in range(3):
        task = await once(database, world, task_id)
        assert (task.state, STEPS[task.step]) == (UNWINDING, step)
    world.raises.clear()
    assert (await to_end(database, world, task_id)).state == FAILED
    assert await left(database) == []
    later = STEPS[STEPS.index(step) + 1 :]
    assert all(Counter(world.calls)[name, "undo"] == 1 for name in later)


@pytest.mark.parametrize("step", STEPS)
async def test_undone_is_waited_for_beyond_the_deadline(database: Database, clock, step: str) -> None:
    world = World(raises={("", "finish"): [NodeFailed("x")]}, waits={(step, "undone"): 5})
    task_id = await begin(database, world)
    clock.forward(DEADLINE_S * 2)
    for _ in range(5):
        task = await once(database, world, task_id)
        assert (task.state, STEPS[task.step], task.entered) == (UNWINDING, step, False)
    assert (await to_end(database, world, task_id)).state == FAILED
    assert Counter(world.calls)[step, "undo"] == 1


async def test_a_fail_that_raises_is_tried_again(database: Database) -> None:
    world = World(raises={("one", "do"): [NodeFailed("x")], ("", "fail"): [KeyError("bug"), KeyError("bug")]})
    task_id = await begin(database, world)
    assert (await once(database, world, task_id)).state == UNWINDING
    assert (await once(database, world, task_id)).state == UNWINDING
    world.raises.clear()
    task = await once(database, world, task_id)
    assert (task.state, task.step) == (FAILED, 0)
    events = await database.read(lambda tx: tx.all("SELECT kind, message FROM event"))
    assert events == [{"kind": "server.task_failed", "message": "x"}]


async def test_one_unfinished_task_a_resource(database: Database) -> None:
    world = World(waits={("one", "done"): 9})
    task_id = await begin(database, world)
    with pytest.raises(Conflict) as refused:
        await begin(database, world)
    assert refused.value.metadata["task_id"] == task_id
    await database.write(lambda tx: agent_task.order(tx, task_id, "n", "computed", b"", 0.0))
    assert (await database.write(lambda tx: overtake(tx, "r"))).id == task_id
    assert await database.write(lambda tx: overtake(tx, "r")) is None
    stored = await database.read(lambda tx: TASKS.get(tx, task_id))
    assert (stored.state, stored.fault_reason) == (FAILED, "OVERTAKEN")
    assert not await database.read(lambda tx: agent_task.outstanding(tx, "n", "computed"))
    await begin(database, World())


ACTS = st.sampled_from(["do", "done", "undo", "undone", "finish", "fail"])
TROUBLE = st.sampled_from(["unavailable", "fault", "bug"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    troubles=st.lists(st.tuples(st.sampled_from(STEPS), ACTS, TROUBLE), max_size=6),
    waits=st.lists(st.tuples(st.sampled_from(STEPS), st.sampled_from(["done", "undone"]), st.integers(1, 3)), max_size=3),
    late=st.booleans(),
)
async def test_whatever_happens_it_ends_whole_or_with_nothing_left(database: Database, clock, troubles, waits, late) -> None:
    world = World(waits={(step, act): times for step, act, times in waits})
    made = {"unavailable": Unavailable("u"), "fault": NodeFailed("f"), "bug": KeyError("b")}
    for step, act, kind in troubles:
        key = ("" if act in ("finish", "fail") else step, act)
        world.raises.setdefault(key, []).append(made[kind])
    resource_id = database._runtime.new_id()
    task_id = await begin(database, world, resource_id)
    if late:
        clock.forward(DEADLINE_S + 1)
    task = await to_end(database, world, task_id, passes_max=60)
    assert sorted(await left(database, resource_id)) == (sorted([*STEPS, "finish"]) if task.state == DONE else [])
