"""Why a resource went to ERROR, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skyrack.client.fault import Fault


def fault_text(fault: Fault | None) -> str | None:
    """Reason and message, and a line for each detail that says more than the message."""
    if fault is None:
        return None
    more = [f"  {line}" for line in fault.details if line not in fault.message]
    return "\n".join([f"{fault.reason}: {fault.message}", *more])
