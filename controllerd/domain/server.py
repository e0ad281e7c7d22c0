"""Server: a tenant's virtual machine. Its states, what is legal in each, and what is derived rather than stored."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controllerd.domain import check
from controllerd.domain.flavor import Flavor
from controllerd.domain.image import Image
from daemonkit.errors import Conflict, InvalidArgument

# Stored states.
BUILD, ACTIVE, STOPPED, ERROR = "BUILD", "ACTIVE", "STOPPED", "ERROR"
STARTING, STOPPING, REBOOTING, DELETING = "STARTING", "STOPPING", "REBOOTING", "DELETING"
TRANSITIONAL = (BUILD, STARTING, STOPPING, REBOOTING, DELETING)  # a task is at work
# Shown states that are computed: the node is lost; the hypervisor holds the guest.
UNKNOWN, PAUSED = "UNKNOWN", "PAUSED"
HIDDEN_BY_LOSS = (ACTIVE, STOPPED, STARTING, STOPPING, REBOOTING)
SHOWN = (BUILD, ACTIVE, STOPPED, ERROR, STARTING, STOPPING, REBOOTING, DELETING, UNKNOWN, PAUSED)

# What a node is told. "" = nothing: it has never heard of the server.
POWER_PREPARED, POWER_RUNNING, POWER_STOPPED, POWER_ABSENT = "PREPARED", "RUNNING", "STOPPED", "ABSENT"

# Verb -> from which stored states, and the state while its task is at work. ERROR only where there is a guest.
VERBS: dict[str, tuple[tuple[str, ...], str]] = {
    "start": ((STOPPED, ERROR), STARTING),
    "stop": ((ACTIVE, ERROR), STOPPING),
    "reboot": ((ACTIVE,), REBOOTING),
}

GIB = 1 << 30
USER_DATA_BYTES_MAX = 64 * 1024
NETWORKS_MAX = 8
VOLUMES_MAX = 8
HOSTNAME_MAX = 63  # RFC 1123
SKEW_TOLERATED_S = 1.0

# Milestones of a launch; "accepted" is the creation itself.
CONTROLLER_MILESTONES = ("scheduled", "network")
NODE_MILESTONES = ("image", "disk", "defined", "running")


@dataclass(frozen=True)
class Server:
    """A server's row. Its user data, which may be large, is kept apart: `controllerd.store.server.user_data`."""

    id: str
    name: str
    project_id: str
    user_id: str
    state: str
    flavor_id: str
    flavor_name: str
    vcpus: int
    memory_mib: int
    disk_gib: int
    image_id: str
    image_sha256: str
    image_format: str
    image_size_bytes: int
    image_virtual_bytes: int
    keypair_name: str
    public_key: str
    metadata: dict[str, str]
    config_drive: bool
    placement: dict[str, str]  # hints: "node" -> node id, "different_node_than" -> server id
    node_id: str
    power: str
    fault_reason: str
    fault_message: str
    fault_details: tuple[str, ...]
    created_at: float
    updated_at: float
    launched_at: float
    observed_state: str
    observed_fault: str
    observed_attached: tuple[str, ...]
    observed_at: float  # when observed_state last changed
    observed_milestones: dict[str, float]  # name -> seconds, by the node's clock

    def __post_init__(self) -> None:
        """Errors: InvalidArgument."""
        check.name("name", self.name)
        check.metadata("metadata", self.metadata)

    def shown(self, lost: bool) -> str:
        """The state that a tenant sees. `lost`: whether its node is."""
        if lost and self.node_id and self.state in HIDDEN_BY_LOSS:
            return UNKNOWN
        return PAUSED if self.state == ACTIVE and self.observed_state == "PAUSED" else self.state


def next_state(server: Server, verb: str, lost: bool) -> str:
    """The transitional state that the verb leads to. Errors: Conflict saying from which states it is legal."""
    allowed, transitional = VERBS[verb]
    if lost:
        raise Conflict(f"server {server.id} can't {verb} now: its node is lost")
    usable = server.state != ERROR or (server.launched_at and server.power in (POWER_RUNNING, POWER_STOPPED))
    if server.state not in allowed or not usable:
        wanted = " or ".join(s for s in allowed if s != ERROR)
        raise Conflict(f"server {server.id} can't {verb}: it is {server.shown(lost)}, and must be {wanted}")
    return transitional


def settled(server: Server) -> str:
    """The resting state that fits what the node reports; the stored one where it reports neither."""
    return {"RUNNING": ACTIVE, "PAUSED": ACTIVE, "STOPPED": STOPPED}.get(server.observed_state, server.state)


def fit(flavor: Flavor, image: Image) -> None:
    """Errors: InvalidArgument naming flavor_id and what the image needs."""
    disk_gib = max(image.min_disk_gib, -(-image.virtual_bytes // GIB))
    if flavor.disk_gib < disk_gib:
        raise InvalidArgument(
            "flavor_id", f"image {image.name!r} needs a disk of {disk_gib} GiB, {flavor.name!r} has {flavor.disk_gib}"
        )
    if flavor.memory_mib < image.min_memory_mib:
        needs = f"image {image.name!r} needs {image.min_memory_mib} MiB of memory"
        raise InvalidArgument("flavor_id", f"{needs}, {flavor.name!r} has {flavor.memory_mib}")


def user_data(data: bytes) -> bytes:
    if len(data) > USER_DATA_BYTES_MAX:
        raise InvalidArgument("user_data", f"at most {USER_DATA_BYTES_MAX} bytes, has {len(data)}")
    return data


def hostname(name: str, server_id: str) -> str:
    """The name as one DNS label (RFC 1123): lower case letters, digits and inner hyphens."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    label = "".join(c if c.isalnum() else "-" for c in plain).strip("-")[:HOSTNAME_MAX].rstrip("-")
    return label or f"server-{server_id[:8]}"


@dataclass(frozen=True)
class Milestone:
    name: str
    time: float
    since_accepted_ms: int


def timeline(accepted_at: float, events: Iterable[tuple[str, float]]) -> tuple[Milestone, ...]:
    """The launch in order of time, from a server's events (kind, time); the first of each kind counts."""
    first: dict[str, float] = {}
    for kind, time in events:
        first.setdefault(kind.removeprefix("server."), time)
    known = {name: first[name] for name in (*CONTROLLER_MILESTONES, *NODE_MILESTONES) if name in first}
    entries = sorted({"accepted": accepted_at, **known}.items(), key=lambda entry: entry[1])
    return tuple(Milestone(name, time, max(0, round((time - accepted_at) * 1000))) for name, time in entries)


def launch_times(milestones: Mapping[str, float], not_before: float, seen_at: float) -> dict[str, float]:
    """The node's milestones on the controller's clock.

    The newest of them happened a moment before it was seen (`seen_at`). A clock that differs by more than a second is
    corrected by that difference; whatever is left outside [not_before, seen_at] is clamped.
    """
    known = {name: milestones[name] for name in NODE_MILESTONES if name in milestones}
    skew = seen_at - max(known.values(), default=seen_at)
    correction = skew if abs(skew) > SKEW_TOLERATED_S else 0.0
    return {name: min(max(time + correction, not_before), seen_at) for name, time in known.items()}
