"""Named moments at which a test may have the process die, as if the power went: nothing is flushed, closed or undone.

`SKYRACK_FAILPOINT=name` or `name:3` in the environment ends the process the first or third time it comes by that name;
`SKYRACK_FAILPOINT_LOG=file` appends every name passed, a line each, so that a test can find all of them and crash at each.
Without these variables a failpoint costs one comparison.
"""

from __future__ import annotations

import os

EXIT_CODE = 137  # what a shell tells of a process that was killed by SIGKILL

_armed, _, _nth = os.environ.get("SKYRACK_FAILPOINT", "").partition(":")
_passes_left = int(_nth or "1")
_log_path = os.environ.get("SKYRACK_FAILPOINT_LOG", "")
_watched = bool(_armed or _log_path)


def failpoint(name: str) -> None:
    """Ends the process at once if `name` is armed."""
    if _watched:
        _pass(name)


hit = failpoint  # reads better after `from daemonkit import failpoint`


def _pass(name: str) -> None:
    global _passes_left
    if _log_path:
        log = os.open(_log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.write(log, f"{name}\n".encode())  # one write, so that lines of several threads do not mix
        os.close(log)
    if name == _armed:
        _passes_left -= 1
        if _passes_left == 0:
            os._exit(EXIT_CODE)
