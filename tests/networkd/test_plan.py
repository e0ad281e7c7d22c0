"""Properties of plans, and the reconciler on the shipped fake: whatever is there and is wanted, plans lead there and stop."""

from __future__ import annotations

import asyncio
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from daemonkit.desired import key_of
from daemonkit.runtime import InlineThreads, Runtime, SystemClock
from networkd import wire
from networkd.compile.layout import layout
from networkd.compile.plan import plan
from networkd.drivers.fake import FakeDriver
from networkd.reconcile import Reconciler, assign_zones
from networkd.report import Reporter
from networkd.spec.desired import Desired, Node
from networkd.spec.picture import (
    AddFact,
    AddHosts,
    AddLink,
    Announce,
    ForgetFlows,
    LoadRules,
    Picture,
    SetLink,
    StartDhcp,
    apply,
)
from skyrack.v1 import agent_pb2
from tests.networkd.objects import (
    NET,
    OPEN,
    OTHER_NET,
    WEB,
    device_of,
    external,
    group,
    members,
    neighbour,
    port,
    port_id,
    router,
    rule,
    segment,
)

NODE = Node("n1", "10.20.0.1", 1500, "ext")
ZONES = {NET: 1, OTHER_NET: 2}

POOL: list[agent_pb2.DesiredObject] = [
    segment(vteps=("10.20.0.2", "10.20.0.3")), segment(OTHER_NET, 200), external(),
    group(WEB, rule("tcp", 80, 80, remote=OPEN)), group(OPEN, rule("icmp")), members(OPEN, 12), members(OPEN, 12, 13),
    port(11, NET, WEB), port(11, NET, OPEN), port(12, NET, OPEN, admin_up=False), port(13, OTHER_NET, WEB),
    port(14, NET, port_security=False), neighbour(20, "10.20.0.2"), neighbour(20, "10.20.0.3"), neighbour(21, "10.20.0.2"),
    router(), router(("203.0.113.100", "192.168.0.11")), router(("203.0.113.101", "192.168.0.11"), router_id="5555"),
    segment(vteps=("10.20.0.2",), dns_servers=["9.9.9.9"]),
]  # fmt: skip


def desired(objects: list[agent_pb2.DesiredObject]) -> Desired:
    return wire.desired_of({key_of(o): o for o in objects})


def bare() -> Picture:
    """A machine without anything of ours: its external interface only."""
    return FakeDriver(runtime(0), "ext").picture


def carried(seen: Picture, want: Picture) -> Picture:
    after = seen.copy()
    for step in plan(seen, want).steps:
        apply(after, step)
    return after


states = st.lists(st.sampled_from(POOL), max_size=12).map(desired)


@settings(max_examples=200, deadline=None)
@given(states, states)
def test_a_carried_out_plan_leaves_nothing_to_do(one: Desired, two: Desired) -> None:
    first = carried(bare(), layout(one, NODE, ZONES))
    assert not plan(first, layout(one, NODE, ZONES))
    want = layout(two, NODE, ZONES)
    second = carried(first, want)
    assert not plan(second, want)
    assert second.links.keys() - {("", "ext")} == want.links.keys() - {("", "ext")}, "nothing is left behind"
    assert set(second.facts.values()) == set(want.facts.values())
    assert second.namespaces.keys() == want.namespaces.keys() and second.dhcp == want.dhcp


@settings(max_examples=100, deadline=None)
@given(states, st.randoms(use_true_random=False))
def test_a_plan_cut_short_is_continued(one: Desired, rng: random.Random) -> None:
    want = layout(one, NODE, ZONES)
    seen = bare()
    for step in plan(bare(), want).steps:
        if rng.random() < 0.5:
            try:
                apply(seen, step)
            except KeyError:
                break
    assert not plan(carried(seen, want), want)


