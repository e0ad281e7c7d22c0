"""The daemon on its fake machine, through the real session in memory: as in a simulation, on the real clock."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from computed.config import Config
from computed.daemon import Computed, xml_settings
from computed.drivers.base import HypervisorError
from computed.drivers.fake import FakeHypervisor, FakeMachine, FakeStore
from computed.spec import DomainState
from daemonkit.errors import Unavailable
from daemonkit.ledger import Ledger
from daemonkit.memory import MemoryNetwork
from daemonkit.runtime import InlineThreads, Runtime, SystemClock
from daemonkit.tls import Identity
from skyrack.v1 import agent_pb2
from tests.computed.rig import FAILED, GONE, NODE, PAUSED, PENDING, READY, RUNNING, STOPPED, Controller, until

ADDRESS = "controller:7701"


class FakeRig:
    """The daemon can be killed (cancelled) and started anew; machine and ledger stay."""

    def __init__(self, directory: Path, seed: int = 1) -> None:
        self.runtime = Runtime(SystemClock(), random.Random(seed), lambda _name, _workers: InlineThreads())
        self.machine, self.controller, self.network = FakeMachine(self.runtime), Controller(), MemoryNetwork()
        self._directory = directory
        self._settings = Config(
            node=NODE, controllers=[ADDRESS], driver="fake", stop_grace_s=1.0, sample_interval_s=0.1, pass_interval_s=0.5
        )
        self._running = AsyncExitStack()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.network.listen(ADDRESS, self.controller.converse)
        self._ledger = Ledger(self._directory / "ledger.sqlite", self.runtime)
        await self._ledger.open()
        self.hypervisor = FakeHypervisor(self.machine, xml_settings(self._settings))
        dialer = self.network.dialer(Identity(NODE, frozenset({"compute"}), 1))
        store = FakeStore(self.machine)
        self.computed = Computed(self._settings, self.hypervisor, store, self._ledger, dialer, self.runtime, "boot")
        self._task = asyncio.create_task(self.computed.run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            await self._ledger.close()
        self._task = None

    def new_server(self, power: int = agent_pb2.POWER_RUNNING, **more: Any) -> agent_pb2.ServerSpec:
        image = agent_pb2.ImageRef(sha256="0" * 64, format="qcow2")
        return agent_pb2.ServerSpec(name="web-1", vcpus=1, memory_mib=128, root_disk_gib=1, power=power, image=image, **more)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[FakeRig]:
    rig = FakeRig(tmp_path)
    async with rig.network:
        await rig.start()
        yield rig
        await rig.stop()


def new_id() -> str:
    return str(uuid.uuid4())


async def test_life(rig: FakeRig) -> None:
    server_id = new_id()
    for power, state in (
        (agent_pb2.POWER_PREPARED, READY),
        (agent_pb2.POWER_RUNNING, RUNNING),
        (agent_pb2.POWER_STOPPED, STOPPED),
        (agent_pb2.POWER_RUNNING, RUNNING),
    ):
        await rig.controller.put(server_id, rig.new_server(power))
        await rig.controller.wait(server_id, state)
    await rig.controller.remove(server_id)
    assert not rig.machine.domains and not rig.machine.root_disks


async def test_restart_adopts_and_does_nothing(rig: FakeRig) -> None:
    server_id = new_id()
    await rig.controller.put(server_id, rig.new_server())
    await rig.controller.wait(server_id, RUNNING)
    await rig.stop()
    rig.machine.calls.clear()
    rig.controller.observed.clear()
    await rig.start()
    await rig.controller.wait(server_id, RUNNING)
    assert rig.machine.calls == []


async def test_servers_are_started_again_after_a_power_failure(rig: FakeRig) -> None:
    server_id = new_id()
    await rig.controller.put(server_id, rig.new_server())
    await rig.controller.wait(server_id, RUNNING)
    await rig.stop()
    rig.machine.power_cycle()
    rig.controller.observed.clear()
    await rig.start()
    await rig.controller.wait(server_id, RUNNING)
    assert rig.machine.domains[server_id].state is DomainState.RUNNING


@pytest.mark.parametrize("operation", ["fetch_image", "make_disks", "define", "start"])
async def test_failure_is_told_and_tried_again(rig: FakeRig, operation: str) -> None:
    server_id = new_id()
    rig.machine.fail(operation, HypervisorError("out of luck"))
    await rig.controller.put(server_id, rig.new_server())
    seen = await rig.controller.wait(server_id, FAILED)
    assert seen.fault == "out of luck"
    await rig.controller.wait(server_id, RUNNING, lambda seen: not seen.fault)


async def test_storage_that_is_away_is_no_failure(rig: FakeRig) -> None:
    server_id = new_id()
    rig.machine.fail("fetch_image", Unavailable("no source answers"))
    await rig.controller.put(server_id, rig.new_server())
    await rig.controller.wait(server_id, PENDING, lambda seen: "no source" in seen.fault)
    await rig.controller.wait(server_id, RUNNING)
    assert FAILED not in [seen.state for _id, seen in rig.controller.history]


async def test_disk_that_fails_holds_the_guest_until_it_answers(rig: FakeRig) -> None:
    server_id = new_id()
    await rig.controller.put(server_id, rig.new_server())
    await rig.controller.wait(server_id, RUNNING)
    rig.machine.storage_answers = False
    rig.hypervisor.disk_fails(server_id)
    seen = await rig.controller.wait(server_id, PAUSED)
    assert "does not answer" in seen.fault
    rig.machine.storage_answers = True
    await rig.controller.wait(server_id, RUNNING, lambda seen: not seen.fault)


async def test_guest_that_does_not_let_go_is_asked_again(rig: FakeRig) -> None:
    server_id, spec = new_id(), rig.new_server()
    spec.disks.add(attachment_id="a1", volume_id="v1", target="vdb", export_name="e1")
    await rig.controller.put(server_id, spec)
    await rig.controller.wait(server_id, RUNNING, lambda seen: list(seen.attached) == ["a1"])
    rig.machine.lets_go_of_disks = False
    del spec.disks[:]
    await rig.controller.put(server_id, spec)
    await until(lambda: ("detach", server_id) in rig.machine.calls, "a request")
    await asyncio.sleep(0.5)  # it was refused by now
    assert list(rig.machine.domains[server_id].disks) == ["e1"]
    rig.machine.lets_go_of_disks = True
    await until(lambda: not rig.machine.domains[server_id].disks, "the disk gone")
    assert rig.machine.calls.count(("detach", server_id)) == 2


async def test_desired_state_that_makes_no_sense_is_refused(rig: FakeRig) -> None:
    server_id = new_id()
    await rig.controller.put(server_id, agent_pb2.ServerSpec(power=agent_pb2.POWER_RUNNING))
    seen = await rig.controller.wait(server_id, FAILED)
    assert "must be positive" in seen.fault
    await rig.controller.put("../../etc", rig.new_server())
    await rig.controller.wait("../../etc", FAILED)
    assert rig.machine.calls == []


async def test_every_new_desired_state_gets_a_word(rig: FakeRig) -> None:
    """Also when there is nothing to do: the controller waits for a report that knows its newest generation."""
    server_id = new_id()
    await rig.controller.put(server_id, rig.new_server())
    await rig.controller.wait(server_id, RUNNING)
    before = len(rig.controller.history)
    await rig.controller.put(server_id, rig.new_server(project_id="other"))
    await until(lambda: len(rig.controller.history) > before, "a report")


async def test_what_is_found_when_the_hypervisor_is_back_is_told(rig: FakeRig) -> None:
    """Also of a server that was only told to be waited for."""
    rig.machine.reachable = False
    server_id = new_id()
    await rig.controller.put(server_id, agent_pb2.ServerSpec(absent=True))
    await rig.controller.wait(server_id, PENDING)
    await asyncio.sleep(2.0)  # the next try is some seconds away: a sweep finds it first
    rig.machine.reachable = True
    await rig.controller.wait(server_id, GONE)


async def test_tasks_and_questions(rig: FakeRig) -> None:
    server_id = new_id()
    await rig.controller.put(server_id, rig.new_server())
    await rig.controller.wait(server_id, RUNNING)
    order = agent_pb2.RebootServer(server_id=server_id, hard=True)
    assert (await rig.controller.task("t1", agent_pb2.Task(reboot_server=order))).ok
    assert ("reboot", server_id) in rig.machine.calls
    stranger = agent_pb2.RebootServer(server_id=new_id())
    assert (await rig.controller.task("t2", agent_pb2.Task(reboot_server=stranger))).reason == "NOT_FOUND"
    question = agent_pb2.ReadConsoleLog(server_id=server_id, bytes_max=8)
    answer = await rig.controller.ask("q1", agent_pb2.Query(read_console_log=question))
    assert answer.ok and answer.body == b"started\n"


async def test_many_at_once_with_faults_all_over(rig: FakeRig) -> None:
    """Killed in the middle, with failures at every operation: all end as wanted."""
    for operation in ("fetch_image", "make_disks", "define", "start", "cut_power", "undefine", "remove"):
        rig.machine.fail(operation, HypervisorError("bad day"), times=2)
    server_ids = [new_id() for _ in range(12)]
    for server_id in server_ids:
        await rig.controller.put(server_id, rig.new_server())
    await asyncio.sleep(0.3)
    await rig.stop()
    await rig.start()
    for server_id in server_ids:
        await rig.controller.wait(server_id, RUNNING)
    for server_id in server_ids:
        await rig.controller.put(server_id, agent_pb2.ServerSpec(absent=True))
    for server_id in server_ids:
        await rig.controller.wait(server_id, agent_pb2.OBSERVED_STATE_GONE)
    assert not rig.machine.domains and not rig.machine.root_disks


async def test_samples_are_spooled_and_shipped(rig: FakeRig) -> None:
    server_id = new_id()
    await rig.controller.put(server_id, rig.new_server())
    await rig.controller.wait(server_id, RUNNING)
    await until(lambda: len(rig.controller.samples) >= 3, "samples")
    assert {sample.server_id for sample in rig.controller.samples.values()} == {server_id}
