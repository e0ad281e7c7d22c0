"""What can go wrong, as the caller of the SDK sees it.

Every error is a `CloudError`. Those the cloud sent are rebuilt from the reason in google.rpc.ErrorInfo, those the transport
made are `Unreachable`; message text is never looked at. `advice` says what to do next, "" when there is nothing to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import grpc

DOMAIN = "skyrack"


class CloudError(Exception):
    """Base. `field` names the request field at fault ("" = none), `request_id` is what the cloud's logs call the request."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self, message: str, *, metadata: Mapping[str, str] | None = None, field: str = "", request_id: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})
        self.field = field
        self.request_id = request_id
        self.resent = False
        """True when an earlier try of the same call may have reached the cloud."""
        self.retry_s = 0.0
        """When the cloud says that it is worth trying again, 0 = it does not say."""

    @property
    def advice(self) -> str:
        return f"the cloud's log has more under request id {self.request_id}" if self.request_id else ""


class Misconfigured(CloudError):
    """The SDK was not told enough: no endpoint, no CA, no user."""

    reason = "MISCONFIGURED"

    @property
    def advice(self) -> str:
        return "set SKYRACK_ENDPOINT, SKYRACK_CA, and SKYRACK_USER with SKYRACK_PASSWORD or SKYRACK_TOKEN"


class Unreachable(CloudError):
    """No controller answered, or a connection broke and what it carried could not be sent again safely."""

    reason = "UNREACHABLE"

    @property
    def advice(self) -> str:
        return "is the cloud up, and do SKYRACK_ENDPOINT and SKYRACK_CA belong to it?"


class Unavailable(CloudError):
    """The cloud answered that it can't right now; the same call may succeed later."""

    reason = "UNAVAILABLE"

    @property
    def advice(self) -> str:
        return "try again in a moment"


class NotLeader(CloudError):
    """The controllers know no leader at present. (Redirects are followed and not seen.)"""

    reason = "NOT_LEADER"

    @property
    def leader(self) -> str:
        return self.metadata.get("leader", "")

    @property
    def advice(self) -> str:
        return "the controllers are choosing a leader; try again in a moment"


class NoLeader(NotLeader):
    """As long as a controller may hold a call, none of them led. The call was not carried out."""

    reason = "NO_LEADER"


class InvalidArgument(CloudError):
    """A field of the request is wrong; `field` says which."""

    reason = "INVALID_ARGUMENT"

    @property
    def advice(self) -> str:
        return ""


class Unauthenticated(CloudError):
    """No valid token, or user and password do not fit."""

    reason = "UNAUTHENTICATED"

    @property
    def advice(self) -> str:
        return "check SKYRACK_USER and SKYRACK_PASSWORD, or make a new SKYRACK_TOKEN"


class JoinRefused(Unauthenticated):
    """The secret of a join token is unknown, used, expired or for another node; the cloud does not tell which."""

    @property
    def advice(self) -> str:
        return "make a new one on a controller: skyrack node token"


class Forbidden(CloudError):
    reason = "FORBIDDEN"

    @property
    def advice(self) -> str:
        return "an admin can grant the role: skyrack role add"


class NotFound(CloudError):
    """Nothing of that id or name here; another project's resource looks the same."""

    reason = "NOT_FOUND"

    @property
    def advice(self) -> str:
        kind = self.metadata.get("kind", "").replace("_", " ")
        return f"see: skyrack {kind} list" if kind else ""


class Ambiguous(CloudError):
    """Several resources bear the name; `ids` lists them."""

    reason = "AMBIGUOUS"

    def __init__(self, kind: str, name: str, ids: Sequence[str]) -> None:
        super().__init__(f"several are called {name!r}: {', '.join(ids)}", metadata={"kind": kind, "name": name})
        self.ids = tuple(ids)

    @property
    def advice(self) -> str:
        return "name one by its id"


class AlreadyExists(CloudError):
    reason = "ALREADY_EXISTS"

    @property
    def advice(self) -> str:
        return "take another name, or delete the old one"


class Conflict(CloudError):
    """The resource is in a state in which this can't be done now."""

    reason = "CONFLICT"

    @property
    def advice(self) -> str:
        return ""


class QuotaExceeded(CloudError):
    reason = "QUOTA_EXCEEDED"

    @property
    def advice(self) -> str:
        option = self.metadata.get("resource", "RESOURCE").replace("_", "-")
        return f"ask an admin: skyrack quota set --{option} N PROJECT"