@settings(max_examples=100, deadline=None)
@given(states)
def test_rules_come_before_the_port_joins(one: Desired) -> None:
    steps = plan(bare(), layout(one, NODE, ZONES)).steps
    joined = [i for i, s in enumerate(steps) if isinstance(s, SetLink) and s.link.kind == "tap"]
    loaded = [i for i, s in enumerate(steps) if isinstance(s, LoadRules) and not s.ns]
    assert all(i > loaded[0] for i in joined)
    up: set[str] = set()
    for step in steps:
        if isinstance(step, LoadRules):
            up.add(step.ns)
        if isinstance(step, SetLink) and step.link.ns.startswith("sk-rtr-"):
            assert step.link.ns in up, "a router's rules are in force before its interfaces are up"


def test_one_more_port_is_few_steps() -> None:
    before = [segment(), group(OPEN, rule("icmp")), *(port(n, NET, OPEN) for n in range(10, 60))]
    seen = carried(bare(), layout(desired(before), NODE, ZONES))
    steps = plan(seen, layout(desired([*before, port(61, NET, OPEN)]), NODE, ZONES))
    assert [type(s) for s in steps.edge] == [LoadRules, AddLink, SetLink, AddFact]
    assert [type(s) for s in steps.services] == [AddHosts] and not steps.routers
    load = steps.edge[0]
    assert isinstance(load, LoadRules)
    assert all(device_of(n) not in load.text and port_id(n).replace("-", "") not in load.text for n in range(10, 60))


def test_a_removed_port_restarts_dhcp_and_a_moved_neighbour_is_replaced() -> None:
    base = [segment(), group(OPEN, rule("icmp")), port(11, NET, OPEN), port(12, NET, OPEN), neighbour(20, "10.20.0.2")]
    seen = carried(bare(), layout(desired(base), NODE, ZONES))
    less = plan(seen, layout(desired([*base[:3], base[4]]), NODE, ZONES))
    assert [type(s) for s in less.services] == [StartDhcp]
    moved = plan(seen, layout(desired([*base[:4], neighbour(20, "10.20.0.3")]), NODE, ZONES))
    assert [type(s) for s in moved.edge] == [AddFact], "one entry replaced: no moment without it"


def test_a_floating_ip_is_announced_and_its_flows_forgotten() -> None:
    base = [segment(), external()]
    without = carried(bare(), layout(desired([*base, router()]), NODE, ZONES))
    want = layout(desired([*base, router(("203.0.113.100", "192.168.0.11"))]), NODE, ZONES)
    added = plan(without, want)
    assert [type(s) for s in added.routers] == [LoadRules, AddFact, Announce]
    removed = plan(carried(without, want), layout(desired([*base, router()]), NODE, ZONES))
    assert ForgetFlows in [type(s) for s in removed.routers] and not removed.edge


def test_nothing_wanted_removes_only_ours() -> None:
    seen = carried(bare(), layout(desired([segment(), port(11, NET)]), NODE, ZONES))
    foreign = seen.links["", device_of(11)]
    seen.links["", "tapforeign"] = type(foreign)("tapforeign", "tap", ours=False)
    after = carried(seen, layout(Desired(), NODE, {}))
    assert set(after.links) == {("", "tapforeign"), ("", "ext")} and not after.namespaces


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 65535)), st.sets(st.sampled_from("abcdefgh")))
def test_zones_are_kept_distinct_and_not_reused_at_once(held: dict[str, int], now: set[str]) -> None:
    held = {k: v for k, v in held.items() if list(held.values()).count(v) == 1}
    zones = assign_zones(held, now)
    assert zones.keys() == now and len(set(zones.values())) == len(now)
    assert all(zones[k] == v for k, v in held.items() if k in now)
    fresh = {zones[k] for k in now - held.keys()}
    assert not fresh & set(held.values()) and all(1 <= z <= 65535 for z in zones.values())


# ---------------------------------------------------------------- the reconciler on the fake


def runtime(seed: int) -> Runtime:
    return Runtime(SystemClock(), random.Random(seed), lambda _name, _workers: InlineThreads())


