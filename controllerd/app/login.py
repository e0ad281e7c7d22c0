"""Passwords to tokens, tokens to callers.

Passwords are argon2id hashes (19 MiB, 2 passes), verified in worker threads, two at a time, so that logins cannot stall the
loop. A wrong name costs the same work as a wrong password. Failures of one user name, and of one address, are slowed down:
after some free ones each further try has to wait, doubling up to DELAY_MAX_S. Tokens are looked up by hash; a small cache
spares the database, and is dropped whole whenever a commit touched identity.
"""

from __future__ import annotations

import logging
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from controllerd.app.cloud import Cloud
from controllerd.domain import check
from controllerd.domain.policy import Caller
from controllerd.domain.user import PASSWORD_MAX, Token, check_lifetime, secret_hash
from controllerd.store.database import Tx
from controllerd.store.identity import PROJECTS, TOKENS, USERS, project_named, projects_of, roles_of, user_named
from daemonkit.errors import InvalidArgument, Unauthenticated, Unavailable

log = logging.getLogger(__name__)

IDENTITY = "identity"  # touched by every change of users, roles, projects and tokens
FREE_FAILURES = {"user": 5, "from": 50}  # an address may be that of many users
DELAY_MAX_S = 30.0
FORGOTTEN_AFTER_S = 900.0  # since the last failure
LOGINS_WAITING_MAX = 200
CACHE_MAX = 4096
SALT_BYTES = 16  # RFC 9106
FAILURES_MAX = 8192
REFUSED = "user name, password or project is wrong"


@dataclass(frozen=True)
class Issued:
    secret: str
    token: Token
    caller: Caller


@dataclass
class _Failures:
    count: int = 0
    last_s: float = 0.0
    not_before_s: float = 0.0


