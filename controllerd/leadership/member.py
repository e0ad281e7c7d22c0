"""A controller as the others see it: who it is, where it answers, how far its copy is. Kept in the consensus store as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class Member:
    """`api`, `agents`: "host:port" of its public API and of its service for agents and other controllers. `schema`: the newest
    one its software knows. `applied_seq`: last log entry in its copy. `wall_s`: its clock when it said so."""

    name: str
    api: str
    agents: str
    version: str
    schema: int
    applied_seq: int = 0
    wall_s: float = 0.0

    def encode(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def decode(cls, stored: bytes) -> Member:
        """Fields that this software does not know are left out."""
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in json.loads(stored).items() if key in known})


def heirs(leader: str, names: Iterable[str]) -> list[str]:
    """The others, in the order in which they try to lead when this one is gone, and agents ask for a session."""
    return sorted({*names} - {leader}, key=lambda name: (name < leader, name))
