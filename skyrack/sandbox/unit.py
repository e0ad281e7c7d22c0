"""A daemon that a host's supervisor runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Unit:
    """`notify`: it says READY=1 by sd_notify. `needs`: a path without which it is not started (a node that has not joined)."""

    name: str
    argv: tuple[str, ...]
    notify: bool = False
    needs: str = ""
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
