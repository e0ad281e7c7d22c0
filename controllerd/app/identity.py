"""Projects, users and their roles. Every change drops the cache of tokens, so that it holds at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from controllerd.app.cloud import Cloud, Once
from controllerd.app.login import IDENTITY, Passwords
from controllerd.domain import check
from controllerd.domain.page import Page, PageOf
from controllerd.domain.policy import ROLES, Caller, authorise
from controllerd.domain.project import Project
from controllerd.domain.user import User, check_password
from controllerd.store import event
from controllerd.store import identity as store
from controllerd.store.database import Tx
from controllerd.store.identity import PROJECTS, USERS
from controllerd.store.table import like_name
from daemonkit.errors import AlreadyExists, Conflict, Forbidden, NotFound

T = TypeVar("T")


class Identity:
    def __init__(self, cloud: Cloud, passwords: Passwords, new_project: Callable[[Tx, str], object]) -> None:
        """`new_project(tx, project id)` makes what every project has from the start (its default security group)."""
        self._db, self._passwords, self._new_project = cloud.database, passwords, new_project

    async def _change(self, fn: Callable[[Tx], T]) -> T:
        def change(tx: Tx) -> T:
            tx.touch(IDENTITY)
            return fn(tx)

        return await self._db.write(change)

    # ---- projects

    async def create_project(self, caller: Caller, name: str, description: str, once: Once) -> Project:
        authorise(caller, "project.create")

        def make(tx: Tx) -> Project:
            project = Project(tx.new_id(), name, description, True, tx.now)
            if store.project_named(tx, name):
                raise AlreadyExists("project", name)
            PROJECTS.insert(tx, project)
            self._new_project(tx, project.id)
            event.record(tx, "project.create", project.id, project.id, name)
            return project

        return await self._change(
            lambda tx: once.run(tx, caller, lambda: make(tx), lambda i: PROJECTS.get(tx, i), lambda p: p.id)
        )

    async def get_project(self, caller: Caller, project_id: str) -> Project:
        authorise(caller, "project.get")

        def get(tx: Tx) -> Project:
            if not caller.admin and project_id not in {p.id for p in store.projects_of(tx, caller.user_id)}:
                raise NotFound("project", project_id)
            return PROJECTS.get(tx, project_id)

        return await self._db.read(get)

    async def list_projects(self, caller: Caller, name: str, page: Page) -> PageOf[Project]:
        authorise(caller, "project.list")
        condition, values = like_name(name)
        if not caller.admin:
            condition += " AND id IN (SELECT project_id FROM role_assignment WHERE user_id = ?)"
            values = [*values, caller.user_id]
        return await self._db.read(lambda tx: PROJECTS.page(tx, page, condition, *values))

    async def update_project(self, caller: Caller, project_id: str, **changes: str | bool) -> Project:
        """`changes`: name, description, enabled."""
        authorise(caller, "project.update")

        def change(tx: Tx) -> Project:
            project = PROJECTS.get(tx, project_id)
            changed = replace(project, **changes)  # type: ignore[arg-type]
            if changed.name != project.name and store.project_named(tx, changed.name):
                raise AlreadyExists("project", changed.name)
            if not changed.enabled and project_id == caller.project_id:
                raise Conflict("the project of the caller itself cannot be disabled")
            if changes:
                PROJECTS.update(tx, project_id, **changes)
                event.record(tx, "project.update", project_id, project_id)
            return changed

        return await self._change(change)

    async def delete_project(self, caller: Caller, project_id: str) -> None:
        authorise(caller, "project.delete")

        def remove(tx: Tx) -> None:
            project = PROJECTS.get(tx, project_id)
            if project_id == caller.project_id:
                raise Conflict("the project of the caller itself cannot be deleted")
            if kind := store.holding(tx, project_id):
                raise Conflict(f"project {project.name!r} still has a {kind.replace('_', ' ')}; delete what it holds first")
            store.delete_project(tx, project_id)
            event.record(tx, "project.delete", project_id, project_id, project.name)

        await self._change(remove)

    # ---- users

    async def create_user(self, caller: Caller, name: str, password: str, email: str, once: Once) -> User:
        authorise(caller, "user.create")
        hashed = await self._passwords.hash(check_password(password))

        def make(tx: Tx) -> User:
            user = User(tx.new_id(), name, email, hashed, True, tx.now)
            if store.user_named(tx, name):
                raise AlreadyExists("user", name)
            USERS.insert(tx, user)
            event.record(tx, "user.create", caller.project_id, user.id, name)
            return user

        return await self._change(lambda tx: once.run(tx, caller, lambda: make(tx), lambda i: USERS.get(tx, i), lambda u: u.id))

    async def get_user(self, caller: Caller, user_id: str) -> User:
        authorise(caller, "user.get")
        if not caller.admin and user_id != caller.user_id:
            raise NotFound("user", user_id)
        return await self._db.read(lambda tx: USERS.get(tx, user_id))

    async def list_users(self, caller: Caller, name: str, page: Page) -> PageOf[User]:
        authorise(caller, "user.list")
        condition, values = like_name(name)
        return await self._db.read(lambda tx: USERS.page(tx, page, condition, *values))

    async def update_user(self, caller: Caller, user_id: str, **changes: str | bool) -> User:
        """`changes`: name, password, enabled, email. A new password or a disabled user ends the user's tokens."""
        authorise(caller, "user.update")
        if not caller.admin:
            if user_id != caller.user_id:
                raise NotFound("user", user_id)
            if set(changes) - {"password"}:
                raise Forbidden("only an admin may change more than one's own password")
        if "password" in changes:
            changes["password_hash"] = await self._passwords.hash(check_password(str(changes.pop("password"))))
        return await self._change(lambda tx: self._update_user(tx, caller, user_id, changes))

    def _update_user(self, tx: Tx, caller: Caller, user_id: str, changes: dict[str, str | bool]) -> User:
        user = USERS.get(tx, user_id)
        changed = replace(user, **changes)  # type: ignore[arg-type]
        if changed.name != user.name and store.user_named(tx, changed.name):
            raise AlreadyExists("user", changed.name)
        if changes:
            USERS.update(tx, user_id, **changes)
            event.record(tx, "user.update", caller.project_id, user_id)
            _keep_an_admin(tx)
        if "password_hash" in changes or not changed.enabled:
            store.end_tokens(tx, user_id)
        return changed

    async def delete_user(self, caller: Caller, user_id: str) -> None:
        authorise(caller, "user.delete")

        def remove(tx: Tx) -> None:
            user = USERS.get(tx, user_id)
            store.delete_user(tx, user_id)
            _keep_an_admin(tx)
            event.record(tx, "user.delete", caller.project_id, user_id, user.name)

        await self._change(remove)

    # ---- roles

    async def grant(self, caller: Caller, user_id: str, project_id: str, role: str) -> None:
        authorise(caller, "role.grant")
        check.one_of("role", role, ROLES)

        def give(tx: Tx) -> None:
            user, project = USERS.get(tx, user_id), PROJECTS.get(tx, project_id)
            store.grant(tx, user.id, project.id, role)
            event.record(tx, "role.grant", project_id, user_id, f"{user.name} is {role} of {project.name}")

        await self._change(give)

    async def revoke(self, caller: Caller, user_id: str, project_id: str, role: str) -> None:
        authorise(caller, "role.revoke")
        check.one_of("role", role, ROLES)

        def take(tx: Tx) -> None:
            if not store.revoke(tx, user_id, project_id, role):
                raise NotFound("role assignment", role)
            _keep_an_admin(tx)
            event.record(tx, "role.revoke", project_id, user_id, role)

        await self._change(take)

    async def list_roles(self, caller: Caller, user_id: str, project_id: str) -> list[tuple[str, str, str]]:
        """(user id, project id, role). Non-admins see their own."""
        authorise(caller, "role.list")
        who = user_id if caller.admin else caller.user_id
        return await self._db.read(lambda tx: store.assignments(tx, who, project_id))


def _keep_an_admin(tx: Tx) -> None:
    """Called after the change, which is undone if it took the last one. Errors: Conflict."""
    if not store.has_admin(tx):
        raise Conflict("this is the last enabled admin; make another one first")
