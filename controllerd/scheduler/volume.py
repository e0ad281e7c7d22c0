"""Which storage node a volume goes to: the one with most space not yet promised. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from daemonkit.errors import NoValidHost, Unavailable


class Candidate(Protocol):
    @property
    def node_id(self) -> str: ...

    @property
    def volumes_total_gib(self) -> int: ...


def choose(candidates: Sequence[Candidate], given_out_gib: Mapping[str, int], size_gib: int) -> str:
    """Node id. Errors: Unavailable (no storage node in session), NoValidHost with the closest miss in GiB."""
    if not candidates:
        raise Unavailable("no storage node is in session")
    room = {c.node_id: c.volumes_total_gib - given_out_gib.get(c.node_id, 0) for c in candidates}
    best = max(room, key=lambda node_id: (room[node_id], node_id))
    if room[best] < size_gib:
        lacking = size_gib - room[best]
        raise NoValidHost(
            f"no storage node has room for {size_gib} GiB; the closest of {len(room)} lacks {lacking} GiB", {"space": len(room)}
        )
    return best