class NoValidHost(CloudError):
    """No node fits. `metadata` maps each filter to the number of nodes it refused."""

    reason = "NO_VALID_HOST"

    @property
    def advice(self) -> str:
        return "take a smaller flavor, or ask an admin for more nodes: skyrack node list"


class OutOfSpace(CloudError):
    reason = "OUT_OF_SPACE"

    @property
    def advice(self) -> str:
        return "delete what is no longer needed, or ask an admin for more storage"


class DeadlineExceeded(CloudError):
    """One call took longer than it may; it may still take effect."""

    reason = "DEADLINE_EXCEEDED"

    @property
    def advice(self) -> str:
        return "look whether it took effect before trying again"


class WaitTimeout(CloudError):
    """A waiter's deadline passed; the work goes on. `record` is the resource as last seen."""

    reason = "WAIT_TIMEOUT"

    def __init__(self, message: str, *, kind: str, record: Any) -> None:
        super().__init__(message, metadata={"kind": kind})
        self.record = record

    @property
    def advice(self) -> str:
        task = getattr(self.record, "task_id", "")
        return f"it goes on; see: skyrack task show {task}" if task else "it goes on; look again later"


class ResourceFailed(CloudError):
    """The resource waited for went to ERROR. `record` is it; `fault_reason` and `details` say why."""

    reason = "RESOURCE_FAILED"

    def __init__(self, message: str, *, kind: str, record: Any, fault_reason: str, details: Sequence[str]) -> None:
        super().__init__(message, metadata={"kind": kind})
        self.record = record
        self.fault_reason = fault_reason
        self.details = tuple(details)

    @property
    def advice(self) -> str:
        return f"see: skyrack {self.metadata['kind'].replace('_', ' ')} show {self.record.id}"


class Unsupported(CloudError):
    """The cloud's software does not know this call: it is older than the SDK, or newer."""

    reason = "UNSUPPORTED"

    @property
    def advice(self) -> str:
        return "its version and that of this program differ; see: skyrack version"


BY_REASON: dict[str, type[CloudError]] = {
    cls.reason: cls
    for cls in (
        Unavailable, NotLeader, NoLeader, InvalidArgument, Unauthenticated, Forbidden, NotFound, AlreadyExists, Conflict,
        QuotaExceeded, NoValidHost, OutOfSpace, DeadlineExceeded,
    )
}  # fmt: skip

# Statuses that gRPC itself makes when a connection breaks, and those that carry no ErrorInfo but mean one thing.
_TRANSPORT = ("UNAVAILABLE", "INTERNAL", "CANCELLED", "UNKNOWN")
_BY_CODE: dict[str, type[CloudError]] = {
    "UNAVAILABLE": Unavailable,
    "INVALID_ARGUMENT": InvalidArgument,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": Forbidden,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "FAILED_PRECONDITION": Conflict,
    "RESOURCE_EXHAUSTED": OutOfSpace,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "UNIMPLEMENTED": Unsupported,
}


def from_rpc(error: grpc.RpcError, request_id: str) -> CloudError:
    """The `CloudError` for a failed call. `request_id` is the one sent, used when none came back."""
    pairs: Any = error.trailing_metadata() or ()
    trailing = dict(pairs)
    answered = str(trailing.get("x-request-id", ""))
    rich = trailing.get("grpc-status-details-bin")
    if isinstance(rich, bytes):
        rebuilt = _from_status(rich, answered or request_id)
        if rebuilt is not None:
            return rebuilt
    code, text = error.code().name, error.details() or ""
    if code in _TRANSPORT and not answered:
        return Unreachable(f"connection failed: {text}", request_id=request_id)
    if code == "UNIMPLEMENTED":
        text = "the cloud does not know this call"
    return _BY_CODE.get(code, CloudError)(text or code.lower(), request_id=answered or request_id)


def _from_status(serialized: bytes, request_id: str) -> CloudError | None:
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2, status_pb2

    try:
        status = status_pb2.Status.FromString(serialized)
    except DecodeError:
        return None
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    found = False
    for detail in status.details:
        found = detail.Unpack(info) or found
        detail.Unpack(bad)
        detail.Unpack(retry)
    if not found or info.domain != DOMAIN:
        return None
    violations = list(bad.field_violations)
    field = violations[0].field if violations else info.metadata.get("field", "")
    cls = BY_REASON.get(info.reason, CloudError)
    rebuilt = cls.__new__(cls)
    CloudError.__init__(rebuilt, status.message, metadata=dict(info.metadata), field=field, request_id=request_id)
    rebuilt.retry_s = max(0.0, retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9)
    if cls is CloudError:
        rebuilt.metadata.setdefault("reason", info.reason)
    return rebuilt
