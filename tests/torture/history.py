"""What clients were told, against what the cloud holds in the end. Pure.

Every operation has a name of its own that no other one uses, so that each row and each event can be led back to it. The
clients' times are of one machine's monotonic clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

CREATE, DELETE = "create", "delete"
DONE, UNKNOWN = "done", "unknown"


@dataclass
class Operation:
    """`outcome`: DONE = the cloud acknowledged it at `answered_s`; UNKNOWN = the client gave up, it may have been done."""

    kind: str  # noun: "server", "keypair"
    act: str
    name: str
    sent_s: float
    answered_s: float = 0.0
    outcome: str = UNKNOWN
    resource_id: str = ""
    why: str = ""


@dataclass(frozen=True)
class Event:
    """A line of the cloud's event log: "server.create" of the resource with that name."""

    seq: int
    kind: str
    resource_id: str
    name: str


@dataclass(frozen=True)
class End:
    """What the cloud holds when all has settled. `alive`: noun -> names, one each row. `copies`: controller -> digest."""

    events: Sequence[Event]
    alive: Mapping[str, Sequence[str]]
    copies: Mapping[str, str]


@dataclass
class Verdict:
    acknowledged: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    reordered: list[str] = field(default_factory=list)
    diverged: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.lost or self.doubled or self.reordered or self.diverged)


def judge(operations: Iterable[Operation], end: End) -> Verdict:
    done = [o for o in operations if o.outcome == DONE]
    verdict = Verdict(len(done))
    numbers: dict[tuple[str, str], list[int]] = {}
    for event in end.events:
        numbers.setdefault((event.kind, event.name), []).append(event.seq)
    _lost(done, numbers, _deleted(operations), end, verdict)
    _doubled(numbers, end, verdict)
    _reordered(done, numbers, verdict)
    if len(set(end.copies.values())) > 1:
        verdict.diverged = [f"{name}: {digest}" for name, digest in sorted(end.copies.items())]
    return verdict


def _deleted(operations: Iterable[Operation]) -> set[tuple[str, str]]:
    """What somebody at least tried to delete: it may be gone."""
    return {(o.kind, o.name) for o in operations if o.act == DELETE}


def _lost(
    done: Sequence[Operation], numbers: Mapping[tuple[str, str], list[int]], deleted: set[tuple[str, str]], end: End,
    verdict: Verdict,
) -> None:  # fmt: skip
    alive = {(kind, name) for kind, names in end.alive.items() for name in names}
    for o in done:
        if (f"{o.kind}.{o.act}", o.name) not in numbers:
            verdict.lost.append(f"{o.act} of {o.kind} {o.name} was acknowledged, and there is no event of it")
        elif o.act == CREATE and (o.kind, o.name) not in alive | deleted:
            verdict.lost.append(f"{o.kind} {o.name} is gone, and nobody deleted it")
        elif o.act == DELETE and (o.kind, o.name) in alive:
            verdict.lost.append(f"{o.kind} {o.name} is there, though its delete was acknowledged")


def _doubled(numbers: Mapping[tuple[str, str], list[int]], end: End, verdict: Verdict) -> None:
    for (kind, name), seqs in numbers.items():
        if kind.endswith(".create") and len(seqs) > 1:
            verdict.doubled.append(f"{kind} of {name} at {seqs}")
    for kind, names in end.alive.items():
        verdict.doubled += [f"{count} x {kind} {name}" for name, count in Counter(names).items() if count > 1]


def _reordered(done: Sequence[Operation], numbers: Mapping[tuple[str, str], list[int]], verdict: Verdict) -> None:
    """What was sent after another thing had been acknowledged has the higher number."""
    known = [(o, min(numbers[f"{o.kind}.{o.act}", o.name])) for o in done if (f"{o.kind}.{o.act}", o.name) in numbers]
    by_answer = sorted(known, key=lambda pair: pair[0].answered_s)
    position, highest, of = 0, 0, ""
    for o, seq in sorted(known, key=lambda pair: pair[0].sent_s):
        while position < len(by_answer) and by_answer[position][0].answered_s < o.sent_s:
            earlier, number = by_answer[position]
            if number > highest:
                highest, of = number, earlier.name
            position += 1
        if seq < highest:
            verdict.reordered.append(f"{o.name} (event {seq}) was sent after {of} (event {highest}) was acknowledged")
