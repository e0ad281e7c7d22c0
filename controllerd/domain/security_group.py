"""Security group: a stateful allow-list on ports, and the accounts that may log in there."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from ipaddress import ip_network

from controllerd.domain import check
from controllerd.domain.keypair import parse_public_key
from daemonkit.errors import InvalidArgument

DEFAULT = "default"
ANY = -1
ACCOUNTS_MAX = 20
KEYS_MAX = 20

_NAMED = {"1": "icmp", "6": "tcp", "17": "udp", "58": "icmpv6"}
_ACCOUNT_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


@dataclass(frozen=True)
class Account:
    """A user that guests behind the group create. `public_keys`: all of them, those of the named keypairs included."""

    name: str
    sudo: bool
    keypair_names: tuple[str, ...]
    public_keys: tuple[str, ...]

    def __post_init__(self) -> None:
        """Errors: InvalidArgument."""
        object.__setattr__(self, "keypair_names", tuple(self.keypair_names))  # JSON gives lists
        object.__setattr__(self, "public_keys", tuple(self.public_keys))


@dataclass(frozen=True)
class SecurityGroup:
    id: str
    name: str
    project_id: str
    description: str
    accounts: tuple[Account, ...]
    created_at: float

    def __post_init__(self) -> None:
        """Errors: InvalidArgument."""
        check.name("name", self.name)
        check.text("description", self.description, length_max=1024)


@dataclass(frozen=True)
class Rule:
    """What may pass. `port_min`, `port_max`: ports, or type and code of ICMP; -1 = any."""

    id: str
    security_group_id: str
    project_id: str
    ingress: bool
    ipv6: bool
    protocol: str  # "" = any; "tcp", "udp", "icmp", "icmpv6" or a number
    port_min: int
    port_max: int
    remote_cidr: str  # "" = any
    remote_group_id: str
    description: str
    created_at: float

    @property
    def meaning(self) -> tuple[object, ...]:
        """Equal for rules that let the same things pass."""
        cidr = "" if self.remote_cidr in ("0.0.0.0/0", "::/0") else self.remote_cidr
        return (self.ingress, self.ipv6, self.protocol, self.port_min, self.port_max, cidr, self.remote_group_id)


def checked_rule(rule: Rule) -> Rule:
    """With protocol and CIDR in their one form. Errors: InvalidArgument."""
    check.text("description", rule.description, length_max=1024)
    protocol = _protocol(rule.protocol, rule.ipv6)
    port_min, port_max = _ports(protocol, rule.port_min, rule.port_max)
    if rule.remote_cidr and rule.remote_group_id:
        raise InvalidArgument("remote_group_id", "not together with remote_cidr")
    cidr = _remote_cidr(rule.remote_cidr, rule.ipv6) if rule.remote_cidr else ""
    return replace(rule, protocol=protocol, port_min=port_min, port_max=port_max, remote_cidr=cidr)


def _protocol(value: str, ipv6: bool) -> str:
    lower = value.lower()
    if lower in ("", "any"):
        return ""
    if lower.isascii() and lower.isdigit() and len(lower) <= 3:
        check.between("protocol", int(lower), 0, 255)
        lower = _NAMED.get(str(int(lower)), str(int(lower)))
    elif lower not in _NAMED.values():
        raise InvalidArgument(
            "protocol", f"tcp, udp, icmp, icmpv6, a number from 0 to 255, or empty for any; is {value[:32]!r}"
        )
    if lower == ("icmp" if ipv6 else "icmpv6"):
        raise InvalidArgument("protocol", f"{lower} is not of IPv{6 if ipv6 else 4}")
    return lower


def _ports(protocol: str, low: int, high: int) -> tuple[int, int]:
    if protocol in ("icmp", "icmpv6"):
        if low == ANY and high != ANY:
            raise InvalidArgument("port_max", "an ICMP code needs a type (port_min)")
        for field, value in (("port_min", low), ("port_max", high)):
            check.between(field, value, ANY, 255)
        return low, high
    if low == ANY and high == ANY:
        return low, high
    if protocol not in ("tcp", "udp"):
        raise InvalidArgument("port_min", "only with protocol tcp, udp, icmp or icmpv6")
    if low == ANY:
        raise InvalidArgument("port_min", "is missing (port_max is given)")
    high = low if high == ANY else high
    check.between("port_min", low, 1, 65535)
    check.between("port_max", high, low, 65535)
    return low, high


def _remote_cidr(value: str, ipv6: bool) -> str:
    """A bare address becomes a /32 (/128); host bits are cleared."""
    if "%" in value:  # `ipaddress` keeps whatever stands behind it
        raise InvalidArgument("remote_cidr", "must not have a zone (%...)")
    try:
        found = ip_network(value, strict=False)
    except ValueError:
        raise InvalidArgument("remote_cidr", f"is not a CIDR: {value[:64]!r}") from None
    if found.version != (6 if ipv6 else 4):
        raise InvalidArgument("remote_cidr", f"is IPv{found.version}, the rule is for IPv{6 if ipv6 else 4}")
    return str(found)


def checked_accounts(accounts: tuple[Account, ...]) -> tuple[Account, ...]:
    """Errors: InvalidArgument for bad or repeated names, no keys, malformed keys, too many."""
    if len(accounts) > ACCOUNTS_MAX:
        raise InvalidArgument("accounts", f"at most {ACCOUNTS_MAX}, has {len(accounts)}")
    names = [a.name for a in accounts]
    if len(set(names)) != len(names):
        raise InvalidArgument("accounts", "a name is given twice")
    return tuple(_checked_account(account) for account in accounts)


def _checked_account(account: Account) -> Account:
    if not _ACCOUNT_NAME.fullmatch(account.name) or account.name == "root":
        raise InvalidArgument(
            "accounts",
            f"name: 1 to 32 of a-z, 0-9, _ and -, not beginning with a digit or -, not root; is {account.name[:64]!r}",
        )
    keys = tuple(dict.fromkeys(parse_public_key("accounts.public_keys", key)[0] for key in account.public_keys))
    if not 1 <= len(keys) <= KEYS_MAX:
        raise InvalidArgument("accounts", f"{account.name}: from 1 to {KEYS_MAX} keys, has {len(keys)}")
    return replace(account, public_keys=keys)
