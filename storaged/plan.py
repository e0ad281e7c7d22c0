"""Decides what to do about one volume or blob: from what is wanted and what is held to the steps between. Pure.

Steps of a volume are done in order, and its exports are part of it. Whoever carries them out looks again afterwards and plans
anew, so a step that was interrupted anywhere is simply planned again. What no desired state names is never removed: only told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from storaged.spec import Blob, Desired, Export, HeldBlob, HeldVolume, Observed, State, Volume


@dataclass(frozen=True)
class Unexport:
    """Cuts whoever uses it, at once."""

    tag: str


@dataclass(frozen=True)
class Make:
    volume: Volume


@dataclass(frozen=True)
class Grow:
    size_bytes: int


@dataclass(frozen=True)
class Serve:
    export: Export


@dataclass(frozen=True)
class Remove: ...


Step: TypeAlias = Unexport | Make | Grow | Serve | Remove


def plan_volume(volume: Volume | None, exports: Iterable[Export], held: HeldVolume | None) -> list[Step]:
    """`volume`: None when no desired state names it. A volume is not removed while an export of it is wanted."""
    wanted = {export.tag: export for export in exports}
    served = held.tags if held else frozenset()
    steps: list[Step] = [Unexport(tag) for tag in sorted(served - wanted.keys())]
    if volume is None:
        return steps
    if volume.absent:
        return [*steps, Remove()] if held and not wanted else steps
    if held is None:
        return [*steps, Make(volume), *_serve(wanted, frozenset())]
    if held.size_bytes < volume.size_bytes:
        # A volume that is served can't change its size: its clients are cut for the moment and come back by themselves.
        steps += [Unexport(tag) for tag in sorted(served & wanted.keys())]
        return [*steps, Grow(volume.size_bytes), *_serve(wanted, frozenset())]
    return [*steps, *_serve(wanted, served)]


def _serve(wanted: Mapping[str, Export], served: frozenset[str]) -> list[Step]:
    return [Serve(export) for tag, export in wanted.items() if tag not in served]


def clients(desired: Desired) -> frozenset[str]:
    """The nodes whose certificates may connect at all."""
    return frozenset(export.client_node for export in desired.exports.values())


def to_remove(blob: Blob | None, held: HeldBlob | None) -> bool:
    return blob is not None and blob.absent and held is not None


# ---- what to tell


def observe_volume(volume: Volume | None, exports: Iterable[Export], held: HeldVolume | None, fault: str) -> Observed:
    if volume is None:
        return Observed(State.READY, "", held.allocated_bytes if held else 0, foreign=True)
    allocated_bytes = held.allocated_bytes if held else 0
    if volume.absent:
        if held is None:
            return Observed(State.GONE)
        users = ", ".join(export.id for export in exports)
        why = f"still exported for {users}" if users else fault
        return Observed(State.FAILED if fault and not users else State.PENDING, why, allocated_bytes)
    if held and held.size_bytes >= volume.size_bytes:
        return Observed(State.READY, "", allocated_bytes)
    return Observed(State.FAILED if fault else State.PENDING, fault, allocated_bytes)


def observe_export(export: Export, volume: Volume | None, held: HeldVolume | None, fault: str) -> Observed:
    if held and export.tag in held.tags:
        return Observed(State.READY)
    if volume is None or (volume.absent and held is None):
        return Observed(State.FAILED, f"volume {export.volume_id} is not on this node")
    if volume.absent:
        return Observed(State.FAILED, f"volume {export.volume_id} is being removed")
    return Observed(State.FAILED if fault else State.PENDING, fault)


def observe_blob(blob: Blob | None, held: HeldBlob | None, fault: str) -> Observed:
    if held is None:
        return Observed(State.GONE) if blob and blob.absent else Observed(State.FAILED, "this node does not hold the image")
    if blob and blob.absent:
        return Observed(State.PENDING, fault, held.size_bytes)
    return Observed(State.READY, "", held.size_bytes)


def observe_leaving(export_id: str, held: Iterable[HeldVolume]) -> Observed:
    """An export that is wanted no more: gone only when nobody can write through any form of it, to any volume."""
    served = any(tag.startswith(f"e-{export_id}-") for volume in held for tag in volume.tags)
    return Observed(State.PENDING if served else State.GONE)
