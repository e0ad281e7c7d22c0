"""After a restore from a backup: makes the store fit what the nodes report, so that no guest dies and nothing is made twice.

The restored state is older than reality, and every agent that it knows is held (`controllerd.store.recovery`): it is told
nothing and goes on as it was. Once a node has reported all it has:

- what the store has and the node has too is *adopted* as it is now: on, off, with the volumes that it has;
- what the store has and the node has not is *missing*: it was deleted, or lost, after the backup. It is shown in ERROR and
  the node is never told to make it anew, with an empty disk;
- what the node has and the store has not is *foreign*: shown, and left alone.

When all nodes that answer were compared and nobody's things are not among them, all are released: told what the store says.
Otherwise they stay held until an operator lets go (`skyrack cluster release`), for what serves foreign guests (their networks
and exports) ends then. A node that answers later is compared, and released, by itself. Everything is decided once: it is
written down in the transaction that does it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from controllerd.agents.observed.server import settle
from controllerd.domain.placement import Ratios
from controllerd.domain.server import ACTIVE, ERROR, POWER_ABSENT, POWER_RUNNING, POWER_STOPPED, STOPPED, Server, settled
from controllerd.domain.volume import ATTACHED, AVAILABLE, DELETING, Volume
from controllerd.domain.volume import ERROR as VOLUME_ERROR
from controllerd.store import attachment, claim, event, foreign, node, port, recovery, router, usage, volume
from controllerd.store import server as server_store
from controllerd.store.attachment import ATTACHMENTS
from controllerd.store.database import Database, Tx
from controllerd.store.recovery import ADOPTED, MISSING, Hold
from controllerd.store.restored import REASON
from controllerd.store.router import ROUTERS
from controllerd.store.server import SERVERS
from controllerd.store.volume import VOLUMES
from daemonkit.errors import SkyrackError
from daemonkit.runtime import Runtime

log = logging.getLogger(__name__)

PASS_INTERVAL_S = 1.0
IDLE_S = 10.0  # a node that joins anew may come with what it did before
SETTLE_S = 3.0  # after its whole report: what a node had yet to look at follows it
LOOK_S = 60.0  # so long a server may be one that its node has yet to look at
WAIT_S = 60.0  # from the start: so long nodes are waited for; later ones are compared by themselves
DEADLINE_S = 600.0  # of tasks that waited for the release
MISSING_REASON = "MISSING"
_MISSING = "is not on its node since the restore: it was deleted or lost after the backup was made"
_ANY = Ratios(1e9, 1e9, 1e9)  # what runs has what it has
_GONE = ("", "GONE")


class Recovery:
    def __init__(self, database: Database, runtime: Runtime) -> None:
        self._db, self._runtime = database, runtime

    async def run(self) -> None:
        """Until cancelled."""
        waits_until_s = self._runtime.clock.boottime_s() + WAIT_S
        while True:
            holds, unreleased = await self._db.read(lambda tx: (recovery.holds(tx), recovery.unreleased(tx)))
            if holds or unreleased:
                try:
                    await self._pass(holds, self._runtime.clock.boottime_s() < waits_until_s)
                except SkyrackError:
                    raise
                except Exception:
                    log.exception("nodes could not be compared after the restore; tried again")
            await asyncio.sleep(PASS_INTERVAL_S if holds or unreleased else IDLE_S)

    async def _pass(self, holds: Sequence[Hold], patient: bool) -> None:
        for held in holds:
            if held.observed_at and not held.compared_at:
                await self._db.write(_compare(held))
        await self._db.write(lambda tx: release(tx, patient))


def _compare(held: Hold) -> Callable[[Tx], None]:
    return lambda tx: compare(tx, held)


def compare(tx: Tx, held: Hold) -> None:
    """Makes the store fit what the agent has reported, unless it has yet to tell more."""
    since_s = tx.now - held.observed_at
    if since_s < SETTLE_S:
        return
    if held.kind == "computed" and not _compare_servers(tx, held.node_id, patient=since_s < LOOK_S):
        return
    if held.kind == "storaged":
        _compare_volumes(tx, held.node_id)
    if held.kind == "networkd":
        _compare_routers(tx, held.node_id)
    recovery.compared(tx, held)


# ---- servers


def _compare_servers(tx: Tx, node_id: str, *, patient: bool) -> bool:
    """False: the node has yet to look at some of them."""
    if not _looked(tx, node_id):
        return False
    servers = [s for s in server_store.of_node(tx, node_id) if s.power not in ("", POWER_ABSENT)]
    if patient and any(s.observed_state == "PENDING" for s in servers):
        return False
    for server in servers:
        if recovery.decided(tx, server.id):
            continue
        if server.observed_state in _GONE:
            _miss_server(tx, server)
        else:
            _adopt_server(tx, server)
    for stranger in foreign.of_node(tx, node_id, "server"):
        known = SERVERS.find(tx, stranger.object_id)
        if known is not None and not known.node_id and not recovery.decided(tx, known.id):
            _take_in(tx, known, node_id, stranger.observed_state)
    return True


def _looked(tx: Tx, node_id: str) -> bool:
    """Whether the node has reached its hypervisor at all: before that it tells no capacity, and knows of no guest by itself."""
    agent = node.agent(tx, node_id, "computed")
    compute = agent.inventory.get("compute") if agent else None
    return isinstance(compute, dict) and bool(compute.get("vcpus"))


def _take_in(tx: Tx, server: Server, node_id: str, observed_state: str) -> None:
    """It was given a node after the backup was made."""
    claim.hold(tx, server, node_id, _ANY)
    placed = server_store.change(tx, server, node_id=node_id, power=POWER_RUNNING, observed_state=observed_state)
    port.bind(tx, server.id, node_id)
    foreign.forget(tx, node_id, "server", server.id)
    _adopt_server(tx, placed)


def _adopt_server(tx: Tx, server: Server) -> None:
    recovery.decide(tx, "server", server.id, server.node_id, ADOPTED)
    event.record(tx, "server.adopted", server.project_id, server.id, f"{server.observed_state.lower()} on its node")
    if server.fault_reason == REASON:
        server = _finish(tx, server)
    settle(tx, server)
    _compare_attachments(tx, server)


def _finish(tx: Tx, server: Server) -> Server:
    """It was being created when the backup was made."""
    state = settled(server)
    if state not in (ACTIVE, STOPPED):  # it never ran: nothing is to be made of it now
        return server_store.change(tx, server, power="")
    power, launched_at = POWER_RUNNING if state == ACTIVE else POWER_STOPPED, server.launched_at or tx.now
    server = server_store.change(
        tx, server, state=state, power=power, launched_at=launched_at, fault_reason="", fault_message=""
    )  # fmt: skip
    usage.open_interval(tx, server)
    return server


def _compare_attachments(tx: Tx, server: Server) -> None:
    """What the guest has it keeps; what it has no more was detached since."""
    for link in attachment.of_server(tx, server.id):
        if link.id in server.observed_attached:
            ATTACHMENTS.update(tx, link.id, state=ATTACHED, exported=True, connected=True)
        else:
            _detach(tx, link.id)


def _detach(tx: Tx, attachment_id: str) -> None:
    link = ATTACHMENTS.get(tx, attachment_id)
    ATTACHMENTS.delete(tx, link.id)
    attachment.touch_ends(tx, link)
    event.record(tx, "volume.detached", link.project_id, link.volume_id, "found detached", server_id=link.server_id)


def _miss_server(tx: Tx, server: Server) -> None:
    """Its node hears nothing of it, so nothing is made; it holds nothing there."""
    recovery.decide(tx, "server", server.id, server.node_id, MISSING)
    event.record(tx, "server.missing", server.project_id, server.id, _MISSING)
    log.warning("a server is missing since the restore", extra={"server": server.id})
    usage.close_interval(tx, server.id)
    for link in attachment.of_server(tx, server.id):
        _detach(tx, link.id)
    port.unbind(tx, server.id)
    claim.release(tx, server.id)
    server_store.change(
        tx, server, state=ERROR, power="", fault_reason=MISSING_REASON, fault_message=_MISSING, fault_details=()
    )  # fmt: skip


# ---- volumes and routers


def _compare_volumes(tx: Tx, node_id: str) -> None:
    for item in volume.of_node(tx, node_id):
        if item.absent or item.state == DELETING or recovery.decided(tx, item.id):
            continue
        if item.observed_state in _GONE:
            _miss_volume(tx, item)
        else:
            _adopt_volume(tx, item)


def _adopt_volume(tx: Tx, item: Volume) -> None:
    recovery.decide(tx, "volume", item.id, item.node_id, ADOPTED)
    if item.fault_reason == REASON and item.observed_state == "READY":
        VOLUMES.update(tx, item.id, state=AVAILABLE, fault_reason="", fault_message="")
    tx.touch(item.id)


def _miss_volume(tx: Tx, item: Volume) -> None:
    """On no node it is made by none."""
    recovery.decide(tx, "volume", item.id, item.node_id, MISSING)
    event.record(tx, "volume.missing", item.project_id, item.id, _MISSING)
    log.warning("a volume is missing since the restore", extra={"volume": item.id})
    if link := attachment.of_volume(tx, item.id):
        _detach(tx, link.id)
    VOLUMES.update(
        tx, item.id, state=VOLUME_ERROR, node_id="", fault_reason=MISSING_REASON, fault_message=_MISSING
    )  # fmt: skip
    tx.touch(item.id)


def _compare_routers(tx: Tx, node_id: str) -> None:
    """One that moved here after the backup stays here."""
    for stranger in foreign.of_node(tx, node_id, "router"):
        if ROUTERS.find(tx, stranger.object_id) is not None:
            router.move(tx, stranger.object_id, node_id)
            foreign.forget(tx, node_id, "router", stranger.object_id)


# ---- release


def release(tx: Tx, patient: bool) -> None:
    """Those that may be told again. `patient`: nodes that were not compared yet are waited for."""
    restore, holds = recovery.restored(tx), recovery.holds(tx)
    if restore is None:
        return
    away = {h.node_id for h in holds if not h.compared_at}
    ready = [h for h in holds if h.node_id not in away]
    if not restore.released_at:
        if patient and away:
            return
        if any(_nobodys(tx, h.node_id, restore.approved_at) for h in ready):
            return
        recovery.mark_released(tx, DEADLINE_S)
        event.record(tx, "cluster.released", "", "", _told(tx))
    _let_go(tx, ready, restore.approved_at)


def _let_go(tx: Tx, ready: Sequence[Hold], approved_at: float) -> None:
    withheld = {h.node_id for h in ready if _nobodys(tx, h.node_id, approved_at)}
    for held in ready:
        if held.node_id not in withheld:
            recovery.release(tx, held)
            log.info("an agent is released after the restore", extra={"node_id": held.node_id, "agent": held.kind})


def _nobodys(tx: Tx, node_id: str, approved_at: float) -> bool:
    """Whether the node has what would suffer from a release, and nobody has let go of it since it was first told."""
    things: Iterable[float] = recovery.nobodys(tx, node_id)
    return any(since >= approved_at for since in things)


def _told(tx: Tx) -> str:
    found = recovery.findings(tx)
    return f"{found.get(ADOPTED, 0)} adopted, {found.get(MISSING, 0)} missing, {foreign.count(tx)} that nobody owns"
