"""Task: a durable operation on one resource. Its steps and undos are code (`controllerd.tasks`); this is its record."""

from __future__ import annotations

from dataclasses import dataclass

RUNNING = "RUNNING"
UNWINDING = "UNWINDING"  # a step failed; undos run backwards
DONE = "DONE"
FAILED = "FAILED"  # unwound: nothing of it is left
UNFINISHED = (RUNNING, UNWINDING)


@dataclass(frozen=True)
class Task:
    id: str
    kind: str
    project_id: str
    resource_kind: str
    resource_id: str
    args: dict[str, str]
    state: str
    step: int  # index of the step at work
    entered: bool  # whether its `do` has run (its `undo`, when unwinding, has not)
    step_times: dict[str, float]  # step -> when it was done
    fault_reason: str
    fault_message: str
    fault_details: tuple[str, ...]
    created_at: float
    deadline: float
    ended_at: float
    request_id: str
    user_id: str

    @property
    def unfinished(self) -> bool:
        return self.state in UNFINISHED
