"""Elections and hand-overs, of whole controllers on the store in memory."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from controllerd.leadership import key
from controllerd.leadership.elector import StuckTerm
from controllerd.leadership.roster import CLOCK_OFFSET_S
from daemonkit.errors import Conflict, Fenced, NotFound, NotLeader, Unavailable
from tests.controllerd.leadership.house import house, loop, run, told, until


def test_one_of_them_leads_and_the_others_follow() -> None:
    async def story() -> None:
        async with house() as h:
            leader = await h.leader()
            await asyncio.sleep(10)
            assert h.leading == [leader] and leader.reads > 50
            stored = h.store.get(key.LEADER)
            assert stored is not None
            for controller in h.controllers.values():
                assert controller.elector.leader is not None
                assert controller.elector.leader.name == leader.name
                assert controller.elector.leader_revision == stored.create_revision
                assert set(controller.elector.members()) == {"a", "b", "c"}
                assert abs(controller.copy.position.seq - leader.copy.position.seq) < 3

    run(story())


def test_the_next_one_leads_within_ttl_and_a_second() -> None:
    async def story(seed: int) -> float:
        async with house(seed=seed) as h:
            first = await h.leader()
            await asyncio.sleep(3 + h.rng.uniform(0, 3))
            first.kill()
            took_s = await until(lambda: bool(h.leading))
            assert h.leading[0] is not first
            return took_s

    took = [run(story(seed)) for seed in range(40)]
    assert max(took) <= 3 + 1, took


def test_only_a_bootstrapped_copy_campaigns_and_the_others_get_a_snapshot() -> None:
    async def story() -> None:
        async with house(blank="ac") as h:
            leader = await h.leader()
            assert leader.name == "b"
            cluster = h.store.get(key.CLUSTER)
            assert cluster is not None and cluster.value == b"cloud"
            await asyncio.sleep(5)
            for name in "ac":
                assert h.controllers[name].copy.snapshots == 1
                assert abs(h.controllers[name].copy.position.seq - leader.copy.position.seq) < 3

    run(story())


def test_blank_copies_alone_never_lead() -> None:
    async def story() -> None:
        async with house(blank="abc") as h:
            await asyncio.sleep(60)
            assert not any(c.terms for c in h.controllers.values())
            assert h.store.get(key.LEADER) is None and h.store.get(key.CLUSTER) is None

    run(story())


def test_hand_over_takes_well_under_a_second() -> None:
    async def story(seed: int) -> None:
        async with house(seed=seed) as h:
            leader = await h.leader()
            await asyncio.sleep(5)
            other = next(c for c in h.controllers.values() if c is not leader)
            await leader.elector.resign(other.name)
            took_s = await until(lambda: h.leading == [other])
            assert took_s < 0.3
            assert h.store.get(key.SUCCESSOR) is None
            await asyncio.sleep(10)
            assert h.leading == [other] and leader.copy.opened

    for seed in range(10):
        run(story(seed))


def test_hand_over_to_anybody_and_back() -> None:
    async def story() -> None:
        async with house() as h:
            for _ in range(5):
                leader = await h.leader()
                await asyncio.sleep(5)
                await leader.elector.resign()
                assert await until(lambda leader=leader: h.leading not in ([], [leader])) < 0.5  # type: ignore[misc]

    run(story())


def test_the_lease_is_held_while_work_in_flight_is_finished() -> None:
    async def story() -> None:
        async with house() as h:
            leader = await h.leader()
            leader.wind_down_s = 8.0
            await asyncio.sleep(5)
            await leader.elector.resign()
            await asyncio.sleep(7)
            assert h.leading == [leader]
            assert await until(lambda: h.leading not in ([], [leader])) < 2

    run(story())


def test_a_dead_successor_costs_a_second() -> None:
    async def story() -> None:
        async with house() as h:
            leader = await h.leader()
            await asyncio.sleep(5)
            other, third = (c for c in h.controllers.values() if c is not leader)
            other.kill()
            await leader.elector.resign(other.name)
            assert 0.9 < await until(lambda: h.leading == [third]) < 2

    run(story())


def test_an_ended_controller_leaves_at_once() -> None:
    async def story() -> None:
        async with house() as h:
            leader = await h.leader()
            await asyncio.sleep(5)
            await leader.stop()
            assert await until(lambda: h.leading not in ([], [leader])) < 0.5
            await asyncio.sleep(0.1)
            assert leader.name not in h.leading[0].elector.members()
            leader.start()
            await asyncio.sleep(5)
            assert leader.name in h.leading[0].elector.members()

    run(story())


def test_who_leaves_returns_when_another_one_leads() -> None:
    async def story(seed: int) -> None:
        async with house(seed=seed) as h:
            leader = await h.leader()
            await asyncio.sleep(5)
            left_s = loop().time()
            assert await leader.elector.leave()
            assert loop().time() - left_s < 0.4
            (successor,) = h.leading
            assert leader.elector.leader is not None and leader.elector.leader.name == successor.name != leader.name
            assert leader.name not in successor.elector.members() and not leader.copy.opened
            successor.kill()
            await asyncio.sleep(10)
            assert leader not in h.leading  # it still runs, but not for election

    for seed in range(5):
        run(story(seed))


def test_who_is_alone_leaves_at_once() -> None:
    async def story() -> None:
        async with house("a") as h:
            leader = await h.leader()
            await asyncio.sleep(5)
            assert not await leader.elector.leave() and h.leading == [leader]
            await leader.stop()
            assert h.store.get(key.LEADER) is None

    run(story())


def test_when_all_leave_nobody_waits_for_the_others() -> None:
    async def story() -> None:
        async with house() as h:
            leader = await h.leader()
            await asyncio.sleep(5)
            leaving = asyncio.ensure_future(leader.elector.leave())
            others = [c for c in h.controllers.values() if c is not leader]
            await asyncio.gather(*(c.elector.leave() for c in others))
            await asyncio.gather(*(c.stop() for c in others))
            left_s = loop().time()
            assert not await leaving and loop().time() - left_s < 0.5

    run(story())


def test_newer_software_leads_when_all_can_read_what_it_would_migrate_to() -> None:
    """By then every controller has it, or is gone; those that have not go on leading."""

    async def story(seed: int) -> None:
        async with house(seed=seed) as h:
            first = await h.leader()
            await asyncio.sleep(5)
            upgraded, last = (c for c in h.controllers.values() if c is not first)
            for controller in (upgraded, first):
                await controller.elector.leave()
                await controller.stop()
                controller.schema, controller.copy.needed_schema = 2, 2
                controller.start()
                await asyncio.sleep(5)
                assert len(h.leading) == 1 and h.leading[0].schema == 1
            assert h.leading == [last]
            with suppress(Conflict):
                await last.elector.resign(upgraded.name)
            await asyncio.sleep(6)
            assert h.leading == [last]  # it was not taken
            left_s = loop().time()
            assert await last.elector.leave()
            assert loop().time() - left_s < 0.5 and h.leading[0].schema == 2

    for seed in range(5):
        run(story(seed))


def test_newer_software_waits_until_the_registration_of_a_dead_controller_is_over() -> None:
    async def story() -> None:
        async with house("ab") as h:
            leader = await h.leader()
            await asyncio.sleep(5)
            (other,) = (c for c in h.controllers.values() if c is not leader)
            await other.stop()
            other.schema, other.copy.needed_schema = 2, 2
            other.start()
            await asyncio.sleep(5)
            leader.kill()
            await asyncio.sleep(5)
            assert h.leading == []
            await asyncio.sleep(8)
            assert h.leading == [other]

    run(story())


def test_without_quorum_the_leader_stops_and_all_goes_on_when_it_returns() -> None:
    async def story() -> None:
        async with house() as h:
            await h.leader()
            await asyncio.sleep(5)
            h.store.lose_quorum()
            await asyncio.sleep(3)
            assert h.leading == []
            await asyncio.sleep(60)
            assert h.leading == []
            h.store.regain_quorum()
            assert await until(lambda: bool(h.leading)) < 3 + 1.5
            before = max(h.acknowledged)
            await asyncio.sleep(5)
            assert max(h.acknowledged) > before + 20

    run(story())


def test_a_stopped_leader_wakes_up_as_a_follower() -> None:
    async def story() -> None:
        async with house() as h:
            leader = await h.leader()
            await asyncio.sleep(5)
            leader.pause()
            assert await until(lambda: h.leading not in ([], [leader])) < 3 + 1
            await asyncio.sleep(20)
            leader.resume()
            await asyncio.sleep(5)
            assert leader.term is None and len(h.leading) == 1
            assert abs(leader.copy.position.seq - h.leading[0].copy.position.seq) < 3

    run(story())


def test_a_lease_that_could_not_be_given_back_is_given_back_later() -> None:
    async def story() -> None:
        async with house() as h:
            leader = await h.leader()
            await asyncio.sleep(5)
            leader.kv.link.lose_request = lambda: leader.term is None  # from the moment when its term is over
            await leader.elector.resign()
            await until(lambda: leader.term is None)
            await asyncio.sleep(0.5)
            assert h.leading == []
            leader.kv.link.lose_request = lambda: False
            assert await until(lambda: bool(h.leading)) < 1.5

    run(story())


def test_work_that_does_not_end_ends_the_process() -> None:
    async def story() -> None:
        async with house() as h:
            leader = await h.leader()
            await asyncio.sleep(5)
            stubborn = leader.term

            async def never(*_: object) -> None:
                while leader.task is not None:
                    with suppress(asyncio.CancelledError):
                        await asyncio.sleep(1)

            leader.on_end = never
            leader.kv.link.cut()
            assert leader.task is not None
            await asyncio.wait([leader.task], timeout=30)
            assert told(leader.task) == [StuckTerm] and stubborn is not None
            assert h.leading and h.leading[0] is not leader
            leader.task = None
            await asyncio.sleep(2)

    run(story())


def test_a_process_that_is_stopped_while_its_term_winds_down_goes_on() -> None:
    async def story() -> None:
        async with house() as h:
            leader = await h.leader()
            await asyncio.sleep(5)

            async def slow() -> None:
                for _ in range(2):  # so that something is left to do when it continues
                    await asyncio.sleep(1.5)

            leader.on_end = slow
            leader.kv.link.cut()
            assert await until(lambda: leader not in h.leading) < 5
            leader.pause()
            await asyncio.sleep(60)
            leader.resume()
            leader.kv.link.mend()
            await asyncio.sleep(10)
            assert leader.task is not None and not leader.task.done()

    run(story())


def test_an_error_in_earnest_ends_the_process_and_gives_the_lease_back() -> None:
    async def story() -> None:
        async with house() as h:
            leader = await h.leader()
            await asyncio.sleep(5)

            async def fail() -> None:
                raise ExceptionGroup("two", [Fenced("old"), ZeroDivisionError()])

            leader.on_end = fail
            await leader.elector.resign()
            assert leader.task is not None
            await asyncio.wait([leader.task], timeout=30)
            assert told(leader.task) == [ZeroDivisionError]
            leader.task = None
            assert await until(lambda: bool(h.leading)) < 0.5

    run(story())


def test_a_lost_lease_in_a_group_of_errors_is_no_error() -> None:
    async def story() -> None:
        async with house() as h:
            leader = await h.leader()
            await asyncio.sleep(5)

            async def fail() -> None:
                raise ExceptionGroup("two", [Fenced("old"), ExceptionGroup("inner", [Unavailable("log")])])

            leader.on_end = fail
            await leader.elector.resign()
            await asyncio.sleep(5)
            assert leader.task is not None and not leader.task.done() and leader.copy.opened

    run(story())


def test_what_resign_refuses() -> None:
    async def story() -> None:
        async with house() as h:
            leader = await h.leader()
            await asyncio.sleep(5)
            other = next(c for c in h.controllers.values() if c is not leader)
            with pytest.raises(NotLeader) as refused:
                await other.elector.resign()
            assert refused.value.leader == f"{leader.name}:7701"
            with pytest.raises(Conflict):
                await leader.elector.resign(leader.name)
            with pytest.raises(NotFound):
                await leader.elector.resign("nobody")
            leader.kv.link.lose_request = lambda: True
            with pytest.raises(Unavailable):
                await leader.elector.resign(other.name)
            leader.kv.link.lose_request = lambda: False
            await asyncio.sleep(10)
            assert h.leading == [leader]

    run(story())


def shown() -> set[str]:
    """Controllers whose clock the metrics speak of."""
    return {sample.labels["controller"] for metric in CLOCK_OFFSET_S.collect() for sample in metric.samples}


def test_a_clock_that_is_off_is_told_and_changes_nothing() -> None:
    async def story() -> None:
        async with house() as h:
            leader = await h.leader()
            other = next(c for c in h.controllers.values() if c is not leader)
            other.wall_offset_s = -3600.0
            await asyncio.sleep(60)
            assert h.leading == [leader]
            offsets = leader.elector.clock_offsets_s()
            assert round(offsets[other.name]) == -3600
            assert all(abs(offset) < 1 for name, offset in offsets.items() if name != other.name)
            assert other.name in shown()
            other.kill()
            await asyncio.sleep(15)
            assert other.name not in leader.elector.clock_offsets_s() and other.name not in shown()

    run(story())


@pytest.mark.parametrize(("stopped_s", "quiet"), [(1.0, True), (3000.0, True), (200.0, False)])
def test_a_standby_that_stood_still_does_not_take_old_entries_for_new_ones(stopped_s: float, quiet: bool) -> None:
    """The leader writes, and has stopped long before the standby goes on, or writes still: the time is never far behind."""

    async def story() -> None:
        async with house() as h:
            leader = await h.leader()
            standby = next(c for c in h.controllers.values() if c is not leader)
            right_s = standby.runtime.clock.wall_s() - standby.runtime.clock.boottime_s()
            await asyncio.sleep(20)
            assert standby.follower.time.ahead_s == pytest.approx(right_s, abs=0.1)
            standby.pause()
            await asyncio.sleep(min(stopped_s, 99.0))
            leader.writing = not quiet
            await asyncio.sleep(max(0.0, stopped_s - 99.0))
            behind = leader.copy.position.seq - standby.copy.position.seq
            assert behind >= (64 if stopped_s > 99 else 1)
            standby.resume()
            for _ in range(100):
                await asyncio.sleep(0.05)
                assert standby.follower.time.ahead_s in (None, pytest.approx(right_s, abs=2.0))
            assert standby.copy.position.seq >= leader.copy.position.seq - 2
            leader.writing = True
            await asyncio.sleep(5)
            assert standby.follower.time.ahead_s == pytest.approx(right_s, abs=0.1)

    run(story())


def test_idle_standbys_make_few_calls() -> None:
    async def story() -> None:
        async with house() as h:
            await h.leader()
            await asyncio.sleep(5)
            for controller in h.controllers.values():
                controller.writing = False
            await asyncio.sleep(1)
            before = h.store.calls
            await asyncio.sleep(100)
            assert (h.store.calls - before) / 100 < 6  # of all three together, a second

    run(story())


def test_changes_of_the_leader_are_told() -> None:
    async def story() -> None:
        async with house() as h:
            leader = await h.leader()
            await asyncio.sleep(5)
            standby = next(c for c in h.controllers.values() if c is not leader)
            seen: list[str] = []

            async def watch() -> None:
                while True:
                    await standby.elector.changed()
                    seen.append(standby.elector.leader.name if standby.elector.leader else "")

            watching = loop().create_task(watch())
            await leader.elector.resign(standby.name)
            await asyncio.sleep(5)
            watching.cancel()
            assert seen == ["", standby.name]

    run(story())
