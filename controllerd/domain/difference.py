"""Where the store and what the nodes report do not agree."""

from __future__ import annotations

from dataclasses import dataclass, replace

OPERATOR = "operator"


@dataclass(frozen=True)
class Difference:
    """`owner`: who mends it: id of a task, name of a reconciler or an agent, or OPERATOR. `since`: wall time in seconds."""

    kind: str
    resource_kind: str
    resource_id: str
    node: str  # name, "" = none
    project_id: str  # "" = the cloud's
    owner: str
    message: str
    since: float

    @property
    def key(self) -> str:
        """The same difference has the same key as long as it is there."""
        return f"{self.kind}/{self.resource_id}/{self.node}"

    def at(self, since: float) -> Difference:
        return replace(self, since=since)


@dataclass(frozen=True)
class Comparison:
    """`differences` by age, the oldest first. `checked_at`: wall time in seconds."""

    differences: tuple[Difference, ...]
    checked_at: float