class Passwords:
    """argon2id in threads. OWASP's parameters for a login server."""

    def __init__(self, cloud: Cloud) -> None:
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1)
        self._threads, self._rng = cloud.runtime.threads("argon2", 2), cloud.runtime.rng
        self._nobody = self._of_no_password()
        self._waiting = 0

    async def hash(self, password: str) -> str:
        return await self._threads.run(self._hash, password)

    def _hash(self, password: str) -> str:
        return self._hasher.hash(password, salt=self._rng.randbytes(SALT_BYTES))

    def _of_no_password(self) -> str:
        """A hash like any other, which takes as long to look at, but made at once: its digest is random."""
        hasher = self._hasher
        salt, digest = (b64encode(self._rng.randbytes(size)).decode().rstrip("=") for size in (SALT_BYTES, hasher.hash_len))
        costs = f"m={hasher.memory_cost},t={hasher.time_cost},p={hasher.parallelism}"
        return f"$argon2id$v=19${costs}${salt}${digest}"

    async def right(self, stored: str, password: str) -> bool:
        """`stored` "" (no such user) takes as long and is wrong. Errors: Unavailable when too many wait for their turn."""
        if self._waiting >= LOGINS_WAITING_MAX:
            raise Unavailable("too many logins at once; try again")
        self._waiting += 1
        try:
            return await self._threads.run(self._verify, stored or self._nobody, password) and bool(stored)
        finally:
            self._waiting -= 1

    def _verify(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False

    def close(self) -> None:
        self._threads.close()


class Login:
    def __init__(self, cloud: Cloud, passwords: Passwords) -> None:
        self._db, self._runtime, self._passwords = cloud.database, cloud.runtime, passwords
        self._failures: dict[tuple[str, str], _Failures] = {}  # by ("user", name) and ("from", address)
        self._drops = 0  # of the cache
        self._cache: dict[str, tuple[Caller, float]] = {}
        cloud.database.subscribe(self._notice)

    def _notice(self, touched: set[str]) -> None:
        if IDENTITY in touched:
            self._cache.clear()
            self._drops += 1

    async def issue(self, user_name: str, password: str, project: str, lifetime_s: int, origin: str = "") -> Issued:
        """`origin`: the address that asks, "" = unknown.

        Errors: Unauthenticated (the same for every cause), InvalidArgument (lifetime_s, or project must be chosen),
        Unavailable (too many logins at once).
        """
        lifetime_s = check_lifetime(lifetime_s)
        check.text("user", user_name)
        keys = [("user", user_name), *([("from", origin)] if origin else [])]
        self._slow_down(keys)
        user = await self._db.read(lambda tx: user_named(tx, user_name))
        stored = user.password_hash if user and user.enabled else ""
        if not await self._passwords.right(stored, password[: PASSWORD_MAX + 1]) or user is None:
            self._failed(keys)
            log.warning("login refused")
            raise Unauthenticated(REFUSED)
        self._failures.pop(keys[0], None)
        secret = self._runtime.new_secret()

        def store(tx: Tx) -> Issued:
            if USERS.find(tx, user.id) != user:  # changed while the password was looked at
                raise Unauthenticated(REFUSED)
            caller = _scope(tx, user.id, project)
            token = Token(secret_hash(secret), user.id, caller.project_id, tx.now, tx.now + lifetime_s)
            TOKENS.insert(tx, token)
            return Issued(secret, token, caller)

        issued = await self._db.write(store)
        log.info("login", extra={"user": user.name, "project": issued.caller.project_name})
        return issued

    def _slow_down(self, keys: Sequence[tuple[str, str]]) -> None:
        """Errors: Unauthenticated while one of them has to wait; it says so, for it tells nothing about passwords."""
        until_s = max((self._failures[key].not_before_s for key in keys if key in self._failures), default=0.0)
        wait_s = until_s - self._runtime.clock.boottime_s()
        if wait_s > 0:
            raise Unauthenticated(f"too many failed logins; try again in {wait_s:.0f} s", retry_after_s=f"{wait_s:.0f}")

    def _failed(self, keys: Sequence[tuple[str, str]]) -> None:
        now_s = self._runtime.clock.boottime_s()
        for key in keys:
            failures = self._failures.pop(key, None)
            if failures is None or now_s - failures.last_s > FORGOTTEN_AFTER_S:
                failures = _Failures()
            self._failures[key] = failures  # behind all others: the one that failed longest ago is first
            failures.count, failures.last_s = failures.count + 1, now_s
            over = failures.count - FREE_FAILURES[key[0]]
            if over > 0:
                failures.not_before_s = now_s + min(2.0 ** min(over - 1, 10), DELAY_MAX_S)
        while len(self._failures) > FAILURES_MAX:
            del self._failures[next(iter(self._failures))]

    async def caller_of(self, token: str) -> Caller:
        """Errors: Unauthenticated for an unknown, expired or revoked token (which is not told)."""
        digest = secret_hash(token)
        cached = self._cache.get(digest)
        now_s = self._db.now_s()
        if cached and cached[1] > now_s:
            return cached[0]
        drops = self._drops
        caller, expires_at = await self._db.read(lambda tx: _caller(tx, digest))
        if drops == self._drops:  # else what we read may be older than the change
            if len(self._cache) >= CACHE_MAX:
                self._cache.clear()
            self._cache[digest] = (caller, expires_at)
        return caller

    async def lookup(self, token: str) -> Token:
        await self.caller_of(token)
        return await self._db.read(lambda tx: TOKENS.get(tx, secret_hash(token)))

    async def revoke(self, token: str) -> None:
        def end(tx: Tx) -> None:
            TOKENS.delete(tx, secret_hash(token))
            tx.touch(IDENTITY)

        await self._db.write(end)


def _scope(tx: Tx, user_id: str, project: str) -> Caller:
    mine = [p for p in projects_of(tx, user_id) if p.enabled]
    if project:
        named = project_named(tx, project)
        mine = [p for p in mine if named and p.id == named.id]
    if not mine:
        raise Unauthenticated(REFUSED)
    if len(mine) > 1:
        raise InvalidArgument("project", f"choose one of {', '.join(p.name for p in mine)}")
    user = USERS.get(tx, user_id)
    return Caller(user.id, user.name, mine[0].id, mine[0].name, roles_of(tx, user.id, mine[0].id))


def _caller(tx: Tx, digest: str) -> tuple[Caller, float]:
    token = TOKENS.find(tx, digest)
    user = USERS.find(tx, token.user_id) if token else None
    project = PROJECTS.find(tx, token.project_id) if token else None
    if not (token and user and project and user.enabled and project.enabled and token.expires_at > tx.now):
        raise Unauthenticated("the token is not valid (any more); make a new one with IdentityService.CreateToken")
    return Caller(user.id, user.name, project.id, project.name, roles_of(tx, user.id, project.id)), token.expires_at
