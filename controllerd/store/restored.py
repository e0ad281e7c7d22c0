"""Makes a state of its own of a backup: a new history, under an epoch that no agent has seen, in which nothing is believed
to be as it was.

What was under way when the backup was made is ended where it stood, deletions apart: those go on. Every agent is held (see
`controllerd.store.recovery`) until what it reports was compared.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import apsw

from controllerd.store import migration, position
from daemonkit.errors import ConfigError

REASON = "RESTORED"
EPOCH_SHIFT = 16  # seconds since 1970 so shifted are above any epoch that was counted up, and below a later restore's
WAITING_S = 10 * 365 * 86400.0  # deadline of what waits for the nodes

_UNFINISHED = "state IN ('RUNNING', 'UNWINDING')"
_WAS = "was under way when the backup was made"

_ENDED = (
    f"UPDATE task SET state = 'FAILED', fault_reason = :reason, fault_message = '{_WAS}', ended_at = :now"
    f" WHERE {_UNFINISHED} AND kind NOT IN ('server_delete', 'volume_delete')",
    f"UPDATE task SET deadline = :now + {WAITING_S} WHERE {_UNFINISHED}",
    "UPDATE server SET state = 'ERROR', fault_reason = :reason, fault_details = '[]',"
    " fault_message = 'was being created when the backup was made',"
    " power = CASE WHEN node_id = '' THEN '' ELSE 'RUNNING' END WHERE state = 'BUILD'",
    "UPDATE server SET state = CASE WHEN state = 'STOPPING' THEN 'STOPPED' ELSE 'ACTIVE' END"
    " WHERE state IN ('STARTING', 'STOPPING', 'REBOOTING')",
    f"UPDATE volume SET state = 'ERROR', fault_reason = :reason, fault_message = '{_WAS}' WHERE state = 'CREATING'",
)

# Of what guests have attached the last word stands: a node that forgot what it was told can't name it.
_FORGOTTEN = (
    "UPDATE server SET observed_state = '', observed_fault = '', observed_at = :now",
    "UPDATE volume SET observed_state = '', observed_fault = '', observed_at = :now",
    "UPDATE attachment SET observed_export = '', observed_fault = ''",
    "UPDATE port SET observed_state = '', observed_fault = ''",
    "UPDATE router SET observed_state = '', observed_fault = '', observed_floating_ips = '[]'",
    "UPDATE agent SET connected = 0, lost = 0, last_seen_at = :now",
    "DELETE FROM agent_task",
    "DELETE FROM foreign_object",
    "DELETE FROM finding",
    "DELETE FROM hold",
    "INSERT INTO hold (node_id, kind, since, observed_at, compared_at) SELECT node_id, kind, :now, 0, 0 FROM agent",
    "INSERT OR REPLACE INTO restore (one, backup_at, restored_at, approved_at, released_at) VALUES (1, :taken_at, :now, 0, 0)",
)


def make_own(path: Path, cluster_id: str, taken_at: float, now: float) -> int:
    """The copy of a backup at `path`, in place; gives the epoch before its next. Times in seconds since 1970.

    Errors: ConfigError.
    """
    connection = apsw.Connection(str(path))
    try:
        connection.execute("PRAGMA journal_mode=DELETE; PRAGMA foreign_keys=OFF")
        with connection:
            connection.execute("DROP TABLE _backup; PRAGMA application_id=0")
            at = position.read(connection)
            readable_from = at.readable_from
            for step in migration.migrations():
                if step.number > at.schema:
                    migration.apply(connection, step)
                    readable_from = step.readable_from
            for sql in (*_ENDED, *_FORGOTTEN):
                connection.execute(sql, {"reason": REASON, "now": now, "taken_at": taken_at})
            epoch = max(at.epoch, (int(now) << EPOCH_SHIFT) - 1)
            position.write(connection, replace(at, epoch=epoch, cluster_id=cluster_id, batch=b"", readable_from=readable_from))
        return epoch
    except apsw.Error as error:
        raise ConfigError(f"{path}: {error}") from None
    finally:
        connection.close()


def cluster_id_of(path: Path) -> str:
    """Of the cloud whose state the file holds; "" where there is none to be read."""
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    except apsw.Error:
        return ""
    try:
        return position.read(connection).cluster_id
    except apsw.Error:
        return ""
    finally:
        connection.close()
