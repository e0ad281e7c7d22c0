"""Projects, users, role assignments and tokens in the store."""

from __future__ import annotations

from pathlib import Path

import apsw

from controllerd.domain.project import Project
from controllerd.domain.user import Token, User
from controllerd.store.database import Tx
from controllerd.store.table import Table
from daemonkit.errors import ConfigError

PROJECTS = Table(Project, "project", "project")
USERS = Table(User, "user", "user")
TOKENS = Table(Token, "token", "token", key="hash")

# What must be empty before a project may go.
_HOLDINGS = ("server", "volume", "image", "port", "router", "floating_ip", "subnet", "network")


def has_users(path: Path) -> bool:
    """Whether the file is a cloud's state; it is only looked at. Errors: ConfigError (damaged)."""
    if not path.exists():
        return False
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'user'").fetchone()
            return known is not None and connection.execute("SELECT 1 FROM user LIMIT 1").fetchone() is not None
        finally:
            connection.close()
    except apsw.Error as error:
        raise ConfigError(f"{path}: {error}") from None


def project_named(tx: Tx, name_or_id: str) -> Project | None:
    found = PROJECTS.where(tx, "name = ?1 OR id = ?1 ORDER BY id = ?1 DESC LIMIT 1", name_or_id)
    return found[0] if found else None


def user_named(tx: Tx, name: str) -> User | None:
    found = USERS.where(tx, "name = ?", name)
    return found[0] if found else None


def roles_of(tx: Tx, user_id: str, project_id: str) -> frozenset[str]:
    sql = "SELECT role FROM role_assignment WHERE user_id = ? AND project_id = ?"
    return frozenset(row["role"] for row in tx.each(sql, user_id, project_id))


def assignments(tx: Tx, user_id: str = "", project_id: str = "") -> list[tuple[str, str, str]]:
    """(user id, project id, role); "" = any."""
    sql = (
        "SELECT user_id, project_id, role FROM role_assignment"
        " WHERE (?1 = '' OR user_id = ?1) AND (?2 = '' OR project_id = ?2) ORDER BY user_id, project_id, role"
    )
    return [(r["user_id"], r["project_id"], r["role"]) for r in tx.each(sql, user_id, project_id)]


def grant(tx: Tx, user_id: str, project_id: str, role: str) -> None:
    sql = "INSERT OR IGNORE INTO role_assignment (user_id, project_id, role) VALUES (?, ?, ?)"
    tx.run(sql, user_id, project_id, role)


def revoke(tx: Tx, user_id: str, project_id: str, role: str) -> bool:
    sql = "DELETE FROM role_assignment WHERE user_id = ? AND project_id = ? AND role = ?"
    return bool(tx.run(sql, user_id, project_id, role))


def projects_of(tx: Tx, user_id: str) -> list[Project]:
    condition = "JOIN role_assignment ON role_assignment.project_id = project.id WHERE role_assignment.user_id = ?"
    return PROJECTS.where(tx, f"{condition} GROUP BY project.id ORDER BY project.name", user_id)


def has_admin(tx: Tx) -> bool:
    """Whether anybody can still log in as admin."""
    sql = (
        "SELECT 1 FROM role_assignment a JOIN user u ON u.id = a.user_id JOIN project p ON p.id = a.project_id"
        " WHERE a.role = 'admin' AND u.enabled = 1 AND p.enabled = 1 LIMIT 1"
    )
    return bool(tx.value(sql))


def holding(tx: Tx, project_id: str) -> str | None:
    """A kind of resource that the project still has, None when it is empty."""
    for kind in _HOLDINGS:
        condition = " AND purpose = ''" if kind == "port" else ""
        if tx.value(f"SELECT 1 FROM {kind} WHERE project_id = ?{condition} LIMIT 1", project_id):
            return kind
    return None


def delete_project(tx: Tx, project_id: str) -> None:
    """With what belongs to the project but is no resource of its own: roles, tokens, limits, groups, flavors."""
    for group in tx.all("SELECT id FROM security_group WHERE project_id = ?", project_id):
        tx.run("DELETE FROM security_group_rule WHERE security_group_id = ?", group["id"])
    for table in ("security_group", "flavor", "quota_limit", "token", "role_assignment", "idempotency"):
        tx.run(f"DELETE FROM {table} WHERE project_id = ?", project_id)
    PROJECTS.delete(tx, project_id)


def delete_user(tx: Tx, user_id: str) -> None:
    for table in ("token", "role_assignment", "keypair"):
        tx.run(f"DELETE FROM {table} WHERE user_id = ?", user_id)
    USERS.delete(tx, user_id)


def end_tokens(tx: Tx, user_id: str) -> int:
    return tx.run("DELETE FROM token WHERE user_id = ?", user_id)


def expire_tokens(tx: Tx, batch_max: int) -> int:
    among = "SELECT hash FROM token WHERE expires_at < ? LIMIT ?"
    return tx.run(f"DELETE FROM token WHERE hash IN ({among})", tx.now, batch_max)
