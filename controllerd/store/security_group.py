"""Security groups and their rules in the store, and which nodes they concern."""

from __future__ import annotations

import json
from collections.abc import Iterable

from controllerd.domain.page import Page, PageOf
from controllerd.domain.security_group import DEFAULT, Account, Rule, SecurityGroup
from controllerd.store.database import Tx
from controllerd.store.table import Table, like_name

GROUPS = Table(SecurityGroup, "security_group", "security group")
RULES = Table(Rule, "security_group_rule", "security group rule")


def visible(tx: Tx, project_id: str, everything: bool, name: str, page: Page) -> PageOf[SecurityGroup]:
    condition, values = like_name(name)
    whose = "(1 OR ?)" if everything else "project_id = ?"
    return GROUPS.page(tx, page, f"{whose} AND {condition}", project_id, *values)


def default_of(tx: Tx, project_id: str) -> str:
    """Id of the project's default group, "" when it has none yet."""
    return str(tx.value("SELECT id FROM security_group WHERE project_id = ? AND name = ?", project_id, DEFAULT) or "")


def rules_of(tx: Tx, group_id: str) -> list[Rule]:
    return rules_of_all(tx, [group_id]).get(group_id, [])


def rules_of_all(tx: Tx, group_ids: Iterable[str]) -> dict[str, list[Rule]]:
    """Group -> its rules, for a whole list at once."""
    found: dict[str, list[Rule]] = {}
    among = "security_group_id IN (SELECT value FROM json_each(?)) ORDER BY created_at, id"
    for rule in RULES.where(tx, among, json.dumps(list(group_ids))):
        found.setdefault(rule.security_group_id, []).append(rule)
    return found


def accounts_of(tx: Tx, server_ids: Iterable[str]) -> dict[str, tuple[Account, ...]]:
    """Server -> accounts that the groups of its ports let in, by name; keys of one name in several groups are joined."""
    sql = (
        "SELECT DISTINCT p.server_id, m.security_group_id FROM port p JOIN port_security_group m ON m.port_id = p.id"
        " WHERE p.server_id IN (SELECT value FROM json_each(?)) AND p.port_security"
    )
    groups_of: dict[str, set[str]] = {}
    for server_id, group_id in tx.connection.execute(sql, (json.dumps(list(server_ids)),)):
        groups_of.setdefault(server_id, set()).add(group_id)
    wanted = sorted({group_id for ids in groups_of.values() for group_id in ids})
    among = "id IN (SELECT value FROM json_each(?)) AND accounts != '[]' ORDER BY created_at, id"
    groups = GROUPS.where(tx, among, json.dumps(wanted))
    return {server_id: _joined([g for g in groups if g.id in ids]) for server_id, ids in groups_of.items()}


def _joined(groups: Iterable[SecurityGroup]) -> tuple[Account, ...]:
    found: dict[str, Account] = {}
    for group in groups:
        for account in group.accounts:
            known = found.get(account.name, Account(account.name, False, (), ()))
            keys = tuple(dict.fromkeys((*known.public_keys, *account.public_keys)))
            found[account.name] = Account(account.name, known.sudo or account.sudo, (), keys)
    return tuple(found[name] for name in sorted(found))


def member_addresses(tx: Tx, group_id: str, network_id: str) -> list[str]:
    """Addresses on the network of bound ports in the group, ascending."""
    sql = (
        "SELECT a.ip FROM port_security_group m JOIN port p ON p.id = m.port_id JOIN address a ON a.port_id = p.id"
        " WHERE m.security_group_id = ? AND p.network_id = ? AND p.node_id != '' AND p.port_security ORDER BY a.ip_number, a.ip"
    )
    return [row["ip"] for row in tx.each(sql, group_id, network_id)]


def touch(tx: Tx, group_id: str) -> None:
    """Every node with a port in the group: its rules or accounts changed. (Members change with ports: see `port`.)"""
    sql = (
        "SELECT DISTINCT p.node_id FROM port_security_group m JOIN port p ON p.id = m.port_id"
        " WHERE m.security_group_id = ? AND p.node_id != ''"
    )
    tx.touch(group_id, *(row["node_id"] for row in tx.each(sql, group_id)))


def port_in(tx: Tx, group_id: str) -> str:
    """A port that is in the group, "" for none."""
    return str(tx.value("SELECT port_id FROM port_security_group WHERE security_group_id = ? LIMIT 1", group_id) or "")


def referring(tx: Tx, group_id: str) -> str:
    """Another group with a rule that names this one, "" for none."""
    sql = "SELECT security_group_id FROM security_group_rule WHERE remote_group_id = ? AND security_group_id != ? LIMIT 1"
    return str(tx.value(sql, group_id, group_id) or "")


def delete(tx: Tx, group_id: str) -> None:
    """With its rules; no port may be in it."""
    tx.run("DELETE FROM security_group_rule WHERE security_group_id = ?", group_id)
    GROUPS.delete(tx, group_id)
