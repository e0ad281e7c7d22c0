"""Where everything lies in the consensus store."""

from __future__ import annotations

ROOT = "/skyrack/"
CLUSTER = ROOT + "cluster"  # id of the cloud whose log this is
LEADER = ROOT + "leader"  # the leading controller's Member, on its lease
SUCCESSOR = ROOT + "successor"  # name of the controller that shall lead next, on a short lease
MEMBERS = ROOT + "members/"  # + name: its Member, on a lease
LOG = ROOT + "log/"  # + seq


def slot(seq: int) -> str:
    return f"{LOG}{seq:020d}"


def seq_of(slot_key: str) -> int:
    return int(slot_key.removeprefix(LOG))


def after(prefix: str) -> str:
    """The end of the range of all keys that begin with `prefix`."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
