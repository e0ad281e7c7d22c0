"""Project: the owner of resources."""

from __future__ import annotations

from dataclasses import dataclass

from controllerd.domain import check


@dataclass(frozen=True)
class Project:
    id: str
    name: str
    description: str
    enabled: bool
    created_at: float

    def __post_init__(self) -> None:
        """Errors: InvalidArgument."""
        check.name("name", self.name)
        check.text("description", self.description, length_max=1024)
