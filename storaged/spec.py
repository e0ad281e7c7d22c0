"""The nouns of storaged: what is wanted, what is held, what is told. Plain values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path


@dataclass(frozen=True)
class Image:
    """Content for a new volume. `sources`: "host:port" of storage nodes that hold the blob."""

    sha256: str
    format: str  # "qcow2" or "raw"
    virtual_bytes: int
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Volume:
    id: str
    size_bytes: int
    image: Image | None = None
    absent: bool = False


@dataclass(frozen=True)
class Export:
    """One node may open one volume under one name. `id` is the attachment's."""

    id: str
    volume_id: str
    name: str  # unguessable; whoever has it and a certificate of a client node gets in
    client_node: str

    @property
    def tag(self) -> str:
        """Names the export in the storage daemon. Equal only if everything about it is: what runs needs no notes kept of it."""
        text = "\0".join((self.id, self.volume_id, self.name, self.client_node))
        return f"e-{self.id}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Blob:
    sha256: str
    absent: bool = False


@dataclass
class Desired:
    """What the controller wants of this node, by id."""

    volumes: dict[str, Volume] = field(default_factory=dict)
    exports: dict[str, Export] = field(default_factory=dict)
    blobs: dict[str, Blob] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # key "kind/id" -> why it can't be obeyed

    def exports_of(self, volume_id: str) -> list[Export]:
        return sorted((e for e in self.exports.values() if e.volume_id == volume_id), key=lambda e: e.id)


@dataclass(frozen=True)
class HeldVolume:
    """A volume as it is on this node. `tags`: of its exports that are served now."""

    size_bytes: int
    allocated_bytes: int = 0
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class HeldBlob:
    sha256: str
    size_bytes: int
    format: str
    virtual_bytes: int
    md5: str
    sha512: str


@dataclass(frozen=True)
class ImageFile:
    """An image's content as a file that stays there while it is borrowed."""

    path: Path
    format: str


@dataclass(frozen=True)
class Space:
    total_bytes: int
    free_bytes: int


class State(Enum):
    PENDING = 1
    READY = 2
    FAILED = 3
    GONE = 4


@dataclass(frozen=True)
class Observed:
    """One object as it is told to the controller. `size_bytes`: allocated bytes of a volume, content of a blob."""

    state: State
    fault: str = ""
    size_bytes: int = 0
    foreign: bool = False


Observations = Mapping[str, Observed]  # key "volume/<id>", "export/<id>", "blob/<sha256>"
