"""The decisions, one by one and all together."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from computed.plan import (
    Attach,
    CutPower,
    Define,
    Detach,
    Facts,
    FetchImage,
    MakeDisks,
    PressPowerButton,
    RemoveFiles,
    Resume,
    Start,
    Step,
    Trouble,
    Undefine,
    observe,
    plan,
)
from computed.spec import Disk, Domain, DomainState, Files, Image, ObservedState, Power, Server
from daemonkit.errors import Conflict

IMAGE = Image("i", "0" * 64, 1, "qcow2")
SERVER = Server("s", "web-1", vcpus=1, memory_mib=128, root_disk_gib=1, image=IMAGE)
PREPARED, STOPPED = replace(SERVER, power=Power.PREPARED), replace(SERVER, power=Power.STOPPED)
ABSENT = replace(SERVER, absent=True)
VOLUME = Disk("a1", "v1", "vdb", "10.0.0.1", 10809, "e1")

NOTHING, MADE = Files(), Files(image=True, root_disk=True, anything=True)
OFF, ON, HELD = (Domain("s", state, digest="d") for state in DomainState)


def facts(domain: Domain | None = None, files: Files = MADE, **more: bool) -> Facts:
    return Facts(domain, files, "d", **more)


@pytest.mark.parametrize(
    ("server", "there", "steps"),
    [
        (SERVER, facts(files=NOTHING), [FetchImage(), MakeDisks(), Define(), Start()]),
        (SERVER, facts(files=Files(image=True)), [MakeDisks(), Define(), Start()]),
        (PREPARED, facts(), [Define()]),
        (PREPARED, facts(OFF), []),
        (SERVER, facts(OFF), [Start()]),
        (SERVER, facts(replace(OFF, digest="old")), [Define(), Start()]),
        (SERVER, facts(OFF, switched_off=True), []),
        (SERVER, facts(ON), []),
        (SERVER, facts(replace(ON, digest="old")), [Define()]),
        (SERVER, facts(HELD), []),  # somebody paused it by hand
        (SERVER, facts(replace(HELD, io_error=True)), [Resume()]),
        (STOPPED, facts(ON), [PressPowerButton()]),
        (STOPPED, facts(ON, grace_over=True), [CutPower()]),
        (STOPPED, facts(HELD), [CutPower()]),
        (STOPPED, facts(OFF), []),
        (replace(SERVER, config_drive=True), facts(OFF), [MakeDisks(), Start()]),
        (replace(SERVER, disks=(VOLUME,)), facts(ON), [Attach(VOLUME)]),
        (SERVER, facts(replace(ON, disks=(("e1", "vdb"),))), [Detach("e1", "vdb")]),
        (replace(SERVER, disks=(VOLUME,)), facts(replace(ON, disks=(("e0", "vdb"),))), [Detach("e0", "vdb")]),
        (ABSENT, facts(ON), [CutPower(), Undefine(), RemoveFiles()]),
        (ABSENT, facts(OFF), [Undefine(), RemoveFiles()]),
        (ABSENT, facts(), [RemoveFiles()]),
        (ABSENT, facts(files=NOTHING), []),
    ],
)
def test_plan(server: Server, there: Facts, steps: list[Step]) -> None:
    assert plan(server, there) == steps


def test_lost_root_disk_is_not_replaced_by_an_empty_one() -> None:
    with pytest.raises(Conflict, match="root disk is lost"):
        plan(SERVER, facts(OFF, NOTHING))


def test_domain_of_somebody_else_is_never_touched() -> None:
    for server in (SERVER, STOPPED, ABSENT):
        with pytest.raises(Conflict, match="not ours"):
            plan(server, facts(replace(ON, ours=False)))


@pytest.mark.parametrize(
    ("server", "there", "trouble", "state"),
    [
        (SERVER, facts(), None, ObservedState.PENDING),
        (SERVER, facts(OFF), None, ObservedState.PENDING),
        (SERVER, facts(OFF, switched_off=True), None, ObservedState.STOPPED),
        (SERVER, facts(OFF), Trouble("no"), ObservedState.FAILED),
        (SERVER, facts(OFF), Trouble("wait", passing=True), ObservedState.PENDING),
        (SERVER, facts(ON), Trouble("no"), ObservedState.RUNNING),
        (SERVER, facts(HELD), None, ObservedState.PAUSED),
        (PREPARED, facts(OFF), None, ObservedState.READY),
        (PREPARED, facts(replace(OFF, digest="old")), None, ObservedState.PENDING),
        (STOPPED, facts(OFF), None, ObservedState.STOPPED),
        (ABSENT, facts(files=NOTHING), None, ObservedState.GONE),
        (ABSENT, facts(), None, ObservedState.PENDING),
    ],
)
def test_observe(server: Server, there: Facts, trouble: Trouble | None, state: ObservedState) -> None:
    assert observe(server, there, trouble).state is state


def carry_out(step: Step, server: Server, there: Facts) -> Facts:
    """What the world looks like after a step that worked."""
    domain, files = there.domain, there.files
    match step:
        case FetchImage():
            files = replace(files, image=True)
        case MakeDisks():
            files = replace(files, root_disk=True, config_drive=server.config_drive, anything=True)
        case Define():
            domain = replace(domain or OFF, digest="d")
        case Start() | Resume():
            assert domain is not None
            domain = replace(domain, state=DomainState.RUNNING, io_error=False)
        case PressPowerButton():
            return replace(there, grace_over=True)  # it did not obey
        case CutPower():
            assert domain is not None
            domain = replace(domain, state=DomainState.SHUTOFF, disks=(), io_error=False)
        case Attach(disk):
            assert domain is not None
            domain = replace(domain, disks=(*domain.disks, (disk.export_name, disk.target)))
        case Detach(export_name):
            assert domain is not None
            domain = replace(domain, disks=tuple(d for d in domain.disks if d[0] != export_name))
        case Undefine():
            domain = None
        case RemoveFiles():
            files = Files(image=files.image)
    return replace(there, domain=domain, files=files)


def test_every_plan_leads_to_its_end_wherever_it_is_interrupted() -> None:
    """From every state, doing only the first step of each plan: as after a crash at each step."""
    shapes = [SERVER, PREPARED, STOPPED, ABSENT, replace(SERVER, disks=(VOLUME,)), replace(SERVER, config_drive=True)]
    domains = [OFF, ON, HELD, replace(HELD, io_error=True), replace(ON, disks=(("e0", "vdb"),)), replace(ON, digest="x")]
    starts = [facts(), facts(files=NOTHING), *(facts(domain) for domain in domains)]
    ends = {ObservedState.RUNNING, ObservedState.READY, ObservedState.STOPPED, ObservedState.GONE, ObservedState.PAUSED}
    for server, there in itertools.product(shapes, starts):
        for _ in range(12):
            steps = plan(server, there)
            if not steps:
                break
            there = carry_out(steps[0], server, there)
        assert plan(server, there) == []
        assert observe(server, there, None).state in ends
