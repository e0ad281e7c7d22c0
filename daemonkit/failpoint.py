"""Named moments at which a test may have the process die, as if the power went: nothing is flushed, closed or undone.

`SKYRACK_FAILPOINT=name` in the environment arms one name for the life of the process; without it `hit` costs one comparison.
"""

from __future__ import annotations

import os

EXIT_CODE = 86

_armed = os.environ.get("SKYRACK_FAILPOINT", "")


def hit(name: str) -> None:
    """Ends the process at once if `name` is armed."""
    if _armed and _armed == name:
        os._exit(EXIT_CODE)
