"""What the box remembers: a few numbers from which the whole plan follows. Written before the first effect."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from daemonkit.errors import Conflict

_FILE = "state.json"


def base() -> Path:
    """Where sandboxes live, a directory each: SKYRACK_SANDBOX_DIR or /var/lib/skyrack-sandbox."""
    return Path(os.environ.get("SKYRACK_SANDBOX_DIR") or "/var/lib/skyrack-sandbox").absolute()


@dataclass(frozen=True)
class State:
    """`counts`: nodes by word, see `layout.nodes`. `api_ports`: controller to its port on the machine's 127.0.0.1."""

    name: str
    counts: dict[str, int]
    api_ports: dict[str, int] = field(default_factory=dict)

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = directory / f"{_FILE}.new"
        partial.write_text(json.dumps(asdict(self)))
        partial.replace(directory / _FILE)


def load(directory: Path) -> State | None:
    """None when nothing was ever begun there. Errors: Conflict when the file is not ours."""
    with suppress(FileNotFoundError):
        try:
            return State(**json.loads((directory / _FILE).read_text()))
        except (ValueError, TypeError):
            raise Conflict(f"{directory / _FILE} cannot be read; `sandbox down` clears it away") from None
    return None
