"""Image: a bootable template. Immutable content, named by its sha256."""

from __future__ import annotations

from dataclasses import dataclass

from controllerd.domain import check

QUEUED = "QUEUED"  # no content yet
SAVING = "SAVING"  # an upload is under way in this controller
ACTIVE = "ACTIVE"
ERROR = "ERROR"  # the content was not what it says

FORMATS = ("qcow2", "raw")
MIN_DISK_GIB_MAX = 16384
MIN_MEMORY_MIB_MAX = 4 << 20


@dataclass(frozen=True)
class Image:
    id: str
    name: str
    project_id: str
    public: bool
    state: str
    format: str
    size_bytes: int
    virtual_bytes: int
    sha256: str
    min_disk_gib: int
    min_memory_mib: int
    fault_reason: str
    fault_message: str
    properties: dict[str, str]
    created_at: float
    md5: str
    sha512: str

    def __post_init__(self) -> None:
        """Errors: InvalidArgument."""
        check.name("name", self.name)
        check.one_of("format", self.format, FORMATS)
        check.between("min_disk_gib", self.min_disk_gib, 0, MIN_DISK_GIB_MAX)
        check.between("min_memory_mib", self.min_memory_mib, 0, MIN_MEMORY_MIB_MAX)
        check.metadata("properties", self.properties)


def queued(
    image_id: str, name: str, project_id: str, public: bool, format_: str, min_disk_gib: int, min_memory_mib: int,
    properties: dict[str, str], now: float,
) -> Image:  # fmt: skip
    return Image(
        image_id, name, project_id, public, QUEUED, format_, 0, 0, "", min_disk_gib, min_memory_mib, "", "", properties, now,
        "", "",
    )  # fmt: skip
