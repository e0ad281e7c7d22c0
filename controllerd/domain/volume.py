"""Volume: a block device that outlives servers. Attachment: its link to the one server that may use it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from controllerd.domain import check
from daemonkit.errors import Conflict

CREATING, AVAILABLE, DELETING, ERROR = "CREATING", "AVAILABLE", "DELETING", "ERROR"
ATTACHING, ATTACHED, DETACHING = "ATTACHING", "ATTACHED", "DETACHING"

SIZE_GIB_MAX = 16384
DEVICES = tuple(f"vd{letter}" for letter in "bcdefghi")  # vda is the root disk; as many as spare PCI root ports


@dataclass(frozen=True)
class Volume:
    """`state` is of the volume itself; whether it is in use tells its attachment."""

    id: str
    name: str
    project_id: str
    size_gib: int
    state: str
    image_id: str
    image_sha256: str
    image_format: str
    image_size_bytes: int
    image_virtual_bytes: int
    node_id: str
    absent: bool
    fault_reason: str
    fault_message: str
    created_at: float
    observed_state: str
    observed_fault: str
    observed_at: float

    def __post_init__(self) -> None:
        """Errors: InvalidArgument."""
        check.name("name", self.name)
        check.between("size_gib", self.size_gib, 1, SIZE_GIB_MAX)


@dataclass(frozen=True)
class Attachment:
    """`exported`, `connected`: desired at the storage and at the compute node."""

    id: str
    volume_id: str
    server_id: str
    project_id: str
    device: str
    export_name: str
    state: str
    exported: bool
    connected: bool
    created_at: float
    observed_export: str
    observed_fault: str


def free_device(taken: Collection[str]) -> str:
    """Errors: Conflict when the server has no slot left."""
    for device in DEVICES:
        if device not in taken:
            return device
    raise Conflict(f"a server can have at most {len(DEVICES)} volumes")
