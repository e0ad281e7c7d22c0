"""The mark beside a copy of the state that did not fit its log: as long as it is there no controller starts.

Without it a restart would forget: once the entry that did not fit is trimmed from the log, the copy takes a snapshot, and
nobody hears that there was a fault. `skyrack-controllerd restore` takes the mark away.
"""

from __future__ import annotations

from pathlib import Path

from controllerd.leadership.entry import Diverged, Unusable
from daemonkit import tls
from daemonkit.errors import ConfigError

_MARK = "{}.diverged"


def note(state: Path, error: BaseException) -> None:
    """Marks the copy in the file `state` if it is what ended its holder: the error, or one in its group."""
    if wrong := _of_copy(error):
        tls.write_private(_mark(state), f"{wrong.message}\n".encode())


def check(state: Path) -> None:
    """Errors: ConfigError when the copy is marked."""
    mark = _mark(state)
    if mark.exists():
        why = mark.read_text().strip()
        remedy = "find out why, then `skyrack-controllerd restore --from-leader` takes a new one from the leader"
        raise ConfigError(f"the copy of the state does not fit the log ({why}; {mark}): {remedy}")


def clear(state: Path) -> None:
    """When the copy is not there any more."""
    _mark(state).unlink(missing_ok=True)


def _of_copy(error: BaseException) -> Diverged | None:
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_of_copy, error.exceptions)), None)
    return error if isinstance(error, Diverged) and not isinstance(error, Unusable) else None


def _mark(state: Path) -> Path:
    return state.with_name(_MARK.format(state.name))
