"""Event: one line of a resource's history."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    seq: int
    time: float
    kind: str  # "server.create", "server.running", "node.lost"
    project_id: str
    resource_kind: str
    resource_id: str
    message: str
    request_id: str
    user_id: str
    data: dict[str, str]
