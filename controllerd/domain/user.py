"""User: a person or program that logs in; and what a password and a token must be."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from controllerd.domain import check
from daemonkit.errors import InvalidArgument

PASSWORD_MIN, PASSWORD_MAX = 8, 1024  # characters
TOKEN_LIFETIME_DEFAULT_S = 12 * 3600
TOKEN_LIFETIME_MAX_S = 7 * 24 * 3600
TOKEN_LIFETIME_MIN_S = 60


@dataclass(frozen=True)
class User:
    id: str
    name: str
    email: str
    password_hash: str
    enabled: bool
    created_at: float

    def __post_init__(self) -> None:
        """Errors: InvalidArgument."""
        check.name("name", self.name)
        check.text("email", self.email)


@dataclass(frozen=True)
class Token:
    """`hash` = sha256 of the secret; the secret itself is stored nowhere."""

    hash: str
    user_id: str
    project_id: str
    created_at: float
    expires_at: float


def check_password(password: str) -> str:
    """Errors: InvalidArgument, without repeating the password."""
    if not PASSWORD_MIN <= len(password) <= PASSWORD_MAX:
        raise InvalidArgument("password", f"must have {PASSWORD_MIN} to {PASSWORD_MAX} characters")
    return password


def check_lifetime(lifetime_s: int) -> int:
    wanted = lifetime_s or TOKEN_LIFETIME_DEFAULT_S
    return check.between("lifetime_s", wanted, TOKEN_LIFETIME_MIN_S, TOKEN_LIFETIME_MAX_S)


def secret_hash(secret: str) -> str:
    """How tokens and join secrets are stored. Plain sha256 is enough: they are random, not chosen by people."""
    return hashlib.sha256(secret.encode()).hexdigest()
