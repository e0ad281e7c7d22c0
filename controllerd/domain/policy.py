"""Who may do what: one table.

Three kinds of right: `any` (every role of the project, readers too), `member` (member or admin), `admin`. An action that is
not in the table is nobody's. Ownership is checked apart: a project's resource does not exist for callers of another project.
"""

from __future__ import annotations

from dataclasses import dataclass

from daemonkit.errors import Forbidden

ROLES = ("admin", "member", "reader")

_ANY = frozenset(ROLES)
_MEMBER = frozenset({"admin", "member"})
_ADMIN = frozenset({"admin"})

RULES: dict[str, frozenset[str]] = {
    "project.create": _ADMIN, "project.get": _ANY, "project.list": _ANY, "project.update": _ADMIN, "project.delete": _ADMIN,
    "user.create": _ADMIN, "user.get": _ANY, "user.list": _ADMIN, "user.update": _ANY, "user.delete": _ADMIN,
    "role.grant": _ADMIN, "role.revoke": _ADMIN, "role.list": _ANY,
    "quota.get": _ANY, "quota.update": _ADMIN, "usage.get": _ANY,
    "flavor.create": _MEMBER, "flavor.get": _ANY, "flavor.list": _ANY, "flavor.update": _MEMBER, "flavor.delete": _MEMBER,
    "keypair.create": _MEMBER, "keypair.get": _ANY, "keypair.list": _ANY, "keypair.delete": _MEMBER,
    "image.create": _MEMBER, "image.get": _ANY, "image.list": _ANY, "image.update": _MEMBER, "image.delete": _MEMBER,
    "image.upload": _MEMBER, "image.download": _ANY,
    "server.create": _MEMBER, "server.get": _ANY, "server.list": _ANY, "server.update": _MEMBER, "server.delete": _MEMBER,
    "server.start": _MEMBER, "server.stop": _MEMBER, "server.reboot": _MEMBER, "server.console": _MEMBER,
    "server.attach": _MEMBER, "server.detach": _MEMBER,
    "volume.create": _MEMBER, "volume.get": _ANY, "volume.list": _ANY, "volume.update": _MEMBER, "volume.delete": _MEMBER,
    "network.create": _MEMBER, "network.get": _ANY, "network.list": _ANY, "network.update": _MEMBER, "network.delete": _MEMBER,
    "subnet.create": _MEMBER, "subnet.get": _ANY, "subnet.list": _ANY, "subnet.update": _MEMBER, "subnet.delete": _MEMBER,
    "port.create": _MEMBER, "port.get": _ANY, "port.list": _ANY, "port.update": _MEMBER, "port.delete": _MEMBER,
    "router.create": _MEMBER, "router.get": _ANY, "router.list": _ANY, "router.update": _MEMBER, "router.delete": _MEMBER,
    "floating_ip.create": _MEMBER, "floating_ip.get": _ANY, "floating_ip.list": _ANY, "floating_ip.update": _MEMBER,
    "floating_ip.delete": _MEMBER,
    "security_group.create": _MEMBER, "security_group.get": _ANY, "security_group.list": _ANY,
    "security_group.update": _MEMBER, "security_group.delete": _MEMBER,
    "task.get": _ANY, "task.list": _ANY, "event.list": _ANY,
    "cluster.get": _ADMIN, "cluster.transfer": _ADMIN, "cluster.backup": _ADMIN, "cluster.verify": _ADMIN,
    "cluster.release": _ADMIN,
    "node.get": _ADMIN, "node.list": _ADMIN, "node.update": _ADMIN, "node.delete": _ADMIN, "node.token": _ADMIN,
    # beyond one's own project
    "all_projects": _ADMIN, "public_resource": _ADMIN, "placement_hint": _ADMIN,
}  # fmt: skip


@dataclass(frozen=True)
class Caller:
    """Who calls, in which project, with which roles there."""

    user_id: str
    user_name: str
    project_id: str
    project_name: str
    roles: frozenset[str]

    @property
    def admin(self) -> bool:
        return "admin" in self.roles

    def may(self, action: str) -> bool:
        return bool(self.roles & RULES.get(action, frozenset()))

    def owns(self, project_id: str) -> bool:
        """Whether a resource of that project exists for this caller."""
        return self.admin or project_id == self.project_id


def authorise(caller: Caller, action: str) -> None:
    """Errors: Forbidden, naming the roles that would do."""
    if not caller.may(action):
        needed = " or ".join(sorted(RULES.get(action, frozenset()))) or "nobody's"
        raise Forbidden(f"{action} needs the role {needed}; {caller.user_name} has {', '.join(sorted(caller.roles)) or 'none'}")


SYSTEM = Caller("", "system", "", "", frozenset({"admin"}))
