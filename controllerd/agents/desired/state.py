"""What one agent shall have, in a form that is cheap to compare, to hash and to share between sessions.

Most of what a networkd has is the same on every node that carries a network: an entry for each port elsewhere. So a state
refers to its networks' wires, of which there is one each in this process, and adds what is the node's own. Two states that
refer to the same wire do not differ in it; nothing of it is looked at, or kept twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from daemonkit.desired import encode, key_of
from skyrack.v1 import agent_pb2 as pb


class Item(NamedTuple):
    """`line`: its part of the state's hash, as agent.proto defines it."""

    body: bytes
    line: bytes


Items = dict[str, Item]  # by key "kind/id"


def item_of(spec: pb.DesiredObject) -> tuple[str, Item]:
    key, body = key_of(spec), encode(spec)
    return key, Item(body, key.encode() + b"\0" + hashlib.sha256(body).digest())


def items_of(specs: list[pb.DesiredObject]) -> Items:
    return dict(item_of(spec) for spec in specs)


@dataclass(frozen=True)
class Wire:
    """A network as all nodes that carry it see it.

    `tunnelled`: node -> entries of its ports, which all nodes but itself have. `segment`: without the other ends of its
    tunnels. `facts`: port -> what its entry was made from. `members`: of a group on this network, filled when asked for.
    """

    network_id: str
    segment: pb.SegmentSpec
    vteps: Mapping[str, str]  # node -> end of its tunnels, of nodes in `tunnelled`
    tunnelled: Mapping[str, Items]
    facts: Mapping[str, tuple[object, ...]]
    lines: Sequence[tuple[bytes, str]]  # of all entries, ascending, with the node that each is on
    members: dict[str, tuple[str, Item]] = field(default_factory=dict)

    def seen_from(self, node_id: str) -> Iterator[tuple[str, Item]]:
        for there, items in self.tunnelled.items():
            if there != node_id:
                yield from items.items()

    def lines_from(self, node_id: str) -> list[bytes]:
        return [line for line, there in self.lines if there != node_id]

    def like(self, other: Wire | None) -> bool:
        """Whether every node's segment is the same on both."""
        return other is not None and (other is self or (other.segment == self.segment and other.vteps == self.vteps))

    def segment_for(self, node_id: str) -> Item:
        spec = pb.SegmentSpec()
        spec.CopyFrom(self.segment)
        spec.vteps.extend(sorted(vtep for there, vtep in self.vteps.items() if there != node_id))
        return item_of(pb.DesiredObject(id=self.network_id, segment=spec))[1]


@dataclass(frozen=True)
class Own:
    """What depends on nothing but the rows of the node itself.

    `members_of`: (group, network) whose members the node must know. `whole`: it depends on the networks too and must be made
    anew with them.
    """

    items: Items
    networks: frozenset[str] = frozenset()
    members_of: frozenset[tuple[str, str]] = frozenset()
    whole: bool = False


@dataclass(frozen=True)
class State:
    """`shared`: the node's view of what its wires tell, but for the ports elsewhere."""

    node_id: str
    own: Own
    wires: Mapping[str, Wire] = field(default_factory=dict)
    shared: Items = field(default_factory=dict)

    def items(self) -> Iterator[tuple[str, Item]]:
        yield from self.own.items.items()
        yield from self.shared.items()
        for wire in self.wires.values():
            yield from wire.seen_from(self.node_id)

    def hash(self) -> bytes:
        """As `daemonkit.desired.state_hash` of all bodies."""
        lines = [item.line for items in (self.own.items, self.shared) for item in items.values()]
        for wire in self.wires.values():  # each already in order, which makes sorting all of them cheap
            lines += wire.lines_from(self.node_id)
        return hashlib.sha256(b"".join(sorted(lines))).digest()

    def delta(self, former: State) -> tuple[list[bytes], list[str]]:
        """(bodies to put, keys to remove) that make this state out of `former`."""
        now, then = self._unlike(former), former._unlike(self)
        put = [item.body for key, item in now.items() if key not in then or then[key].body != item.body]
        return put, [key for key in then if key not in now]

    def _unlike(self, other: State) -> Items:
        """Items but those of wires that both have."""
        found = {} if self.own is other.own else dict(self.own.items)
        found |= self.shared
        for network_id, wire in self.wires.items():
            if other.wires.get(network_id) is not wire:
                found.update(wire.seen_from(self.node_id))
        return found
