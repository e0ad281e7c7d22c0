"""Desired state as an agent holds it: applying deltas, and the hash by which both ends know that they agree. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from daemonkit.errors import SkyrackError
from skyrack.v1 import agent_pb2


class DesiredMismatch(SkyrackError):
    """What came does not fit on what is held: ask for the whole (or, if it was the whole, give up)."""


def key_of(spec: agent_pb2.DesiredObject) -> str:
    """ "kind/id", the kind being the name of the oneof field that is set."""
    return f"{spec.WhichOneof('spec')}/{spec.id}"


def encode(spec: agent_pb2.DesiredObject) -> bytes:
    return spec.SerializeToString(deterministic=True)


def state_hash(bodies: Mapping[str, bytes]) -> bytes:
    """sha256 as agent.proto defines it. `bodies`: key -> encoded object."""
    digest = hashlib.sha256()
    for key in sorted(bodies):
        digest.update(key.encode() + b"\0" + hashlib.sha256(bodies[key]).digest())
    return digest.digest()


@dataclass
class Mirror:
    """The agent's copy. `objects` and `bodies` have the same keys."""

    epoch: int = 0
    generation: int = 0
    objects: dict[str, agent_pb2.DesiredObject] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def restore(cls, epoch: int, generation: int, bodies: Mapping[str, bytes]) -> Mirror:
        objects = {k: agent_pb2.DesiredObject.FromString(b) for k, b in bodies.items()}
        return cls(epoch, generation, objects, dict(bodies))

    def hash(self) -> bytes:
        return state_hash(self.bodies)

    def apply(self, epoch: int, delta: agent_pb2.DesiredState) -> set[str]:
        """Applies `delta` whole or not at all; gives the keys that changed. Errors: DesiredMismatch."""
        if delta.same:
            if delta.hash != self.hash():
                raise DesiredMismatch("held state is not what the controller thinks")
            self.epoch, self.generation = epoch, delta.generation
            return set()
        if delta.base and (delta.base != self.generation or epoch != self.epoch):
            raise DesiredMismatch(f"delta on {epoch}.{delta.base}, held {self.epoch}.{self.generation}")
        bodies = dict(self.bodies) if delta.base else {}
        objects = dict(self.objects) if delta.base else {}
        for key in delta.remove:
            bodies.pop(key, None)
            objects.pop(key, None)
        for spec in delta.put:
            if spec.WhichOneof("spec") is None:
                raise DesiredMismatch(f"{spec.id} is of a kind this version does not know")
            key, body = key_of(spec), encode(spec)
            # A copy, because a part of a message keeps the memory of the whole.
            bodies[key], objects[key] = body, agent_pb2.DesiredObject.FromString(body)
        if state_hash(bodies) != delta.hash:
            raise DesiredMismatch("hash differs after the delta")
        changed = {k for k in bodies.keys() | self.bodies.keys() if bodies.get(k) != self.bodies.get(k)}
        self.epoch, self.generation, self.objects, self.bodies = epoch, delta.generation, objects, bodies
        return changed

    def become(self, other: Mirror) -> None:
        """Shows what `other` holds under this identity, which rooms may keep."""
        self.epoch, self.generation, self.objects, self.bodies = other.epoch, other.generation, other.objects, other.bodies
