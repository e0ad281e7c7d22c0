"""Every candidate in the order in which a placement looks at them, kept current node by node. Pure.

`find` gives what `placement.place` gives for the same candidates (a test holds them against each other) without weighing
all of them: the order is that of the weights, so the first node with room has the best memory and server weights, and only
its equals are asked for the image. One placement among 10,000 nodes takes microseconds where the best nodes have room, and
below a millisecond where most have none.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

from controllerd.domain.placement import Candidate, Ratios, Request
from controllerd.scheduler.placement import place, refusal, refusals, share_free

_LAST = "\U0010ffff"  # sorts behind every name

# (-share of memory free, servers, name, node id, vCPUs, MiB and GiB that can still be given out)
_Entry = tuple[int, int, str, str, int, int, int]


class Stock:
    def __init__(self, ratios: Ratios) -> None:
        self._ratios = ratios
        self._candidates: dict[str, Candidate] = {}
        self._entries: dict[str, _Entry] = {}  # of nodes that may be given servers at all
        self._order: list[_Entry] = []
        self._with_image: dict[str, set[str]] = {}  # sha256 -> nodes

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self._candidates.values())

    def fill(self, candidates: Iterable[Candidate]) -> None:
        """These and no others."""
        self._candidates, self._entries, self._with_image = {}, {}, {}
        for candidate in candidates:
            self._note(candidate)
        self._order = sorted(self._entries.values())

    def put(self, candidate: Candidate) -> None:
        self.drop(candidate.node_id)
        if entry := self._note(candidate):
            insort(self._order, entry)

    def drop(self, node_id: str) -> None:
        known = self._candidates.pop(node_id, None)
        if known is None:
            return
        for image in known.images:
            self._with_image[image].discard(node_id)
        if entry := self._entries.pop(node_id, None):
            del self._order[bisect_left(self._order, entry)]

    def _note(self, c: Candidate) -> _Entry | None:
        self._candidates[c.node_id] = c
        for image in c.images:
            self._with_image.setdefault(image, set()).add(c.node_id)
        if not (c.compute and c.enabled and c.in_session) or c.lost:
            return None
        entry = self._entries[c.node_id] = (
            -share_free(c, self._ratios), c.servers, c.name, c.node_id,
            int(c.vcpus * self._ratios.vcpu) - c.vcpus_claimed,
            int(c.memory_mib * self._ratios.memory) - c.memory_mib_claimed,
            int(c.disk_gib * self._ratios.disk) - c.disk_gib_claimed,
        )  # fmt: skip
        return entry

    def find(self, request: Request) -> Candidate:
        """The best node that passes every filter. Errors: as `placement.place`."""
        if request.node_id:
            return place(list(self), request, self._ratios)
        vcpus, memory_mib, disk_gib, avoided = request.vcpus, request.memory_mib, request.disk_gib, request.not_node_id
        first = next(
            (e for e in self._order if e[5] >= memory_mib and e[4] >= vcpus and e[6] >= disk_gib and e[3] != avoided), None
        )
        if first is None:
            raise refusal(refusals(list(self), request, self._ratios))
        return self._candidates[self._with_image_among_equals(first, request)[3]]

    def _with_image_among_equals(self, first: _Entry, request: Request) -> _Entry:
        """Of the nodes that weigh as much as `first`, the first by name that has the image; else `first`."""
        holders = self._with_image.get(request.image_sha256, ())
        if first[3] in holders or not holders:
            return first
        low = bisect_left(self._order, first)
        high = bisect_right(self._order, (first[0], first[1], _LAST))
        if high - low <= len(holders):
            equals = (e for e in self._order[low:high] if e[3] in holders and _fits(e, request))
            return next(equals, first)
        entries = (self._entries[node_id] for node_id in holders if node_id in self._entries)
        return min((e for e in entries if e[:2] == first[:2] and _fits(e, request)), default=first)


def _fits(entry: _Entry, request: Request) -> bool:
    return (
        entry[4] >= request.vcpus
        and entry[5] >= request.memory_mib
        and entry[6] >= request.disk_gib
        and entry[3] != request.not_node_id
    )
