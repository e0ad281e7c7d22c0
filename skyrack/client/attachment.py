"""The link between a volume and a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attachment:
    id: str
    server_id: str
    volume_id: str
    device: str
    """As the guest names it, e.g. "/dev/vdb"."""
    state: str
    """ATTACHING, ATTACHED or DETACHING."""
