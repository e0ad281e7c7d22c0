"""The one tree of errors.

Raised with context where the fault is seen, classified here once, turned into gRPC statuses in `daemonkit.rpc` and (later)
into HTTP faults in the REST front. `reason` is the machine-readable name (google.rpc.ErrorInfo.reason, domain "skyrack");
nobody matches message text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar


class SkyrackError(Exception):
    """Base of everything we tell a caller. `metadata` goes to ErrorInfo.metadata: strings only, no secrets, no paths."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: dict[str, str] = metadata


class InvalidArgument(SkyrackError):
    """A field of the request is wrong. Says which, and what would be right."""

    reason = "INVALID_ARGUMENT"

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}", field=field)
        self.field = field
        self.why = why


class Unauthenticated(SkyrackError):
    """No token, or one that is unknown, expired or revoked (which of them is not told)."""

    reason = "UNAUTHENTICATED"


class Forbidden(SkyrackError):
    """The caller may see the resource but has no role for this action."""

    reason = "FORBIDDEN"


class NotFound(SkyrackError):
    """Also for what belongs to another project: its existence is not told."""

    reason = "NOT_FOUND"

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"{kind} {name!r} not found", kind=kind, id=name)


class AlreadyExists(SkyrackError):
    reason = "ALREADY_EXISTS"

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"{kind} {name!r} exists already", kind=kind, id=name)


class Conflict(SkyrackError):
    """The resource is in a state in which this can't be done now (in use, busy, stopped...)."""

    reason = "CONFLICT"


class QuotaExceeded(SkyrackError):
    reason = "QUOTA_EXCEEDED"

    def __init__(self, resource: str, limit: int, used: int, requested: int) -> None:
        super().__init__(
            f"quota exceeded: {resource} limit {limit}, in use {used}, requested {requested}",
            resource=resource,
            limit=str(limit),
            used=str(used),
            requested=str(requested),
        )


class NoValidHost(SkyrackError):
    """The scheduler's reasoned refusal. `reasons` maps a filter to the number of nodes it refused."""

    reason = "NO_VALID_HOST"

    def __init__(self, message: str, reasons: Mapping[str, int] | None = None) -> None:
        super().__init__(message)
        self.metadata = {name: str(count) for name, count in (reasons or {}).items()}


class OutOfSpace(SkyrackError):
    """A disk is full, or an upload is larger than it may be."""

    reason = "OUT_OF_SPACE"


class TooLarge(SkyrackError):
    """One transaction changes more than the log takes at once. Nothing of it was done; ask for less at a time."""

    reason = "TOO_LARGE"


class NodeFailed(SkyrackError):
    """A node could not do what it was told for a server; the message is the node's."""

    reason = "NODE_FAILED"


class NodeLost(SkyrackError):
    """The node that was to do it does not answer any more."""

    reason = "NODE_LOST"


class NetworkFailed(SkyrackError):
    """A node could not put a server's port in place; the message is the node's."""

    reason = "NETWORK"


class StorageFailed(SkyrackError):
    """A node could not put a volume or its export in place; the message is the node's."""

    reason = "STORAGE"


class Unavailable(SkyrackError):
    """Transient: the same call may succeed later. Tasks retry it until their deadline.

    `retry_s`: when it is worth trying again (google.rpc.RetryInfo), 0 = not said.
    """

    reason = "UNAVAILABLE"
    retry_s: float = 0.0


class NoLeader(Unavailable):
    """No controller leads now. The call was certainly not carried out, so whatever it was, it may be sent again."""

    reason = "NO_LEADER"

    def __init__(self, retry_s: float) -> None:
        super().__init__(f"no controller leads now; try again in {retry_s:g} s")
        self.retry_s = retry_s


class DeadlineExceeded(SkyrackError):
    reason = "DEADLINE_EXCEEDED"


class NotLeader(SkyrackError):
    """This controller does not lead. `leader` is the address to go to, "" when nobody is known to lead."""

    reason = "NOT_LEADER"

    def __init__(self, leader: str, epoch: int) -> None:
        super().__init__(f"not the leader; leader is {leader or 'unknown'}", leader=leader, epoch=str(epoch))
        self.leader = leader
        self.epoch = epoch


class Fenced(SkyrackError):
    """An older epoch spoke. Whoever receives this steps down or drops the message."""

    reason = "FENCED"


class ConfigError(SkyrackError):
    """The configuration file or the machine is not fit to start on."""

    reason = "CONFIG"


class CommandFailed(SkyrackError):
    """A helper program ended with an error. `stderr` is for logs, not for tenants."""

    reason = "COMMAND_FAILED"

    def __init__(self, argv: Sequence[str], code: int, stderr: str) -> None:
        super().__init__(f"{argv[0]} ended with {code}: {stderr.strip()[-500:]}")
        self.code = code
        self.stderr = stderr


BY_REASON: dict[str, type[SkyrackError]] = {
    cls.reason: cls
    for cls in (
        SkyrackError, InvalidArgument, Unauthenticated, Forbidden, NotFound, AlreadyExists, Conflict, QuotaExceeded,
        NoValidHost, OutOfSpace, TooLarge, NetworkFailed, StorageFailed, Unavailable, NoLeader, DeadlineExceeded, NotLeader,
        Fenced,
    )
}  # fmt: skip
