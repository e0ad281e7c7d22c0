"""Usage counters: exactly once, whatever comes twice, in pieces, or after a restart of the guest."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from controllerd.agents import telemetry
from controllerd.domain.policy import Caller
from controllerd.domain.usage import Counters, Meter
from controllerd.store import usage
from skyrack.v1 import agent_pb2 as pb
from tests.controllerd.server.rig import Rig, ScriptedNode


def sample(seq: int, server_id: str, cpu_ns: int, **counters: int) -> pb.Sample:
    made = pb.Sample(seq=seq, server_id=server_id, cpu_ns=cpu_ns, **counters)
    made.wall_time.FromSeconds(1_700_000_000 + seq)
    return made


async def take(rig: Rig, node: ScriptedNode, samples: list[pb.Sample], incarnation: str = "i") -> int:
    batch = pb.Telemetry(incarnation=incarnation, samples=samples)
    return await rig.database.write(lambda tx: telemetry.take(tx, node.node, batch))


async def totals(rig: Rig, caller: Caller) -> Counters:
    found = await rig.database.read(lambda tx: usage.of_project(tx, caller.project_id, 0.0, 1e12))
    return found[0].counters


async def launched(rig: Rig, tenant: Caller, nodes: int = 1) -> tuple[str, ScriptedNode]:
    flavor, image = await rig.equip(tenant, nodes=nodes)
    view = await rig.create(tenant, flavor, image)
    await rig.run()
    server = await rig.server(view.server.id)
    return server.id, rig.nodes[server.node_id]


async def test_batches_that_come_again_add_nothing(rig: Rig, tenant: Caller) -> None:
    server_id, node = await launched(rig, tenant)
    batch = [sample(n, server_id, n * 100, rx_bytes=n * 10) for n in range(1, 6)]
    assert await take(rig, node, batch) == 5
    assert await take(rig, node, batch) == 5
    assert await take(rig, node, batch[2:]) == 5
    assert await take(rig, node, [*batch, sample(6, server_id, 600, rx_bytes=60)]) == 6
    assert await take(rig, node, []) == 6
    assert await totals(rig, tenant) == Counters(cpu_ns=600, rx_bytes=60)


async def test_a_batch_in_disorder(rig: Rig, tenant: Caller) -> None:
    server_id, node = await launched(rig, tenant)
    batch = [sample(n, server_id, cpu) for n, cpu in ((1, 100), (2, 200), (3, 50), (4, 150))]  # restarted before the third
    random.Random(3).shuffle(batch)
    assert await take(rig, node, [*batch, batch[0]]) == 4
    assert (await totals(rig, tenant)).cpu_ns == 350


async def test_a_new_spool_goes_on(rig: Rig, tenant: Caller) -> None:
    server_id, node = await launched(rig, tenant)
    await take(rig, node, [sample(9, server_id, 100)])
    assert await take(rig, node, [sample(1, server_id, 150)], incarnation="wiped") == 1
    assert await take(rig, node, [sample(9, server_id, 100)]) == 9
    assert (await totals(rig, tenant)).cpu_ns == 150


async def test_servers_that_are_not_on_the_node_are_passed_over(rig: Rig, tenant: Caller) -> None:
    server_id, node = await launched(rig, tenant, nodes=2)
    [other] = [n for n in rig.nodes.values() if n is not node]
    assert await take(rig, other, [sample(1, server_id, 10**9), sample(2, "no such server", 1)]) == 2
    assert await totals(rig, tenant) == Counters()
    assert await take(rig, node, [sample(1, server_id, 7), sample(2, "no such server", 1)]) == 2
    assert (await totals(rig, tenant)).cpu_ns == 7


async def test_usage_stays_when_the_server_is_gone(rig: Rig, tenant: Caller) -> None:
    server_id, node = await launched(rig, tenant)
    await take(rig, node, [sample(1, server_id, 3600 * 10**9)])
    rig.clock.forward(3600.0)
    await rig.servers.delete(tenant, server_id)
    await rig.run()
    await take(rig, node, [sample(2, server_id, 3601 * 10**9)])
    rig.clock.forward(3600.0)
    [entry] = await rig.database.read(lambda tx: usage.of_project(tx, tenant.project_id, 0.0, 1e12))
    assert (round(entry.hours, 6), entry.counters.cpu_ns, entry.vcpus) == (1.0, 3600 * 10**9, 1)


COUNTERS = st.builds(Counters, *[st.integers(0, 1000)] * 5)


@given(st.lists(st.tuples(st.booleans(), COUNTERS), max_size=20))
def test_a_meter_counts_what_was_added(steps: list[tuple[bool, Counters]]) -> None:
    """`steps`: (the guest is started anew, what is added since). Restarts that the counters betray are counted exactly."""
    meter, raw, wanted = Meter(), Counters(), Counters()
    for restarted, added in steps:
        restarted = restarted and added.cpu_ns < raw.cpu_ns
        begin = Counters() if restarted else raw
        raw = Counters(**{f: getattr(begin, f) + v for f, v in vars(added).items()})
        wanted = Counters(**{f: getattr(wanted, f) + v for f, v in vars(added).items()})
        meter = meter.read(raw, 0, 0.0)
    assert meter.total == wanted


def test_a_counter_that_falls_alone_lost_a_device() -> None:
    meter = Meter().read(Counters(cpu_ns=10, read_bytes=900), 0, 0.0).read(Counters(cpu_ns=20, read_bytes=100), 0, 0.0)
    assert meter.total == Counters(cpu_ns=20, read_bytes=900)
    assert replace(meter.read(Counters(cpu_ns=21, read_bytes=150), 0, 0.0).total, cpu_ns=0) == Counters(read_bytes=950)


async def test_any_slices_of_the_spool_count_once(rig: Rig, tenant: Caller) -> None:
    """What an agent sends when acknowledgements are lost: slices that begin again anywhere before the last one."""
    server_id, node = await launched(rig, tenant)
    rng = random.Random(7)
    done = 0
    while done < 200:
        first, last = rng.randint(1, done + 1), done + rng.randint(0, 20)
        done = max(done, last)
        assert await take(rig, node, [sample(n, server_id, n * 10, tx_bytes=n) for n in range(first, last + 1)]) == done
        if rng.random() < 0.2:
            await rig.crash()
    assert await totals(rig, tenant) == Counters(cpu_ns=done * 10, tx_bytes=done)
