"""The agent's session against a scripted controller, over the network in memory and under a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from daemonkit import session as session_module
from daemonkit.desired import encode
from daemonkit.errors import Forbidden, NotLeader, OutOfSpace, SkyrackError, Unavailable
from daemonkit.ledger import Ledger
from daemonkit.tls import Identity
from daemonkit.transport import ControllerStream
from skyrack.v1 import agent_pb2
from tests.daemonkit import scripted, virtual
from tests.daemonkit.scripted import Controller, delta, house, samples, server, task


def test_welcome_report_heartbeat_and_desired(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            controller = Controller()
            h.network.listen("c1:1", controller.serve)
            await asyncio.sleep(10)
            assert controller.hellos[0].node == "node-1" and controller.hellos[0].boot_id == "boot"
            assert controller.messages[0].report.whole and controller.messages[0].report.objects[0].id == "a"
            assert len(controller.of("heartbeat")) >= 2
            await controller.push(desired=delta(0, 1, [server("x")], put=[server("x")]))
            await controller.push(desired=delta(1, 2, [server("y")], put=[server("y")], remove=["server/x"]))
            await asyncio.sleep(1)
            assert h.agent.seen == [(0, set()), (1, {"server/x"}), (2, {"server/x", "server/y"})]
            assert await h.ledger.load_desired() == (1, 2, {"server/y": encode(server("y"))})

    virtual.run(story())


def test_restart_offers_what_it_holds(tmp_path: Path) -> None:
    async def first() -> None:
        async with house(tmp_path) as h:
            controller = Controller(epoch=4)
            h.network.listen("c1:1", controller.serve)
            await asyncio.sleep(10)
            await controller.push(desired=delta(0, 1, [server("x")], put=[server("x")]))
            await asyncio.sleep(1)

    async def second() -> None:
        async with house(tmp_path) as h:
            assert h.agent.seen == [(1, {"server/x"})]
            controller = Controller(epoch=5)
            h.network.listen("c1:1", controller.serve)
            await asyncio.sleep(10)
            hello = controller.hellos[0]
            assert (hello.highest_epoch, hello.desired_epoch, hello.desired_generation) == (4, 4, 1)
            await controller.push(desired=delta(0, 9, [server("x")], same=True))
            await asyncio.sleep(1)
            assert (h.session.mirror.epoch, h.session.mirror.generation) == (5, 9)
            assert (await h.ledger.load_desired())[:2] == (5, 9)

    virtual.run(first())
    virtual.run(second())


def test_a_delta_that_does_not_fit_asks_for_the_whole(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            controller = Controller()
            h.network.listen("c1:1", controller.serve)
            await asyncio.sleep(10)
            await controller.push(desired=delta(7, 8, [server("x")], put=[server("x")]))
            await asyncio.sleep(1)
            assert len(controller.of("resync")) == 1 and h.session.mirror.generation == 0
            await controller.push(desired=delta(0, 8, [server("x")], put=[server("x", cpus=2)]))
            await asyncio.sleep(20)
            assert len(controller.of("resync")) == 1  # a whole that contradicts itself ends the session instead
            assert len(controller.sessions) == 2 and h.session.mirror.generation == 0

    virtual.run(story())


def test_tasks_run_once_and_results_survive_lost_acknowledgements(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            controller = Controller()
            controller.acknowledge = False
            h.network.listen("c1:1", controller.serve)
            await asyncio.sleep(5)
            for name, kind in (("t1", "fine"), ("t1", "fine"), ("t2", "slow"), ("t2", "slow"), ("t3", "bug"), ("t4", "none")):
                await controller.push(task=task(name, kind))
            await asyncio.sleep(1)
            h.network.close("c1:1")
            h.agent.finish.set()
            await asyncio.sleep(1)
            h.network.listen("c1:1", controller.serve)
            controller.messages.clear()
            controller.acknowledge = True
            await asyncio.sleep(20)
            results = {m.task_result.task_id: m.task_result for m in controller.of("task_result")}
            assert {name: (r.ok, r.reason) for name, r in results.items()} == {
                "t1": (True, ""), "t2": (True, ""), "t3": (False, "FAILED"), "t4": (False, "NOT_FOUND"),
            }  # fmt: skip
            assert sorted(h.agent.ran) == ["t1", "t2", "t3", "t4"]
            assert await h.ledger.results() == []
            late = task("t5")
            late.remaining_ms = 0
            await controller.push(task=late)
            await asyncio.sleep(1)
            assert (
                controller.messages[-1].task_result.reason == "DEADLINE"
                or controller.of("task_result")[-1].task_result.reason == "DEADLINE"
            )
            assert "t5" not in h.agent.ran

    virtual.run(story())


def test_a_task_is_cancelled_at_its_deadline(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            controller = Controller()
            h.network.listen("c1:1", controller.serve)
            await asyncio.sleep(5)
            slow = task("t", "slow")
            slow.deadline.FromSeconds(1)  # of a clock that is not ours
            slow.remaining_ms = 60_000
            await controller.push(task=slow)
            await asyncio.sleep(50)
            assert controller.of("task_result") == []
            await asyncio.sleep(50)
            assert [m.task_result.reason for m in controller.of("task_result")] == ["DEADLINE"]

    virtual.run(story())


def test_a_lower_epoch_is_fenced_for_ever(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            controller = Controller(epoch=7)
            h.network.listen("c1:1", controller.serve)
            await asyncio.sleep(5)
            await controller.push(epoch=6, task=task("old"))
            await asyncio.sleep(20)
            assert len(controller.sessions) == 2 and h.agent.ran == []
            controller.epoch = 6
            h.network.close("c1:1")
            h.network.listen("c1:1", controller.serve)
            await asyncio.sleep(60)
            assert not h.session.connected.is_set() and len(controller.hellos) > 3
            assert await h.ledger.highest_epoch() == 7

    virtual.run(story())


def test_not_leader_leads_to_the_leader_and_no_ring_spins(tmp_path: Path) -> None:
    async def story() -> None:
        dialled: list[str] = []

        def standby(address: str, leader: str) -> Callable[[ControllerStream, Identity], Awaitable[None]]:
            async def serve(stream: ControllerStream, peer: Identity) -> None:
                dialled.append(address)
                raise NotLeader(leader, 3)

            return serve

        async with house(tmp_path, "c1:1", "c2:1") as h:
            h.network.listen("c1:1", standby("c1:1", "c2:1"))
            h.network.listen("c2:1", standby("c2:1", "c1:1"))
            await asyncio.sleep(100)
            assert 20 < len(dialled) < 200
            controller = Controller()
            h.network.listen("c2:1", standby("c2:1", "c3:1"))
            h.network.listen("c3:1", controller.serve)
            await asyncio.sleep(20)
            assert h.session.connected.is_set() and len(controller.sessions) == 1

    virtual.run(story())


@pytest.mark.parametrize("error", [Forbidden("no"), SkyrackError("odd"), Unavailable("gone")])
def test_refusals_are_retried_politely(tmp_path: Path, error: SkyrackError) -> None:
    async def story() -> None:
        calls = 0

        async def refuse(stream: ControllerStream, peer: Identity) -> None:
            nonlocal calls
            calls += 1
            raise error

        async with house(tmp_path) as h:
            h.network.listen("c1:1", refuse)
            await asyncio.sleep(600)
            assert 60 < calls < 600
            controller = Controller()
            h.network.listen("c1:1", controller.serve)
            await asyncio.sleep(30)
            assert h.session.connected.is_set()

    virtual.run(story())


def test_backoff_starts_afresh_after_a_good_session(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            await asyncio.sleep(300)  # nobody there: the backoff is at its top
            controller = Controller()
            for turn in range(1, 6):
                h.network.listen("c1:1", controller.serve)
                await asyncio.sleep(20 if turn == 1 else session_module.BACKOFF_FIRST_S + 0.01)
                assert len(controller.sessions) == turn
                await asyncio.sleep(20)
                h.network.close("c1:1")
                h.network.listen("c1:1", controller.serve)

    virtual.run(story())


def test_after_a_good_session_the_heir_is_asked_first(tmp_path: Path) -> None:
    """However long the list has been gone through before: all agents wait where the next leader will be."""

    async def story() -> None:
        dialled: list[str] = []

        def absent(address: str) -> Callable[[ControllerStream, Identity], Awaitable[None]]:
            async def serve(stream: ControllerStream, peer: Identity) -> None:
                dialled.append(address)
                raise Unavailable("nobody leads")

            return serve

        async with house(tmp_path, "c1:1", "c2:1", "c3:1") as h:
            for first in ("c2:1", "c3:1", "c1:1"):
                heirs = {"c2:1": ["c3:1", "c1:1"], "c3:1": ["c1:1", "c2:1"], "c1:1": ["c2:1", "c3:1"]}[first]
                for other in heirs:
                    h.network.listen(other, absent(other))
                h.network.listen(first, Controller(controllers=[first, *heirs]).serve)
                await asyncio.sleep(60)
                assert h.session.connected.is_set()
                dialled.clear()
                h.network.close(first)
                await asyncio.sleep(1)
                assert dialled[0] == heirs[0]

    virtual.run(story())


def test_bugs_of_the_agent_do_not_end_the_loop(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            controller = Controller()
            h.network.listen("c1:1", controller.serve)
            h.agent.broken_inventories = 3
            await asyncio.sleep(30)
            assert h.session.connected.is_set()
            h.agent.broken_inventories = 1  # at a heartbeat, inside the session
            await asyncio.sleep(30)
            assert len(controller.sessions) == 2 and h.session.connected.is_set()
            for name in ("bug", "fine"):
                log = agent_pb2.ReadConsoleLog(server_id=name)
                await controller.push(query=agent_pb2.Query(query_id=name, read_console_log=log))
            await asyncio.sleep(1)
            answers = {m.answer.query_id: (m.answer.ok, m.answer.body) for m in controller.of("answer")}
            assert answers == {"bug": (False, b""), "fine": (True, b"log")}

    virtual.run(story())


def test_telemetry_is_counted_once_though_acknowledgements_are_lost(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            controller, cursor, counted, batches = Controller(), 0, [], 0
            dice = virtual.runtime(7).rng

            async def intake(telemetry: agent_pb2.Telemetry) -> None:
                nonlocal cursor, batches
                batches += 1
                fresh = [s for s in telemetry.samples if s.seq > cursor]
                counted.extend(s.cpu_ns for s in fresh)
                cursor = max([cursor, *(s.seq for s in fresh)])
                ack = agent_pb2.TelemetryAck(incarnation=telemetry.incarnation, seq=cursor)
                await controller.push(telemetry_ack=ack)

            controller.on_telemetry = intake
            link = h.network.link("node-1", "c1:1")
            link.lose = lambda m: m.WhichOneof("body") == "telemetry_ack" and dice.random() < 0.3
            h.network.listen("c1:1", controller.serve)
            total = 0
            for round_ in range(100):
                await h.session.spool(samples(70))
                total += 70
                await asyncio.sleep(5)
                if round_ % 20 == 10:
                    link.cut()
                    await asyncio.sleep(9)
                    link.mend()
            await asyncio.sleep(120)
            assert len(counted) == total and sum(counted) == 100 * sum(range(70))
            assert await h.ledger.spooled(0, 10) == []
            assert batches < 250

    virtual.run(story())


def test_an_unacknowledged_batch_waits_though_new_samples_come(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            controller = Controller()
            h.network.listen("c1:1", controller.serve)
            await asyncio.sleep(5)
            for _ in range(10):
                await h.session.spool(samples(3))
                await asyncio.sleep(1)
            assert len(controller.of("telemetry")) == 1
            await controller.push(telemetry_ack=agent_pb2.TelemetryAck(incarnation="another", seq=10**9))
            await asyncio.sleep(1)
            assert len(await h.ledger.spooled(0, 100)) == 30

    virtual.run(story())


def test_a_full_outbox_ends_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "OUTBOX_MAX", 100)

    async def story() -> None:
        async with house(tmp_path) as h:
            reading = asyncio.Event()
            controller = Controller()

            async def deaf(stream: ControllerStream, peer: Identity) -> None:
                if reading.is_set():
                    await controller.serve(stream, peer)
                await stream.receive()
                await stream.send(agent_pb2.ControllerMessage(epoch=1, welcome=agent_pb2.Welcome(nodes=1)))
                await asyncio.sleep(10_000)

            h.network.listen("c1:1", deaf)
            await h.session.connected.wait()
            for _ in range(300):
                h.session.report([agent_pb2.ObservedObject(id="b")])
            reading.set()
            await asyncio.sleep(20)
            assert len(controller.sessions) == 1 and h.session.connected.is_set()

    virtual.run(story())


def test_a_silent_controller_is_left(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            controller = Controller()
            controller.acknowledge = False
            h.network.listen("c1:1", controller.serve)
            await asyncio.sleep(25)
            assert len(controller.sessions) == 1
            await asyncio.sleep(25)
            assert len(controller.sessions) == 2

            async def mute(stream: ControllerStream, peer: Identity) -> None:
                await asyncio.sleep(10_000)

            h.network.close("c1:1")
            h.network.listen("c1:1", mute)
            await asyncio.sleep(60)
            controller.acknowledge = True
            h.network.listen("c1:1", controller.serve)
            await asyncio.sleep(30)
            assert h.session.connected.is_set()

    virtual.run(story())


def test_a_held_link_ends_by_the_ping_timeout(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            controller = Controller()
            h.network.listen("c1:1", controller.serve)
            await asyncio.sleep(10)
            link = h.network.link("node-1", "c1:1")
            link.delay_s = 0.2
            link.hold()
            await asyncio.sleep(5)
            assert h.session.connected.is_set()
            await asyncio.sleep(5)
            assert not h.session.connected.is_set()
            link.mend()
            await asyncio.sleep(20)
            assert h.session.connected.is_set() and len(controller.sessions) == 2

    virtual.run(story())


class FullLedger(Ledger):
    """A disk that is full for a while."""

    full = False

    async def save_desired(self, *args: object) -> None:
        if self.full:
            raise OutOfSpace("full")
        await super().save_desired(*args)  # type: ignore[arg-type]


def test_what_cannot_be_stored_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripted, "Ledger", FullLedger)

    async def story() -> None:
        async with house(tmp_path) as h:
            assert isinstance(h.ledger, FullLedger)
            controller = Controller()
            h.network.listen("c1:1", controller.serve)
            await asyncio.sleep(10)
            h.ledger.full = True
            await controller.push(desired=delta(0, 1, [server("x")], put=[server("x")]))
            await asyncio.sleep(20)
            assert len(controller.sessions) == 2 and h.session.mirror.generation == 0
            assert all(not changed for _generation, changed in h.agent.seen)
            h.ledger.full = False
            await controller.push(desired=delta(0, 1, [server("x")], put=[server("x")]))
            await asyncio.sleep(1)
            assert h.agent.seen[-1] == (1, {"server/x"})

    virtual.run(story())
