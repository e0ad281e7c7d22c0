"""A machine in memory: for simulations and for trying a controller without root. No threads, no sockets, no time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from daemonkit.runtime import Runtime
from networkd.drivers.base import NOT_IN_FORCE
from networkd.spec.picture import Link, LoadRules, Picture, Step, apply


class FakeDriver:
    """`failure_rate`: the share of steps that fail, drawn from the runtime's randomness. `picture` is the machine."""

    def __init__(self, runtime: Runtime, external_device: str = "", failure_rate: float = 0.0) -> None:
        self._runtime = runtime
        self.failure_rate = failure_rate
        self.picture = Picture()
        if external_device:
            nic = Link(external_device, "device", master="", ours=False)
            self.picture.links[nic.key] = nic
        self.done: list[Step] = []
        self._trouble: Callable[[], None] = lambda: None

    async def open(self) -> list[str]:
        return []

    def watch(self, trouble: Callable[[], None]) -> None:
        self._trouble = trouble

    async def observe(self) -> Picture:
        return self.picture.copy()

    async def carry_out(self, steps: Sequence[Step]) -> list[str | None]:
        faults: list[str | None] = []
        for step in steps:
            faults.append(self._carry_out(step))
            if faults[-1] and isinstance(step, LoadRules):
                self.picture.tables.pop(step.ns, None)
                break
        return faults + [NOT_IN_FORCE] * (len(steps) - len(faults))

    def _carry_out(self, step: Step) -> str | None:
        if self.failure_rate and self._runtime.rng.random() < self.failure_rate:
            return "the fake driver was told to fail"
        try:
            apply(self.picture, step)
        except KeyError as error:
            return f"no such interface: {error}"
        self.done.append(step)
        return None

    def kill(self, network_id: str) -> None:
        """A dnsmasq dies."""
        self.picture.dhcp.pop(network_id, None)
        self._trouble()

    async def close(self) -> None:
        self.picture.listening.clear()
