"""The decisions: from wanted and held to steps, and what is told."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as some

from storaged import plan
from storaged.plan import Grow, Make, Remove, Serve, Unexport
from storaged.spec import Blob, Desired, Export, HeldBlob, HeldVolume, Observed, State, Volume

GIB = 1 << 30
V = Volume("v", GIB)
A = Export("a", "v", "name-a", "host-1")
B = Export("b", "v", "name-b", "host-2")


def test_a_new_volume_is_made_then_served() -> None:
    assert plan.plan_volume(V, [A], None) == [Make(V), Serve(A)]


def test_nothing_to_do() -> None:
    assert plan.plan_volume(V, [A], HeldVolume(GIB, 0, frozenset((A.tag,)))) == []
    assert plan.plan_volume(V, [], HeldVolume(2 * GIB)) == []  # never shrinks
    assert plan.plan_volume(None, [], HeldVolume(GIB)) == []  # foreign: kept
    assert plan.plan_volume(None, [A], None) == []
    assert plan.plan_volume(Volume("v", GIB, absent=True), [], None) == []


def test_old_exports_are_cut_before_new_ones_are_served() -> None:
    assert plan.plan_volume(V, [B], HeldVolume(GIB, 0, frozenset((A.tag,)))) == [Unexport(A.tag), Serve(B)]
    renamed = Export("a", "v", "name-a", "host-2")  # the same attachment, another node
    assert plan.plan_volume(V, [renamed], HeldVolume(GIB, 0, frozenset((A.tag,)))) == [Unexport(A.tag), Serve(renamed)]
    assert plan.plan_volume(None, [], HeldVolume(GIB, 0, frozenset((A.tag,)))) == [Unexport(A.tag)]


def test_a_served_volume_grows_between_two_exports() -> None:
    bigger = Volume("v", 2 * GIB)
    held = HeldVolume(GIB, 0, frozenset((A.tag,)))
    assert plan.plan_volume(bigger, [A], held) == [Unexport(A.tag), Grow(2 * GIB), Serve(A)]
    assert plan.plan_volume(bigger, [], HeldVolume(GIB)) == [Grow(2 * GIB)]


def test_removal_waits_for_what_is_wanted_and_cuts_what_is_not() -> None:
    gone = Volume("v", GIB, absent=True)
    served = HeldVolume(GIB, 0, frozenset((A.tag,)))
    assert plan.plan_volume(gone, [A], served) == []
    assert plan.plan_volume(gone, [], served) == [Unexport(A.tag), Remove()]


def test_who_may_connect() -> None:
    assert plan.clients(Desired(exports={"a": A, "b": B})) == {"host-1", "host-2"}


def test_what_is_told_of_volumes() -> None:
    held = HeldVolume(GIB, 4096)
    gone = Volume("v", GIB, absent=True)
    assert plan.observe_volume(V, [], held, "") == Observed(State.READY, "", 4096)
    assert plan.observe_volume(V, [], None, "") == Observed(State.PENDING)
    assert plan.observe_volume(V, [], None, "no space") == Observed(State.FAILED, "no space")
    assert plan.observe_volume(Volume("v", 2 * GIB), [], held, "") == Observed(State.PENDING, "", 4096)
    assert plan.observe_volume(None, [], held, "") == Observed(State.READY, "", 4096, foreign=True)
    assert plan.observe_volume(gone, [], None, "old fault") == Observed(State.GONE)
    assert plan.observe_volume(gone, [A], held, "") == Observed(State.PENDING, "still exported for a", 4096)


def test_what_is_told_of_exports() -> None:
    held = HeldVolume(GIB, 0, frozenset((A.tag,)))
    assert plan.observe_export(A, V, held, "") == Observed(State.READY)
    assert plan.observe_export(B, V, held, "") == Observed(State.PENDING)
    assert plan.observe_export(B, V, held, "refused") == Observed(State.FAILED, "refused")
    assert plan.observe_export(B, None, held, "").state is State.FAILED
    assert plan.observe_export(A, V, None, "") == Observed(State.PENDING)
    assert plan.observe_leaving("a", [HeldVolume(GIB), held]) == Observed(State.PENDING)
    assert plan.observe_leaving("b", [held]) == Observed(State.GONE)
    assert plan.observe_leaving("a", []) == Observed(State.GONE)


def test_what_is_told_of_images() -> None:
    held = HeldBlob("s", 5, "raw", 512, "", "")
    assert plan.observe_blob(None, held, "") == Observed(State.READY, "", 5)
    assert plan.observe_blob(Blob("s", absent=True), held, "being read") == Observed(State.PENDING, "being read", 5)
    assert plan.observe_blob(Blob("s", absent=True), None, "") == Observed(State.GONE)
    assert plan.observe_blob(Blob("s"), None, "").state is State.FAILED
    assert plan.to_remove(Blob("s", absent=True), held)
    assert not plan.to_remove(Blob("s"), held)
    assert not plan.to_remove(None, held)


def test_every_failpoint_is_died_at_by_some_test() -> None:
    here = Path(__file__).parent
    sources = "".join(path.read_text() for path in (here.parents[1] / "storaged").rglob("*.py"))
    tests = "".join(path.read_text() for path in here.glob("test_*.py"))
    names = re.findall(r'failpoint\.hit\("([^"]+)"\)', sources)
    assert len(names) >= 10
    assert [name for name in names if f'"{name}"' not in tests] == []


EXPORTS = [Export(i, "v", f"n{i}", node) for i, node in itertools.product(("a", "b"), ("host-1", "host-2"))]
volumes = some.none() | some.builds(Volume, some.just("v"), some.sampled_from((GIB, 2 * GIB)), some.none(), some.booleans())
wanted = some.lists(some.sampled_from(EXPORTS), unique_by=lambda export: export.id)
tags = some.frozensets(some.sampled_from([export.tag for export in EXPORTS]))
helds = some.none() | some.builds(HeldVolume, some.sampled_from((GIB, 2 * GIB)), some.just(0), tags)


@given(volumes, wanted, helds)
def test_a_plan_carried_out_leaves_nothing_to_do(volume: Volume | None, exports: list[Export], held: HeldVolume | None) -> None:
    for step in plan.plan_volume(volume, exports, held):
        match step:
            case Make():
                assert held is None
                held = HeldVolume(step.volume.size_bytes)
            case Grow():
                assert held and not held.tags and step.size_bytes > held.size_bytes
                held = HeldVolume(step.size_bytes)
            case Remove():
                assert held and not held.tags
                held = None
            case Unexport():
                assert held
                held = HeldVolume(held.size_bytes, 0, held.tags - {step.tag})
            case Serve():
                assert held and volume and not volume.absent
                # One attachment is never served in two forms at once.
                assert not any(tag.startswith(f"e-{step.export.id}-") for tag in held.tags)
                held = HeldVolume(held.size_bytes, 0, held.tags | {step.export.tag})
    assert plan.plan_volume(volume, exports, held) == []
