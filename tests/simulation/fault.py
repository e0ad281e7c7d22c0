"""What goes wrong in the world. Each fault begins, lasts for some time, and is over when its function returns.

Several may be under way at once; what one of them broke another may find broken, and leaves it then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from daemonkit.errors import SkyrackError, Unavailable
from tests.simulation.process import ControllerProcess
from tests.simulation.world import World

Fault = Callable[[World], Coroutine[Any, Any, None]]
HOUR_S = 3600.0
LASTS_S_MAX = 15.0


def _lasts_s(world: World) -> float:
    """Mostly short, sometimes longer than anything waits."""
    return min(world.dice.expovariate(1 / 4.0), LASTS_S_MAX)


def _controller(world: World) -> ControllerProcess:
    """Mostly the one that leads."""
    leader = world.leader
    return leader if leader is not None and world.dice.random() < 0.6 else world.dice.choice(list(world.controllers.values()))


# ---- controllers


async def controller_killed(world: World) -> None:
    victim = _controller(world)
    if not victim.alive or victim.stopped:
        return
    world.note(victim.name, "KILLED")
    victim.kill()
    await asyncio.sleep(_lasts_s(world))
    world.note(victim.name, "started")
    victim.start()


async def controller_stopped(world: World) -> None:
    """As by SIGSTOP: it does not answer pings either."""
    victim = _controller(world)
    if not victim.alive or victim.stopped:
        return
    world.note(victim.name, "STOPPED")
    links = [world.rack.link(node, victim.address) for node in world.rack.nodes]
    for link in links:
        link.hold()
    victim.stop()
    await asyncio.sleep(_lasts_s(world))
    world.note(victim.name, "continued")
    victim.resume()
    for link in links:
        link.mend()


async def controller_cut_off(world: World) -> None:
    """From the consensus store."""
    victim = _controller(world)
    if victim.kv is None or not victim.alive:
        return
    link, how = victim.kv.link, world.dice.choice(("CUT OFF", "HELD OFF"))
    world.note(victim.name, f"{how} from the consensus store")
    link.cut() if how == "CUT OFF" else link.hold()
    await asyncio.sleep(_lasts_s(world))
    world.note(victim.name, "reaches the consensus store")
    link.mend()


async def quorum_lost(world: World) -> None:
    if world.store is None or "quorum" in world.down:
        return
    world.down.add("quorum")
    world.note("store", "QUORUM LOST")
    world.store.lose_quorum()
    await asyncio.sleep(_lasts_s(world))
    world.note("store", "quorum regained")
    world.store.regain_quorum()
    world.down.discard("quorum")


async def handed_over(world: World) -> None:
    leader = world.leader
    if leader is None or len(world.controllers) == 1:
        return
    successor = world.dice.choice(["", *(name for name in world.controllers if name != leader.name)])
    world.note(leader.name, f"HANDS OVER to {successor or 'anybody'}")
    try:
        await leader.ask(lambda _controller: leader.seat.terms.transfer(successor))
    except SkyrackError as error:
        world.note(leader.name, f"does not: {error.message}")


async def clock_stepped(world: World) -> None:
    """Of a machine, by up to an hour, for good or for a while."""
    clocks = world.clocks | {name: process.clock for name, process in world.controllers.items()}
    name = world.dice.choice(list(clocks))
    step_s = world.dice.uniform(-HOUR_S, HOUR_S)
    world.note(name, f"CLOCK stepped by {step_s:.0f} s")
    clocks[name].stepped_s += step_s
    await asyncio.sleep(_lasts_s(world))
    if world.dice.random() < 0.5:
        world.note(name, "clock set right")
        clocks[name].stepped_s = 0.0


# ---- nodes


async def node_cut_off(world: World) -> None:
    """From one controller, or from all."""
    node, how = world.dice.choice(list(world.rack.nodes)), world.dice.choice(("CUT OFF", "HELD OFF"))
    chosen = list(world.controllers.values())
    if world.dice.random() < 0.3:
        chosen = [world.dice.choice(chosen)]
    links = [world.rack.link(node, controller.address) for controller in chosen]
    world.note(node, f"{how} from {', '.join(c.name for c in chosen)}")
    for link in links:
        link.cut() if how == "CUT OFF" else link.hold()
    await asyncio.sleep(_lasts_s(world))
    world.note(node, "reaches them")
    for link in links:
        link.mend()


async def agent_killed(world: World) -> None:
    daemon = world.dice.choice(list(world.rack.daemons))
    if daemon in world.down:
        return
    world.down.add(daemon)
    world.note(daemon, "KILLED")
    await world.rack.kill(daemon)
    await asyncio.sleep(_lasts_s(world))
    world.note(daemon, "started")
    await world.rack.start(daemon)
    world.down.discard(daemon)


async def hypervisor_fails(world: World) -> None:
    node, machine = world.dice.choice(list(world.rack.machines.items()))
    operation = world.dice.choice(("start", "define", "make_disks", "fetch_image", "attach", "detach", "cut_power", "undefine"))
    times = world.dice.randint(1, 3)
    world.note(node, f"{operation} FAILS {times} times")
    machine.fail(operation, Unavailable("the fake hypervisor is unwell"), times)


async def hypervisor_away(world: World) -> None:
    node, machine = world.dice.choice(list(world.rack.machines.items()))
    world.note(node, "hypervisor AWAY")
    machine.reachable = False
    await asyncio.sleep(_lasts_s(world))
    world.note(node, "hypervisor answers")
    machine.reachable = True


async def power_lost(world: World) -> None:
    node, machine = world.dice.choice(list(world.rack.machines.items()))
    daemon = f"computed-{node}"
    if daemon in world.down:
        return
    world.down.add(daemon)
    world.note(node, "POWER LOST")
    await world.rack.kill(daemon)
    machine.power_cycle()
    await asyncio.sleep(_lasts_s(world))
    world.note(node, "power back")
    await world.rack.start(daemon)
    world.down.discard(daemon)


async def storage_fails(world: World) -> None:
    node, volumes = world.dice.choice(list(world.rack.volumes.items()))
    if world.dice.random() < 0.5:
        world.note(node, "storage daemon CRASHES")
        volumes.crash()
        return
    world.note(node, "storage daemon UNWELL")
    volumes.fault_rate = 0.5
    await asyncio.sleep(_lasts_s(world))
    world.note(node, "storage daemon well")
    volumes.fault_rate = 0.0


async def kernel_fails(world: World) -> None:
    node, kernel = world.dice.choice(list(world.rack.kernels.items()))
    world.note(node, "kernel REFUSES")
    kernel.failure_rate = 0.3
    await asyncio.sleep(_lasts_s(world))
    world.note(node, "kernel obeys")
    kernel.failure_rate = 0.0


FAULTS: tuple[tuple[int, Fault], ...] = (
    (4, controller_killed), (3, controller_stopped), (3, controller_cut_off), (2, quorum_lost), (2, handed_over),
    (2, clock_stepped), (3, node_cut_off), (3, agent_killed), (3, hypervisor_fails), (1, hypervisor_away), (1, power_lost),
    (2, storage_fails), (2, kernel_fails),
)  # fmt: skip
_BAG = [fault for weight, fault in FAULTS for _ in range(weight)]


async def misfortune(world: World, for_s: float, between_s: float) -> None:
    """Faults at random for so long, one every `between_s` on average; returns when all of them are over."""
    until_s = world.now_s + for_s
    async with asyncio.TaskGroup() as group:
        while world.now_s < until_s:
            group.create_task(world.dice.choice(_BAG)(world))
            await asyncio.sleep(world.dice.expovariate(1 / between_s))
