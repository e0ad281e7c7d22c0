"""Tasks: durable operations, how far they are and why one failed."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from dataclasses import dataclass

from skyrack.client.collection import Collection, Ref, id_of
from skyrack.client.fault import Fault
from skyrack.v1 import task_pb2 as pb


@dataclass(frozen=True)
class TaskStep:
    name: str
    state: str
    """ "waiting", "running", "done", "failed" or "undone"."""
    ended_at: datetime.datetime | None


@dataclass(frozen=True)
class Task:
    id: str
    kind: str
    project_id: str
    resource_kind: str
    resource_id: str
    state: str
    """RUNNING, UNWINDING, DONE or FAILED (unwound: nothing of it is left)."""
    steps: tuple[TaskStep, ...]
    fault: Fault | None
    created_at: datetime.datetime | None
    deadline: datetime.datetime | None
    ended_at: datetime.datetime | None
    request_id: str


class Tasks(Collection[Task]):
    kind, service, record = "task", "TaskService", Task

    async def get(self, ref: Ref) -> Task:
        return await self._one("GetTask", pb.GetTaskRequest(task_id=id_of(ref)), pb.TaskInfo)

    def list(
        self, *, name: str = "", resource: Ref | None = None, unfinished: bool = False, all_projects: bool = False
    ) -> AsyncIterator[Task]:
        """Newest first. Tasks have no names; `name` means nothing."""
        request = pb.ListTasksRequest(resource_id=id_of(resource), unfinished=unfinished, all_projects=all_projects)
        return self._pages("ListTasks", request, pb.ListTasksResponse, "tasks")
