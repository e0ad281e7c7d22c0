"""Start, stop and reboot of a server. What fails leaves it as it was; what its node then reports is what it is."""

from __future__ import annotations

from dataclasses import dataclass

from controllerd.agents import order
from controllerd.agents.observed.server import settle
from controllerd.domain.server import POWER_RUNNING, POWER_STOPPED
from controllerd.domain.task import Task
from controllerd.store import agent_task, event
from controllerd.store import server as server_store
from controllerd.store.database import Tx
from controllerd.store.server import SERVERS
from controllerd.tasks.operation import Operation, Step
from controllerd.tasks.server_create import POLL_S, refuse_failure
from daemonkit.errors import NodeFailed

DEADLINE_S = 180.0  # a guest has its time to obey the power button, see the stop grace of the compute agent


class SetPower(Step):
    """`task.args`: state (the one it had), power (what its node was told before)."""

    poll_s = POLL_S

    def __init__(self, name: str, power: str, until: tuple[str, ...]) -> None:
        self.name, self._power, self._until = name, power, until

    def do(self, tx: Tx, task: Task) -> None:
        server_store.command(tx, SERVERS.get(tx, task.resource_id), self._power)

    def done(self, tx: Tx, task: Task) -> bool:
        """Errors: NodeLost, NodeFailed."""
        server = SERVERS.get(tx, task.resource_id)
        refuse_failure(tx, server)
        return server.observed_state in self._until

    def undo(self, tx: Tx, task: Task) -> None:
        server_store.command(tx, SERVERS.get(tx, task.resource_id), task.args["power"])


class Reboot(Step):
    """`task.args`: state, hard ("1" or "")."""

    name = "reboot"
    poll_s = POLL_S

    def do(self, tx: Tx, task: Task) -> None:
        server = SERVERS.get(tx, task.resource_id)
        body = order.reboot(task.id, task.deadline, server.id, bool(task.args["hard"]))
        agent_task.order(tx, task.id, server.node_id, "computed", body, task.deadline)

    def done(self, tx: Tx, task: Task) -> bool:
        """Errors: NodeLost, NodeFailed."""
        outcome = agent_task.outcome(tx, task.id)
        if not outcome.ended:
            refuse_failure(tx, SERVERS.get(tx, task.resource_id))
            return False
        if not outcome.ok:
            raise NodeFailed(outcome.fault or outcome.reason or "the node gives no reason")
        return True

    def undo(self, tx: Tx, task: Task) -> None:
        """A node that comes back later must not reboot it then."""
        agent_task.forget(tx, task.id)


@dataclass(frozen=True)
class PowerOperation(Operation):
    state: str  # when it is done
    told: str  # the event

    def finish(self, tx: Tx, task: Task) -> None:
        server = SERVERS.get(tx, task.resource_id)
        server = server_store.change(tx, server, state=self.state, fault_reason="", fault_message="", fault_details=())
        event.record(tx, self.told, task.project_id, server.id)
        settle(tx, server)

    def fail(self, tx: Tx, task: Task) -> None:
        server = SERVERS.get(tx, task.resource_id)
        settle(tx, server_store.change(tx, server, state=task.args["state"]))


START = PowerOperation(
    "server_start", DEADLINE_S, (SetPower("start", POWER_RUNNING, ("RUNNING", "PAUSED")),), "ACTIVE", "server.started"
)
STOP = PowerOperation("server_stop", DEADLINE_S, (SetPower("stop", POWER_STOPPED, ("STOPPED",)),), "STOPPED", "server.stopped")
REBOOT = PowerOperation("server_reboot", DEADLINE_S, (Reboot(),), "ACTIVE", "server.rebooted")
