"""Looking back: tasks and events, of one's project or, for admins, of all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from controllerd.app.cloud import Cloud, owned
from controllerd.domain import check
from controllerd.domain.event import Event
from controllerd.domain.page import TIME_MAX, Page, PageOf
from controllerd.domain.policy import Caller, authorise
from controllerd.domain.task import Task
from controllerd.store import event, task
from controllerd.store.task import TASKS

WATCH_BATCH = 500
SEQ_MAX = (1 << 63) - 1  # SQLite's integers
_FUTURE = TIME_MAX  # a creation time, or seq, above all others


class History:
    def __init__(self, cloud: Cloud) -> None:
        self._db = cloud.database
        self._news: set[asyncio.Event] = set()
        cloud.database.subscribe(self._notice)

    def _notice(self, touched: set[str]) -> None:
        if event.EVENTS in touched:
            for news in self._news:
                news.set()

    async def get_task(self, caller: Caller, task_id: str) -> Task:
        authorise(caller, "task.get")
        found = await self._db.read(lambda tx: TASKS.get(tx, task_id))
        owned(caller, "task", task_id, found.project_id)
        return found

    async def list_tasks(
        self, caller: Caller, resource_id: str, unfinished: bool, all_projects: bool, page: Page
    ) -> PageOf[Task]:
        """Newest first."""
        authorise(caller, "task.list")
        equal = _scope(caller, all_projects) | ({"resource_id": resource_id} if resource_id else {})
        before = (page.after_time, page.after_id) if page.after_id else (_FUTURE, "")
        found = await self._db.read(lambda tx: task.newest(tx, before, page.limit + 1, unfinished, **equal))
        return PageOf.cut(found, page.limit, lambda t: (t.created_at, t.id))

    async def list_events(
        self, caller: Caller, resource_id: str, kind: str, request_id: str, all_projects: bool, page: Page
    ) -> PageOf[Event]:
        """Newest first."""
        authorise(caller, "event.list")
        equal = _scope(caller, all_projects)
        for column, value in (("resource_id", resource_id), ("kind", kind), ("request_id", request_id)):
            equal |= {column: value} if value else {}
        before = int(page.after_time) if page.after_id else int(_FUTURE)
        found = await self._db.read(lambda tx: event.newest(tx, before, page.limit + 1, **equal))
        return PageOf.cut(found, page.limit, lambda e: (e.seq, str(e.seq)))

    async def watch(self, caller: Caller, after_seq: int, resource_id: str, all_projects: bool) -> AsyncIterator[Event]:
        """Events as they happen; `after_seq` 0 = from now on. Ends only when its reader stops."""
        authorise(caller, "event.list")
        check.between("after_seq", after_seq, 0, SEQ_MAX)
        equal = _scope(caller, all_projects) | ({"resource_id": resource_id} if resource_id else {})
        news = asyncio.Event()
        self._news.add(news)
        try:
            seq = after_seq or await self._db.read(event.last_seq)
            while True:
                news.clear()
                found = await self._db.read(lambda tx, seq=seq: event.after(tx, seq, WATCH_BATCH, **equal))  # type: ignore[misc]
                for item in found:
                    seq = item.seq
                    yield item
                if len(found) < WATCH_BATCH:
                    await news.wait()
        finally:
            self._news.discard(news)


def _scope(caller: Caller, all_projects: bool) -> dict[str, str]:
    if all_projects:
        authorise(caller, "all_projects")
        return {}
    return {"project_id": caller.project_id}
