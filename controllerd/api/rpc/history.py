"""TaskService and EventService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from controllerd.api.rpc.gate import Context, Gate, page, timestamp
from controllerd.app.history import History
from controllerd.domain.event import Event
from controllerd.domain.task import FAILED, UNWINDING, Task
from controllerd.tasks.operation import Operation
from daemonkit.errors import Unauthenticated
from skyrack.v1 import common_pb2, event_pb2, event_pb2_grpc, task_pb2, task_pb2_grpc


class TaskService(task_pb2_grpc.TaskServiceServicer):
    def __init__(self, gate: Gate, history: History, operations: Mapping[str, Operation]) -> None:
        self._gate, self._history = gate, history
        self._steps = {kind: [s.name for s in o.steps] for kind, o in operations.items()}

    async def GetTask(self, request: task_pb2.GetTaskRequest, context: Context) -> task_pb2.TaskInfo:
        caller = await self._gate.caller(context)
        return self._render(await self._history.get_task(caller, request.task_id))

    async def ListTasks(self, request: task_pb2.ListTasksRequest, context: Context) -> task_pb2.ListTasksResponse:
        caller = await self._gate.caller(context)
        found = await self._history.list_tasks(
            caller, request.resource_id, request.unfinished, request.all_projects, page(request)
        )
        return task_pb2.ListTasksResponse(tasks=map(self._render, found.items), next_page_token=found.next_token)

    def _render(self, task: Task) -> task_pb2.TaskInfo:
        names = self._steps.get(task.kind, [])
        return task_pb2.TaskInfo(
            id=task.id, kind=task.kind, project_id=task.project_id, resource_kind=task.resource_kind,
            resource_id=task.resource_id, state=task_pb2.TaskState.Value(f"TASK_STATE_{task.state}"),
            steps=[_step(task, number, name) for number, name in enumerate(names)], fault=_fault(task),
            created_at=timestamp(task.created_at), deadline=timestamp(task.deadline), ended_at=timestamp(task.ended_at),
            request_id=task.request_id,
        )  # fmt: skip


def _step(task: Task, number: int, name: str) -> task_pb2.TaskStep:
    return task_pb2.TaskStep(
        name=name, state=_step_state(task, number, name), ended_at=timestamp(task.step_times.get(name, 0.0))
    )


def _step_state(task: Task, number: int, name: str) -> str:
    """While a task unwinds and after it, the first step that was never done is the one that failed."""
    if task.state in (UNWINDING, FAILED):
        if name in task.step_times:
            return "undone" if task.state == FAILED or number >= task.step else "done"
        return "failed" if number == len(task.step_times) else "waiting"
    if number == task.step and task.unfinished:
        return "running" if task.entered else "waiting"
    return "done" if number < task.step or not task.unfinished else "waiting"


def _fault(task: Task) -> common_pb2.Fault | None:
    if not task.fault_reason:
        return None
    return common_pb2.Fault(reason=task.fault_reason, message=task.fault_message, details=task.fault_details)


class EventService(event_pb2_grpc.EventServiceServicer):
    def __init__(self, gate: Gate, history: History) -> None:
        self._gate, self._history = gate, history

    async def ListEvents(self, request: event_pb2.ListEventsRequest, context: Context) -> event_pb2.ListEventsResponse:
        caller = await self._gate.caller(context)
        found = await self._history.list_events(
            caller, request.resource_id, request.kind, request.request_id, request.all_projects, page(request)
        )
        return event_pb2.ListEventsResponse(events=map(render_event, found.items), next_page_token=found.next_token)

    async def WatchEvents(self, request: event_pb2.WatchEventsRequest, context: Context) -> AsyncIterator[event_pb2.Event]:
        caller = await self._gate.caller(context)
        async for item in self._history.watch(caller, request.after_seq, request.resource_id, request.all_projects):
            if await self._gate.caller(context) != caller:  # it may have been watching for days
                raise Unauthenticated("the rights of this token have changed; watch again")
            yield render_event(item)


def render_event(event: Event) -> event_pb2.Event:
    return event_pb2.Event(
        seq=event.seq, time=timestamp(event.time), kind=event.kind, project_id=event.project_id,
        resource_kind=event.resource_kind, resource_id=event.resource_id, message=event.message,
        request_id=event.request_id, user_id=event.user_id, data=event.data,
    )  # fmt: skip
