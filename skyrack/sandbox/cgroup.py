"""The control groups of a host in the box: one group of the same name in every hierarchy of the machine.

A host's first process enters its group before anything else and then makes a cgroup namespace, so that libvirt in two hosts
does not collide in /machine. Works with cgroup v2, with v1 and with both at once; where there is none, does nothing.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
_MOUNT_FLAGS = {"rw", "ro", "nosuid", "nodev", "noexec", "relatime", "xattr", "clone_children"}
REMOVE_TRIES_MAX = 40
REMOVE_PAUSE_S = 0.05


@dataclass(frozen=True)
class Hierarchy:
    """A mounted cgroup tree. `controllers` as given to mount(8); empty for v2."""

    path: Path
    controllers: str

    @property
    def unified(self) -> bool:
        return not self.controllers


def hierarchies(mounts: str) -> list[Hierarchy]:
    """From the text of /proc/mounts."""
    found = []
    for line in mounts.splitlines():
        _, path, kind, options, *_ = line.split()
        if kind == "cgroup2":
            found.append(Hierarchy(Path(path), ""))
        elif kind == "cgroup":
            controllers = [o for o in options.split(",") if o not in _MOUNT_FLAGS and not o.startswith("release_agent=")]
            found.append(Hierarchy(Path(path), ",".join(controllers)))
    return found


class ControlGroup:
    def __init__(self, name: str) -> None:
        self.name = name
        self.hierarchies = hierarchies(MOUNTS.read_text())

    def _paths(self) -> list[Path]:
        return [path for h in self.hierarchies if (path := h.path / self.name).is_dir()]

    def create(self) -> None:
        for hierarchy in self.hierarchies:
            group = hierarchy.path / self.name
            with suppress(OSError):
                group.mkdir(exist_ok=True)
                for knob in ("cpuset.cpus", "cpuset.mems"):  # v1: empty at birth, and nothing may enter before they are set
                    if not hierarchy.unified and (group / knob).exists():
                        (group / knob).write_text((hierarchy.path / knob).read_text())

    def entrances(self) -> list[str]:
        """Files to which a process writes 0 to enter."""
        return [str(path / "cgroup.procs") for path in self._paths()]

    def pids(self) -> set[int]:
        """Every process in the group or below it."""
        found: set[int] = set()
        for path in self._paths():
            for procs in path.rglob("cgroup.procs"):
                with suppress(OSError):
                    found.update(int(pid) for pid in procs.read_text().split())
        return found - {0}

    def freeze(self, frozen: bool) -> bool:
        """Stops or wakes every process of the group at once. False where the machine has no freezer."""
        for path in self._paths():
            for knob, value in (("cgroup.freeze", str(int(frozen))), ("freezer.state", "FROZEN" if frozen else "THAWED")):
                if (path / knob).exists():
                    (path / knob).write_text(value)
                    return True
        return False

    async def remove(self) -> None:
        """Once its processes are dead; the kernel may need a moment to forget them."""
        for _ in range(REMOVE_TRIES_MAX):
            for path in self._paths():
                inner = sorted((p for p in path.rglob("*") if p.is_dir()), key=lambda p: len(p.parts), reverse=True)
                for directory in [*inner, path]:
                    with suppress(OSError):
                        directory.rmdir()
            if not self._paths():
                return
            await asyncio.sleep(REMOVE_PAUSE_S)


def names(prefix: str) -> set[str]:
    """Groups of the machine whose name starts with `prefix`."""
    found: set[str] = set()
    for hierarchy in hierarchies(MOUNTS.read_text()):
        found.update(path.name for path in hierarchy.path.glob(f"{prefix}*") if path.is_dir())
    return found
