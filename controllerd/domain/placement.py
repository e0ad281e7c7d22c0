"""Placement: what the scheduler is asked, and what it is told of the nodes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as the scheduler sees it. Capacity is physical; `*_claimed` is what servers (and tombstones) hold of it."""

    node_id: str
    name: str
    compute: bool  # by its roles: runs servers and carries their ports
    enabled: bool
    in_session: bool  # both agents, now
    lost: bool  # one of them is given up, or was never seen
    vcpus: int
    memory_mib: int
    disk_gib: int
    vcpus_claimed: int
    memory_mib_claimed: int
    disk_gib_claimed: int
    servers: int
    images: frozenset[str]  # sha256 of images in its cache


@dataclass(frozen=True, slots=True)
class Ratios:
    """How much is given out for each unit that is there."""

    vcpu: float = 4.0
    memory: float = 1.0
    disk: float = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    vcpus: int
    memory_mib: int
    disk_gib: int
    image_sha256: str = ""
    node_id: str = ""  # only on this one
    not_node_id: str = ""  # not on that one
