"""Looks for whatever a host or a sandbox could leave behind."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from skyrack.sandbox import cgroup, namespace


def traces(word: str, directory: Path) -> dict[str, list[str]]:
    """By kind; empty when nothing is left that carries `word` in its name or lies under `directory`."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found = {
        "namespaces": sorted(namespace.names(word)),
        "control groups": sorted(cgroup.names(word)),
        "processes": [line for line in _commands() if word in line or f"{directory}/" in line],
        "mounts": [line for line in mounts if word in line or str(directory) in line],
        "files": [str(path) for path in directory.rglob("*")],
    }
    return {kind: things for kind, things in found.items() if things}


def _commands() -> list[str]:
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                lines.append((entry / "cmdline").read_text(errors="replace").replace("\0", " "))
    return lines
