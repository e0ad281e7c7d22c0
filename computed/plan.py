"""Decides what to do about one server: from what is wanted and what is there to the steps between. Pure.

Steps are done in order. Whoever carries them out looks again afterwards and asks for the next plan, until it is empty; so a
step that was interrupted anywhere, by anything, is simply planned again.

The order is part of the safety: a domain is defined only after its root disk is there, and files go only after the domain.
So a defined domain without a root disk has lost it: that is told, not papered over with an empty one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from computed.spec import Disk, Domain, DomainState, Files, Observed, ObservedState, Power, Server
from daemonkit.errors import Conflict


@dataclass(frozen=True)
class FetchImage:
    """Into the node's cache."""


@dataclass(frozen=True)
class MakeDisks:
    """The root disk and the config drive: those of them that are missing."""


@dataclass(frozen=True)
class Define:
    """Replaces the persistent definition; a running guest keeps what it has."""


@dataclass(frozen=True)
class Start:
    """Waits for its interfaces to be there."""


@dataclass(frozen=True)
class PressPowerButton:
    """Asks the guest to switch itself off."""


@dataclass(frozen=True)
class CutPower: ...


@dataclass(frozen=True)
class Resume:
    """After a disk failed: the request that failed is sent again."""


@dataclass(frozen=True)
class Attach:
    disk: Disk


@dataclass(frozen=True)
class Detach:
    """Asks the guest to let go of the disk at `target`; it may take its time, or refuse."""

    export_name: str
    target: str


@dataclass(frozen=True)
class Undefine: ...


@dataclass(frozen=True)
class RemoveFiles: ...


Step: TypeAlias = (
    FetchImage | MakeDisks | Define | Start | PressPowerButton | CutPower | Resume | Attach | Detach | Undefine | RemoveFiles
)


@dataclass(frozen=True)
class Facts:
    """What is there for one server, looked at just now.

    digest: of the definition it should have. switched_off: its guest ended itself while RUNNING was wanted.
    grace_over: it was asked to stop and the time it had for that is up.
    """

    domain: Domain | None
    files: Files
    digest: str
    switched_off: bool = False
    grace_over: bool = False


def plan(server: Server, facts: Facts) -> list[Step]:
    """The steps from `facts` to `server`; empty when all is as wanted. Errors: Conflict when that can't be reached."""
    domain = facts.domain
    if domain is not None and not domain.ours:
        raise Conflict("a domain that is not ours has the uuid of this server")
    if server.absent:
        return _removal(facts)
    if domain is None or domain.state is DomainState.SHUTOFF:
        return _at_rest(server, facts)
    if server.power is not Power.RUNNING:
        return [*_definition(facts), *_stopping(domain, facts)]
    return [*_definition(facts), *_resuming(domain), *_plugging(server, domain)]


def _removal(facts: Facts) -> list[Step]:
    steps: list[Step] = []
    if facts.domain is not None:
        steps += [] if facts.domain.state is DomainState.SHUTOFF else [CutPower()]
        steps += [Undefine()]
    if facts.files.anything:
        steps += [RemoveFiles()]
    return steps


def _at_rest(server: Server, facts: Facts) -> list[Step]:
    steps: list[Step] = []
    if not facts.files.root_disk:
        if facts.domain is not None:
            raise Conflict("the server's root disk is lost")
        steps += [] if facts.files.image else [FetchImage()]
    if not facts.files.root_disk or (server.config_drive and not facts.files.config_drive):
        steps += [MakeDisks()]
    steps += _definition(facts)
    if server.power is Power.RUNNING and not facts.switched_off:
        steps += [Start()]
    return steps


def _definition(facts: Facts) -> list[Step]:
    held = facts.domain.digest if facts.domain else ""
    return [] if held == facts.digest else [Define()]


def _stopping(domain: Domain, facts: Facts) -> list[Step]:
    """A guest that the hypervisor holds can't obey the power button."""
    if facts.grace_over or domain.state is DomainState.PAUSED:
        return [CutPower()]
    return [PressPowerButton()]


def _resuming(domain: Domain) -> list[Step]:
    """Only what a failed disk stopped: a guest that was paused by hand stays so."""
    return [Resume()] if domain.state is DomainState.PAUSED and domain.io_error else []


def _plugging(server: Server, domain: Domain) -> list[Step]:
    """A target that is still taken is attached to by a later plan, when its disk is gone."""
    wanted = {disk.export_name for disk in server.disks}
    there = {name for name, _target in domain.disks}
    steps: list[Step] = [Detach(name, target) for name, target in domain.disks if name not in wanted]
    taken = {target for _name, target in domain.disks}
    steps += [Attach(disk) for disk in server.disks if disk.export_name not in there and disk.target not in taken]
    return steps


@dataclass(frozen=True)
class Trouble:
    """Why the last plan was not carried out. A passing one (something is not there yet) is no failure of the server."""

    fault: str
    passing: bool = False


def observe(server: Server, facts: Facts, trouble: Trouble | None, milestones: tuple[tuple[str, float], ...] = ()) -> Observed:
    """What to tell of a server, by the same facts."""
    if server.absent and trouble is None and not _removal(facts):
        return Observed(ObservedState.GONE)
    names = {name for name, _target in facts.domain.disks} if facts.domain else set()
    attached = tuple(sorted(disk.attachment_id for disk in server.disks if disk.export_name in names))
    fault = trouble.fault if trouble else _hint(facts)
    return Observed(_state(server, facts, trouble), fault, attached, milestones)


def _state(server: Server, facts: Facts, trouble: Trouble | None) -> ObservedState:
    domain = facts.domain
    if domain is not None and domain.state is DomainState.PAUSED:
        return ObservedState.PAUSED
    if domain is not None and domain.state is DomainState.RUNNING:
        return ObservedState.RUNNING
    if trouble is not None and not trouble.passing:
        return ObservedState.FAILED
    if domain is None or server.absent or domain.digest != facts.digest:
        return ObservedState.PENDING
    if server.power is Power.PREPARED:
        return ObservedState.READY
    if server.power is Power.RUNNING and not facts.switched_off:
        return ObservedState.PENDING
    return ObservedState.STOPPED


def _hint(facts: Facts) -> str:
    if facts.domain is not None and facts.domain.io_error:
        return "a disk does not answer: " + ", ".join(facts.domain.failed_disks or ("unknown",))
    return ""


def foreign(domain: Domain) -> Observed:
    """A domain with our mark that no desired state names: told, and left alone."""
    states = {
        DomainState.RUNNING: ObservedState.RUNNING,
        DomainState.PAUSED: ObservedState.PAUSED,
        DomainState.SHUTOFF: ObservedState.STOPPED,
    }
    return Observed(states[domain.state], foreign=True)


def leftover() -> Observed:
    """Files of a server that no desired state names, and no domain: told, and left alone."""
    return Observed(ObservedState.STOPPED, fault="only its disks are left", foreign=True)
