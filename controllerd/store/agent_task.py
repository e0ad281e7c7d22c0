"""One-shot actions for agents. The id is the durable task's, so that an action happens at most once a task."""

from __future__ import annotations

from dataclasses import dataclass

from controllerd.store.database import Tx


@dataclass(frozen=True)
class Outcome:
    ended: bool
    ok: bool
    reason: str
    fault: str


def order(tx: Tx, task_id: str, node_id: str, agent_kind: str, body: bytes, deadline: float) -> None:
    """`body`: an encoded Task message. Ordering twice is ordering once."""
    columns = "id, node_id, agent_kind, body, created_at, deadline, ended, ok, reason, fault"
    tx.run(f"INSERT OR IGNORE INTO agent_task ({columns}) VALUES (?, ?, ?, ?, ?, ?, 0, 0, '', '')",
           task_id, node_id, agent_kind, body, tx.now, deadline)  # fmt: skip
    tx.touch(node_id)


def outstanding(tx: Tx, node_id: str, agent_kind: str) -> list[tuple[str, bytes, float]]:
    """(id, encoded Task, deadline), whose task may have been given more time since."""
    sql = (
        "SELECT a.id, a.body, max(a.deadline, coalesce(t.deadline, 0)) AS deadline"
        " FROM agent_task a LEFT JOIN task t ON t.id = a.id WHERE a.node_id = ? AND a.agent_kind = ? AND a.ended = 0"
    )
    return [(row["id"], row["body"], row["deadline"]) for row in tx.each(sql, node_id, agent_kind)]


def end(tx: Tx, node_id: str, task_id: str, ok: bool, reason: str, fault: str) -> None:
    """Only the node that was asked may answer; a second answer changes nothing."""
    tx.run("UPDATE agent_task SET ended = 1, ok = ?, reason = ?, fault = ? WHERE id = ? AND node_id = ? AND ended = 0",
           int(ok), reason, fault, task_id, node_id)  # fmt: skip
    tx.touch(f"task:{task_id}")


def outcome(tx: Tx, task_id: str) -> Outcome:
    row = tx.one("SELECT ended, ok, reason, fault FROM agent_task WHERE id = ?", task_id)
    if row is None:
        return Outcome(False, False, "", "")
    return Outcome(bool(row["ended"]), bool(row["ok"]), row["reason"], row["fault"])


def forget(tx: Tx, task_id: str) -> None:
    tx.run("DELETE FROM agent_task WHERE id = ?", task_id)
