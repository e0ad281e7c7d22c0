"""The error a tenant sees on a resource."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    reason: str
    """Machine-readable, e.g. "NO_VALID_HOST"."""
    message: str
    details: tuple[str, ...]
    """E.g. one line a filter that refused nodes."""
