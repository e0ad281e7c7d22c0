"""Flavor: a named size. Public (project_id "") or private to a project."""

from __future__ import annotations

from dataclasses import dataclass

from controllerd.domain import check

VCPUS_MAX = 128
MEMORY_MIB_MIN, MEMORY_MIB_MAX = 64, 4 << 20
DISK_GIB_MAX = 16384


@dataclass(frozen=True)
class Flavor:
    id: str
    name: str
    project_id: str
    vcpus: int
    memory_mib: int
    disk_gib: int
    description: str
    created_at: float

    def __post_init__(self) -> None:
        """Errors: InvalidArgument."""
        check.name("name", self.name)
        check.between("vcpus", self.vcpus, 1, VCPUS_MAX)
        check.between("memory_mib", self.memory_mib, MEMORY_MIB_MIN, MEMORY_MIB_MAX)
        check.between("disk_gib", self.disk_gib, 1, DISK_GIB_MAX)
        check.text("description", self.description, length_max=1024)
