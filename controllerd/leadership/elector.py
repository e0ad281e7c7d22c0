"""Decides, with the others, which controller leads, and runs the leader's work while it is this one.

Guarantees: `lead` runs only between a won election and the end of its lease, counted on this machine's clock from before the
last renewal was sent; two controllers never both hold a lease that still counts. When the lease can't be proven any more
`lead` is cancelled; one that does not end ends the process. What `lead` commits is fenced by the leader key, so that even a
controller that slept through all this writes nothing. A planned hand-over lets `lead` end in order, then gives the lease back.

Between terms this controller follows. A Diverged copy ends the process: `run` raises.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Gauge

from controllerd.leadership import key
from controllerd.leadership.follower import Ahead, Behind, Follower, Leader, Scene
from controllerd.leadership.kv import Created, Delete, Kv, Put
from controllerd.leadership.lease import Lease, LeaseSettings
from controllerd.leadership.member import Member, heirs
from controllerd.leadership.roster import Roster
from controllerd.leadership.stance import TURN_JITTER_S, TURN_S, Campaign, Follow, View, Wait, next_step
from daemonkit import metrics
from daemonkit.errors import Conflict, Fenced, NotFound, NotLeader, SkyrackError, Unavailable
from daemonkit.runtime import Runtime

log = logging.getLogger(__name__)

LEADING = Gauge("skyrack_cluster_leading", "1 while this controller leads", registry=metrics.REGISTRY)

SUCCESSOR_TTL_S = 5
RETRY_S = 0.5  # at most; after the consensus store did not answer
REST_MIN_S = 0.005  # of a lease; less is not worth a renewal
RESTRAINT_S = 2.0  # who gave up leading, or could not, leaves it to others for so long
WIND_DOWN_MAX_S = 20.0  # for a term that ends in order
LEAVE_MAX_S = 6.0  # for another one to lead, when this one's process ends
LOOK_S = 0.05  # while nobody leads, and this one does not try
STUCK_TTLS = 3  # for one whose lease has ended: above what an append takes to give up


@dataclass
class Term:
    """One stretch of leading, from a won election on. `leader_revision`: of the leader key's creation, raises the epoch.

    `ending` is set when this controller shall hand over: take nothing new, finish what is in flight, return. A cancellation
    means that the lease is lost, or that the process ends.
    """

    kv: Kv
    leader_revision: int
    lease_id: int
    lease: Lease
    ending: asyncio.Event = field(default_factory=asyncio.Event)


Lead = Callable[[Term], Awaitable[None]]


class StuckTerm(SkyrackError):
    """A term did not end though its lease did. The process must not go on."""

    reason = "STUCK_TERM"


class Elector:
    """`me` tells this controller as the others shall see it now."""

    def __init__(self, kv: Kv, me: Callable[[], Member], follower: Follower, settings: LeaseSettings, runtime: Runtime) -> None:
        self._kv, self._me, self._follower = kv, me, follower
        self._settings, self._runtime = settings, runtime
        self._roster = Roster(kv, me, runtime)
        self._name = me().name
        self._term: Term | None = None
        self._vacant_since_s: float | None = None
        self._turn_s = 0.0
        self._led_last = ""
        self._told = ""
        self._leaving = False
        self._restrained_until_s = 0.0
        self._abandoned: set[int] = set()  # leases of ours that nobody uses, but the store may still keep

    # ---- what the others ask

    @property
    def leader(self) -> Member | None:
        """Who holds the leader key, as last heard; None also for a key that this controller left behind when it died."""
        known = self._known_leader
        return None if known is None else known.member

    @property
    def leader_revision(self) -> int:
        """Of the leader key's creation: at most the leader's epoch. 0 without a leader."""
        known = self._known_leader
        return 0 if known is None else known.revision

    @property
    def _known_leader(self) -> Leader | None:
        known = self._follower.leader.value
        return None if known is not None and known.member.name == self._name and self._term is None else known

    async def changed(self) -> None:
        """Returns when another term has begun than at the call, or the one that was has ended."""
        known = self._known_leader
        while self._known_leader == known:
            await self._follower.leader.other_than(self._follower.leader.value)

    def members(self) -> Mapping[str, Member]:
        """Every controller that is there, by name."""
        return self._roster.members.value

    def clock_offsets_s(self) -> Mapping[str, float]:
        """How far each controller's clock is ahead of this one's, when it last registered."""
        return self._roster.clock_offsets_s

    async def resign(self, successor: str = "") -> None:
        """Begins to hand over, to `successor` or whoever comes first; returns at once, the term ends when its work has.

        Errors: NotLeader; NotFound when there is no such controller; Conflict when it is this one; Unavailable.
        """
        term = self._term
        if term is None:
            raise NotLeader(self.leader.agents if self.leader else "", self.leader_revision)
        if successor == self._name:
            raise Conflict(f"{successor} leads already")
        if successor and successor not in self.members():
            raise NotFound("controller", successor)
        successor = successor or self._freshest_other()
        if successor:
            lease = await self._kv.grant(SUCCESSOR_TTL_S)
            await self._kv.txn([], [Put(key.SUCCESSOR, successor.encode(), lease)])
        log.info("resigning", extra={"successor": successor})
        self._restrain()
        term.ending.set()

    def _freshest_other(self) -> str:
        """Of those with the oldest software: newer one may have to wait for them before it leads."""
        others = [member for member in self.members().values() if member.name != self._name]
        return max(others, key=lambda m: (-m.schema, m.applied_seq, m.name)).name if others else ""

    async def leave(self) -> bool:
        """Before the process ends: from now on this controller is no candidate; if it leads it hands over.

        Returns when another one leads, or none is left, after LEAVE_MAX_S at most; tells whether one leads. Then cancel `run`.
        """
        self._leaving = True
        if self._term is not None and self._freshest_other():
            await self._roster.withdraw()  # first: software that is newer may have to wait until this one is gone
            with suppress(NotLeader, Unavailable, TimeoutError):
                await self.resign()
                async with asyncio.timeout(LEAVE_MAX_S):
                    while not self._another_leads and self._freshest_other():  # noqa: ASYNC110 - two things to wait for
                        await asyncio.sleep(LOOK_S)
        return self._another_leads

    @property
    def _another_leads(self) -> bool:
        return self.leader is not None and self.leader.name != self._name

    # ---- the loop

    async def run(self, lead: Lead) -> None:
        """Until cancelled; a term under way ends first. Errors: Diverged, StuckTerm, and what `lead` raises in earnest."""
        async with asyncio.TaskGroup() as group:
            roster = group.create_task(self._roster.run())
            try:
                while True:
                    await self._turn(lead)
            finally:
                roster.cancel()
                await self._follower.close()

    async def _turn(self, lead: Lead) -> None:
        try:
            if self._leaving:
                await self._pause(LOOK_S)
                return
            await self._follower.open()
            scene = await self._follower.look()
            for lease_id in sorted(self._abandoned):
                await self._let_go(lease_id)
            match next_step(await self._view(scene)):
                case Follow():
                    self._told = ""
                    await self._follower.follow()
                case Wait(for_s):
                    await self._pause(for_s)
                case Campaign():
                    term = await self._campaign(scene)
                    if term is not None:
                        await self._serve(term, lead)
        except Unavailable as error:
            self._tell("trying again", error)
            await asyncio.sleep(self._runtime.jitter_s(RETRY_S))

    async def _pause(self, limit_s: float) -> None:
        """Until somebody leads, for so long at most. Errors: Unavailable."""
        end_s = self._now_s() + limit_s
        while (rest_s := end_s - self._now_s()) > 0:
            await asyncio.sleep(min(rest_s, LOOK_S))
            if (await self._follower.look()).leader is not None:
                return

    async def _view(self, scene: Scene) -> View:
        """Errors: Unavailable, Diverged."""
        if scene.leader is not None:
            self._vacant_since_s, self._led_last = None, scene.leader.member.name
            return View(self._name, led=True, fit=False)
        now_s = self._now_s()
        if self._vacant_since_s is None:
            self._vacant_since_s, self._turn_s = now_s, self._turn_in_s()
        return View(
            self._name, led=False, fit=await self._fit(), successor=scene.successor,
            vacant_s=now_s - self._vacant_since_s, turn_s=self._turn_s,
            restraint_s=self._restrained_until_s - now_s,
        )  # fmt: skip

    def _turn_in_s(self) -> float:
        """The heirs of who led try one after the other: agents go to the first of them, and should not have to move on."""
        others = heirs(self._led_last, [*self.members(), self._name])
        place = others.index(self._name) if self._name in others else len(others)
        return place * TURN_S + self._runtime.jitter_s(TURN_JITTER_S)

    async def _fit(self) -> bool:
        try:
            await self._follower.catch_up()
            await self._follower.check_all_can_follow()
        except (Behind, Ahead) as why:
            self._tell("this controller cannot lead", why)
            return False
        return True

    def _tell(self, what: str, why: SkyrackError) -> None:
        """Once, though it is met several times a second."""
        if self._told != why.message:
            self._told = why.message
            log.info(what, extra={"why": why.message})

    def _restrain(self) -> None:
        self._restrained_until_s = self._now_s() + RESTRAINT_S

    def _now_s(self) -> float:
        return self._runtime.clock.boottime_s()

    # ---- winning

    async def _campaign(self, scene: Scene) -> Term | None:
        """None when another one won, or nobody knows. Errors: Unavailable."""
        sent_s = self._now_s()
        lease_id = await self._kv.grant(self._settings.ttl_s)
        lease = Lease(self._settings, sent_s, self._settings.ttl_s)
        revision = 0
        try:
            revision = await self._take_key(scene, lease_id, lease)
        finally:
            if not revision:
                await self._let_go(lease_id)
        return Term(self._kv, revision, lease_id, lease) if revision else None

    async def _take_key(self, scene: Scene, lease_id: int, lease: Lease) -> int:
        """The create revision of the leader key, 0 if it is not ours. An unknown outcome: the same again, until it is known."""
        conditions = [Created(key.LEADER, 0)]
        changes: list[Put | Delete] = [Put(key.LEADER, self._me().encode(), lease_id), Delete(key.SUCCESSOR)]
        if not scene.cluster_id:
            conditions.append(Created(key.CLUSTER, 0))
            changes.append(Put(key.CLUSTER, self._follower.cluster_id.encode()))
        while lease.holds(self._now_s()):
            try:
                result = await self._kv.txn(conditions, changes, [key.LEADER])
            except Unavailable:
                await asyncio.sleep(self._runtime.jitter_s(RETRY_S))
                continue
            if result.succeeded:
                return result.revision
            found = result.found[0]
            return found.create_revision if found is not None and found.lease == lease_id else 0
        return 0

    async def _let_go(self, lease_id: int) -> None:
        try:
            await self._kv.revoke(lease_id)
            self._abandoned.discard(lease_id)
        except Unavailable as error:
            log.info("lease not given back yet", extra={"why": error.message})
            self._abandoned.add(lease_id)

    # ---- leading

    async def _serve(self, term: Term, lead: Lead) -> None:
        """The whole term. Errors: StuckTerm, and what `lead` raises in earnest."""
        self._term, self._vacant_since_s = term, None
        self._follower.leader.set(Leader(self._me(), term.leader_revision))
        work = asyncio.ensure_future(self._work(term, lead))
        renewal = asyncio.ensure_future(self._renew(term))
        try:
            await _until_over(term, work, renewal)
        finally:
            await self._end(term, work, renewal)
        if not work.cancelled() and (error := work.exception()) is not None:
            log.warning("the term ended by an error", extra={"why": repr(error)})
            if (rest := _in_earnest(error)) is not None:
                raise rest

    async def _work(self, term: Term, lead: Lead) -> None:
        await self._follower.look()  # the log may have been emptied for a restored cloud before this term, not in it
        await self._follower.catch_up()  # to the end: the leader before can't append any more
        await self._follower.close()
        log.info("leading", extra={"revision": term.leader_revision})
        LEADING.set(1)
        await lead(term)

    async def _renew(self, term: Term) -> None:
        """Until the lease can't be proven any more."""
        pause_s = self._settings.renew_interval_s
        while (rest_s := term.lease.rest_s(self._now_s())) > REST_MIN_S:
            await asyncio.sleep(min(rest_s, pause_s))
            sent_s = self._now_s()
            try:
                async with asyncio.timeout(min(term.lease.rest_s(sent_s), self._settings.renew_interval_s)):
                    term.lease.renewed(sent_s, await self._kv.keep_alive(term.lease_id))
                pause_s = self._settings.renew_interval_s
            except (TimeoutError, Unavailable):
                pause_s = self._settings.renew_interval_s / 4
        log.warning("the lease can't be proven any more", extra={"revision": term.leader_revision})

    async def _end(self, term: Term, work: asyncio.Future[None], renewal: asyncio.Future[None]) -> None:
        """Stops the work, then gives the lease back; it is renewed while the work winds down. Errors: StuckTerm."""
        try:
            work.cancel()
            await asyncio.wait([work, renewal], timeout=WIND_DOWN_MAX_S, return_when=asyncio.FIRST_COMPLETED)
            for ttls in (STUCK_TTLS, 1):  # the second for a process that was stopped, and so slept through the first
                if not work.done():
                    await asyncio.wait([work], timeout=ttls * self._settings.ttl_s)
        finally:
            renewal.cancel()
            LEADING.set(0)
            self._term = None
            self._follower.leader.set(None)
            self._restrain()
        if not work.done():
            log.critical("the leader's work does not end")
            raise StuckTerm("the leader's work does not end though it must not lead any more")
        term.lease.renewed(self._now_s(), 0)
        await self._let_go(term.lease_id)
        log.info("not leading any more", extra={"revision": term.leader_revision})


async def _until_over(term: Term, work: asyncio.Future[None], renewal: asyncio.Future[None]) -> None:
    """The work ended, or the lease, or the work was told to end and takes too long."""
    ending: asyncio.Future[Any] = asyncio.ensure_future(term.ending.wait())
    try:
        await asyncio.wait([work, renewal, ending], return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([work, renewal], timeout=WIND_DOWN_MAX_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ending.cancel()


def _in_earnest(error: BaseException) -> BaseException | None:
    """What of `error` is not explained by a lost lease or a consensus store that does not answer."""
    if isinstance(error, BaseExceptionGroup):
        return error.split((Fenced, Unavailable))[1]
    return None if isinstance(error, Fenced | Unavailable) else error
