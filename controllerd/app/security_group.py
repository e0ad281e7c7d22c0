"""Security groups: what may reach a port, and who may log in on it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from controllerd.app.cloud import Cloud, Once, owned
from controllerd.domain.page import Page, PageOf
from controllerd.domain.policy import Caller, authorise
from controllerd.domain.security_group import (
    DEFAULT,
    KEYS_MAX,
    Account,
    Rule,
    SecurityGroup,
    checked_accounts,
    checked_rule,
)
from controllerd.store import event, keypair, quota
from controllerd.store import security_group as store
from controllerd.store.database import Tx
from controllerd.store.security_group import GROUPS, RULES
from daemonkit.errors import AlreadyExists, Conflict, InvalidArgument, NotFound


@dataclass(frozen=True)
class GroupView:
    group: SecurityGroup
    rules: tuple[Rule, ...]


class SecurityGroups:
    def __init__(self, cloud: Cloud) -> None:
        self._db = cloud.database

    async def create(self, caller: Caller, name: str, description: str, accounts: tuple[Account, ...], once: Once) -> GroupView:
        """Starts with: everything out."""
        authorise(caller, "security_group.create")

        def make(tx: Tx) -> GroupView:
            if name == DEFAULT:
                raise AlreadyExists("security group", name)
            resolved = _resolved(tx, caller, accounts)
            group = SecurityGroup(tx.new_id(), name, caller.project_id, description, resolved, tx.now)
            quota.take(tx, caller.project_id, security_groups=1, security_group_rules=2)
            _insert(tx, group, from_itself=False)
            return _view(tx, group)

        return await self._db.write(
            lambda tx: once.run(
                tx, caller, lambda: make(tx), lambda i: _view(tx, GROUPS.get(tx, i)), lambda view: view.group.id
            )
        )

    async def get(self, caller: Caller, group_id: str) -> GroupView:
        authorise(caller, "security_group.get")
        return await self._db.read(lambda tx: _view(tx, _own(tx, caller, group_id)))

    async def list(self, caller: Caller, name: str, all_projects: bool, page: Page) -> PageOf[GroupView]:
        authorise(caller, "security_group.list")
        if all_projects:
            authorise(caller, "all_projects")

        def find(tx: Tx) -> PageOf[GroupView]:
            found = store.visible(tx, caller.project_id, all_projects, name, page)
            rules = store.rules_of_all(tx, (g.id for g in found.items))
            return PageOf([GroupView(g, tuple(rules.get(g.id, ()))) for g in found.items], found.next_token)

        return await self._db.read(find)

    async def update(
        self, caller: Caller, group_id: str, accounts: tuple[Account, ...] | None = None, **changes: str
    ) -> GroupView:
        """`changes`: name, description. `accounts`: None keeps them; new ones reach guests at their next look at metadata."""
        authorise(caller, "security_group.update")

        def change(tx: Tx) -> GroupView:
            group = _own(tx, caller, group_id)
            values: dict[str, object] = dict(changes)
            if accounts is not None:
                values["accounts"] = _resolved(tx, caller, accounts)
            changed = replace(group, **values)  # type: ignore[arg-type]
            if changed.name != group.name and DEFAULT in (changed.name, group.name):
                raise Conflict(f"the name {DEFAULT!r} stays with the project's default group")
            if values:
                GROUPS.update(tx, group_id, **values)
                store.touch(tx, group_id)
                event.record(tx, "security_group.update", group.project_id, group_id)
            return _view(tx, changed)

        return await self._db.write(change)

    async def delete(self, caller: Caller, group_id: str) -> None:
        authorise(caller, "security_group.delete")

        def remove(tx: Tx) -> None:
            group = _own(tx, caller, group_id)
            if group.name == DEFAULT:
                raise Conflict("the default security group stays as long as its project")
            if port_id := store.port_in(tx, group_id):
                raise Conflict(f"the security group is in use by port {port_id}", port=port_id)
            if other := store.referring(tx, group_id):
                raise Conflict(f"a rule of security group {other} names it", security_group=other)
            store.delete(tx, group_id)
            event.record(tx, "security_group.delete", group.project_id, group_id, group.name)

        await self._db.write(remove)

    # ---- rules

    async def add_rule(self, caller: Caller, wanted: Rule, once: Once) -> Rule:
        """`wanted`: id, project and time are filled in here. Errors: AlreadyExists when a rule lets the same things pass."""
        authorise(caller, "security_group.update")

        def make(tx: Tx) -> Rule:
            group = _own(tx, caller, wanted.security_group_id)
            rule = checked_rule(replace(wanted, id=tx.new_id(), project_id=group.project_id, created_at=tx.now))
            if rule.remote_group_id:
                check_groups(tx, group.project_id, "remote_group_id", (rule.remote_group_id,))
            for other in store.rules_of(tx, group.id):
                if other.meaning == rule.meaning:
                    raise AlreadyExists("security group rule", other.id)
            quota.take(tx, group.project_id, security_group_rules=1)
            RULES.insert(tx, rule)
            store.touch(tx, group.id)
            event.record(tx, "security_group.add_rule", group.project_id, group.id, rule_id=rule.id)
            return rule

        return await self._db.write(
            lambda tx: once.run(tx, caller, lambda: make(tx), lambda i: RULES.get(tx, i), lambda r: r.id)
        )

    async def delete_rule(self, caller: Caller, rule_id: str) -> None:
        authorise(caller, "security_group.update")

        def remove(tx: Tx) -> None:
            rule = RULES.get(tx, rule_id)
            owned(caller, RULES.kind, rule_id, rule.project_id)
            RULES.delete(tx, rule_id)
            store.touch(tx, rule.security_group_id)
            event.record(tx, "security_group.delete_rule", rule.project_id, rule.security_group_id, rule_id=rule_id)

        await self._db.write(remove)


def ensure_default(tx: Tx, project_id: str) -> str:
    """Id of the project's default group, made when there is none: everything out, in only from itself. Counted in the quota,
    but never refused by it."""
    if known := store.default_of(tx, project_id):
        return known
    group = SecurityGroup(tx.new_id(), DEFAULT, project_id, "the project's default", (), tx.now)
    _insert(tx, group, from_itself=True)
    return group.id


def check_groups(tx: Tx, project_id: str, field: str, group_ids: tuple[str, ...]) -> None:
    """Errors: InvalidArgument unless all are groups of the project."""
    for group_id in group_ids:
        group = GROUPS.find(tx, group_id)
        if group is None or group.project_id != project_id:
            raise InvalidArgument(field, f"security group {group_id[:64]!r} not found")


def _own(tx: Tx, caller: Caller, group_id: str) -> SecurityGroup:
    group = GROUPS.get(tx, group_id)
    owned(caller, GROUPS.kind, group_id, group.project_id)
    return group


def _view(tx: Tx, group: SecurityGroup) -> GroupView:
    return GroupView(group, tuple(store.rules_of(tx, group.id)))


def _insert(tx: Tx, group: SecurityGroup, from_itself: bool) -> None:
    GROUPS.insert(tx, group)
    for ingress in (False, True) if from_itself else (False,):
        for ipv6 in (False, True):
            remote = group.id if ingress else ""
            rule = Rule(tx.new_id(), group.id, group.project_id, ingress, ipv6, "", -1, -1, "", remote, "", tx.now)
            RULES.insert(tx, rule)
    event.record(tx, "security_group.create", group.project_id, group.id, group.name)


def _resolved(tx: Tx, caller: Caller, accounts: tuple[Account, ...]) -> tuple[Account, ...]:
    """With the keys of the caller's keypairs put in, as they are now."""
    complete = []
    for account in accounts:
        if len(account.keypair_names) > KEYS_MAX:
            raise InvalidArgument("accounts.keypair_names", f"at most {KEYS_MAX}, has {len(account.keypair_names)}")
        named = [_public_key(tx, caller, name) for name in account.keypair_names]
        complete.append(replace(account, public_keys=(*account.public_keys, *named)))
    return checked_accounts(tuple(complete))


def _public_key(tx: Tx, caller: Caller, name: str) -> str:
    found = keypair.find(tx, caller.user_id, name)
    if found is None:
        raise NotFound("keypair", name)
    return found.public_key
