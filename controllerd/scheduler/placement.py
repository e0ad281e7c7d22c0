"""Where a server goes. Pure: candidates and a request in, a node or a reasoned refusal out.

Filters say who can hold it, in a fixed order; a node counts against the first filter that refuses it. Weights say who
should: the one with most of its memory free (nodes within a sixteenth of each other count as equal), then the one with
fewest servers, then one that has the image cached. The same input gives the same answer: among equals the first by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from controllerd.domain.placement import Candidate, Ratios, Request
from daemonkit.errors import NoValidHost


@dataclass(frozen=True, slots=True)
class Refusal:
    """How many nodes a filter refused; for a capacity, who came closest and what it lacks ("256 MiB")."""

    filter: str
    nodes: int
    total: int
    closest: str = ""
    lacks: str = ""

    def told(self, with_names: bool) -> str:
        text = f"{self.filter}: {self.nodes} of {self.total} nodes"
        if not self.lacks:
            return text
        return f"{text}; closest miss {self.closest + ' ' if with_names else ''}lacks {self.lacks}"


FILTERS = ("role", "enabled", "lost", "session", "node", "different_node", "vcpus", "memory", "disk")
SHARES = 16  # parts of a node's memory: less of a difference does not count
_UNITS = {"vcpus": "vCPU", "memory": "MiB", "disk": "GiB"}


def place(candidates: Sequence[Candidate], request: Request, ratios: Ratios) -> Candidate:
    """The best node that passes every filter. Errors: NoValidHost, with counts per filter and no names of nodes."""
    best: Candidate | None = None
    best_weight = (0, 0, False)
    vcpu_ratio, memory_ratio, disk_ratio = ratios.vcpu, ratios.memory, ratios.disk
    vcpus, memory_mib, disk_gib, image = request.vcpus, request.memory_mib, request.disk_gib, request.image_sha256
    for c in candidates:
        if (  # the cheap half of `_refused_by`, in line: there may be a thousand nodes
            c.memory_mib_claimed + memory_mib > c.memory_mib * memory_ratio
            or c.vcpus_claimed + vcpus > c.vcpus * vcpu_ratio
            or c.disk_gib_claimed + disk_gib > c.disk_gib * disk_ratio
            or not c.in_session
        ):
            continue
        weight = (share_free(c, ratios), -c.servers, image in c.images)
        if best is not None and (weight < best_weight or (weight == best_weight and c.name > best.name)):
            continue
        if not _refused_by(c, request, ratios):
            best, best_weight = c, weight
    if best is None:
        raise refusal(refusals(candidates, request, ratios))
    return best


def share_free(c: Candidate, ratios: Ratios) -> int:
    """How many of SHARES parts of the memory that can be given out are free."""
    return round((1 - c.memory_mib_claimed / (c.memory_mib * ratios.memory or 1)) * SHARES)


def _refused_by(c: Candidate, r: Request, ratios: Ratios) -> str:
    """The first filter that refuses, "" = none."""
    if not c.compute:
        return "role"
    if not c.enabled:
        return "enabled"
    if c.lost:
        return "lost"
    if not c.in_session:
        return "session"
    if r.node_id and c.node_id != r.node_id:
        return "node"
    if r.not_node_id and c.node_id == r.not_node_id:
        return "different_node"
    if c.vcpus_claimed + r.vcpus > c.vcpus * ratios.vcpu:
        return "vcpus"
    if c.memory_mib_claimed + r.memory_mib > c.memory_mib * ratios.memory:
        return "memory"
    if c.disk_gib_claimed + r.disk_gib > c.disk_gib * ratios.disk:
        return "disk"
    return ""


def refusals(candidates: Sequence[Candidate], request: Request, ratios: Ratios) -> list[Refusal]:
    """One entry for each filter that refused a node, in the filters' order. Machines that never run servers don't count."""
    computes = [c for c in candidates if c.compute]
    refused: dict[str, list[Candidate]] = {}
    for candidate in computes:
        refused.setdefault(_refused_by(candidate, request, ratios), []).append(candidate)
    found = []
    for name in FILTERS:
        if nodes := refused.get(name):
            closest, lacks = _closest(name, nodes, request, ratios)
            found.append(Refusal(name, len(nodes), len(computes), closest, lacks))
    return found


def _closest(name: str, nodes: list[Candidate], request: Request, ratios: Ratios) -> tuple[str, str]:
    if name not in _UNITS:
        return "", ""
    closest = min(nodes, key=lambda c: (_lack(name, c, request, ratios), c.name))
    return closest.name, f"{_lack(name, closest, request, ratios)} {_UNITS[name]}"


def _lack(name: str, c: Candidate, r: Request, ratios: Ratios) -> int:
    if name == "vcpus":
        return c.vcpus_claimed + r.vcpus - int(c.vcpus * ratios.vcpu)
    if name == "memory":
        return c.memory_mib_claimed + r.memory_mib - int(c.memory_mib * ratios.memory)
    return c.disk_gib_claimed + r.disk_gib - int(c.disk_gib * ratios.disk)


def refusal(refused: Sequence[Refusal]) -> NoValidHost:
    """What a tenant is told. Metadata: filter -> "2 of 3 nodes; closest miss lacks 256 MiB"."""
    if not refused:
        return NoValidHost("no node fits: the cloud has no compute nodes")
    error = NoValidHost("no node fits: " + ", ".join(r.told(with_names=False) for r in refused))
    error.metadata = {r.filter: r.told(with_names=False).removeprefix(f"{r.filter}: ") for r in refused}
    return error
