"""Projects: owners of resources."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty

from skyrack.client.collection import Collection, Ref, id_of, new_key
from skyrack.v1 import identity_pb2 as pb


@dataclass(frozen=True)
class Project:
    id: str
    name: str
    description: str
    enabled: bool
    created_at: datetime.datetime | None


class Projects(Collection[Project]):
    kind, service, record = "project", "IdentityService", Project

    async def create(self, name: str, *, description: str = "") -> Project:
        """Admins only. Errors: AlreadyExists, Forbidden."""
        request = pb.CreateProjectRequest(name=name, description=description, idempotency_key=new_key())
        return await self._one("CreateProject", request, pb.Project)

    async def get(self, ref: Ref) -> Project:
        return await self._one("GetProject", pb.GetProjectRequest(project_id=id_of(ref)), pb.Project)

    def list(self, *, name: str = "") -> AsyncIterator[Project]:
        """The caller's own; admins: all."""
        return self._pages("ListProjects", pb.ListProjectsRequest(name=name), pb.ListProjectsResponse, "projects")

    async def update(
        self, ref: Ref, *, name: str | None = None, description: str | None = None, enabled: bool | None = None
    ) -> Project:
        request = pb.UpdateProjectRequest(project_id=id_of(ref), name=name, description=description, enabled=enabled)
        return await self._one("UpdateProject", request, pb.Project)

    async def delete(self, ref: Ref) -> None:
        """Errors: Conflict while it holds anything."""
        await self._delete("DeleteProject", pb.DeleteProjectRequest(project_id=id_of(ref)), Empty)