async def test_reports_and_retries_on_the_fake() -> None:
    driver = FakeDriver(runtime(1), "ext", failure_rate=0.3)
    reports: list[agent_pb2.ObservedObject] = []
    reporter = Reporter(reports.extend)
    reconciler = Reconciler(driver, NODE, None, reporter)
    objects = [segment(), external(), group(OPEN, rule("icmp")), port(11, NET, OPEN), router(("203.0.113.100", "192.168.0.11"))]
    reconciler.want(desired(objects), {key_of(o) for o in objects})
    assert {o.port.state for o in reporter.all() if o.HasField("port")} == {agent_pb2.OBSERVED_STATE_PENDING}
    for _ in range(50):
        if not await reconciler.once():
            break
    driver.failure_rate = 0
    await reconciler.once()
    last = {o.id: (o.port if o.HasField("port") else o.router).state for o in reports}
    assert last == {port_id(11): agent_pb2.OBSERVED_STATE_READY, "4444": agent_pb2.OBSERVED_STATE_READY}
    assert driver.picture.listening == {NET}
    reconciler.want(Desired(), {f"port/{port_id(11)}"})
    await reconciler.once()
    last = {o.id: (o.port if o.HasField("port") else o.router).state for o in reports}
    assert set(last.values()) == {agent_pb2.OBSERVED_STATE_GONE}
    assert not driver.picture.links.keys() - {("", "ext")} and not driver.picture.dhcp


async def test_a_dying_dnsmasq_wakes_the_loop() -> None:
    driver = FakeDriver(runtime(2), "ext")
    reconciler = Reconciler(driver, NODE, None, Reporter(lambda _objects: None))
    reconciler.want(desired([segment(), port(11, NET)]), set())
    async with asyncio.TaskGroup() as group_:
        loop = group_.create_task(reconciler.run())
        await reconciler.passed.wait()
        reconciler.passed.clear()
        driver.kill(NET)
        await asyncio.wait_for(reconciler.passed.wait(), 5)
        assert NET in driver.picture.dhcp
        loop.cancel()


async def test_a_segment_fault_is_its_ports_fault() -> None:
    driver = FakeDriver(runtime(3), "ext")
    reports: list[agent_pb2.ObservedObject] = []
    reporter = Reporter(reports.extend)
    reconciler = Reconciler(driver, NODE, None, reporter)
    objects = [external(), port(11, OTHER_NET), port(12, external().id)]
    reconciler.want(desired(objects), set())
    await reconciler.once()
    faults = {o.id: o.port.fault for o in reports}
    assert "not on this node" in faults[port_id(11, OTHER_NET)] and "provider" in faults[port_id(12, external().id)]


async def test_nothing_forwards_before_rules_are_in_force() -> None:
    driver = FakeDriver(runtime(4), "ext", failure_rate=1.0)
    reports: list[agent_pb2.ObservedObject] = []
    reporter = Reporter(reports.extend)
    reconciler = Reconciler(driver, NODE, None, reporter)
    reconciler.want(desired([segment(), port(11, NET)]), set())
    assert await reconciler.once()
    assert not driver.picture.links.keys() - {("", "ext")}
    assert [o.port.state for o in reports] == [agent_pb2.OBSERVED_STATE_FAILED]


def test_a_port_that_is_here_is_no_neighbour() -> None:
    """While a server moves, it may be told as both; the local port wins, and there is no tunnel to ourselves."""
    both = [segment(), group(OPEN), port(11, NET, OPEN), neighbour(11, "10.20.0.2"), neighbour(12, NODE.vtep)]
    macs = {f.dev for f in layout(desired(both), NODE, ZONES).facts.values() if getattr(f, "mac", "").startswith("02:aa")}
    assert macs == {device_of(11)}
    away = [segment(), group(OPEN), neighbour(11, "10.20.0.2")]
    here = carried(bare(), layout(desired(both), NODE, ZONES))
    assert not plan(carried(here, layout(desired(away), NODE, ZONES)), layout(desired(away), NODE, ZONES))
