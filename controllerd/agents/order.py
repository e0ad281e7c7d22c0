"""One-shot actions as agents are told them."""

from __future__ import annotations

from skyrack.v1 import agent_pb2


def reboot(task_id: str, deadline: float, server_id: str, hard: bool) -> bytes:
    """An encoded Task: `hard` resets, else the guest is asked by its power button. `deadline`: in the store's time."""
    task = agent_pb2.Task(task_id=task_id, reboot_server=agent_pb2.RebootServer(server_id=server_id, hard=hard))
    task.deadline.FromMicroseconds(round(deadline * 1e6))
    return task.SerializeToString()


def remaining(body: bytes, left_s: float) -> agent_pb2.Task:
    """What is sent of an encoded Task, with `left_s` to its deadline: an agent's clock need not agree with ours."""
    task = agent_pb2.Task.FromString(body)
    task.remaining_ms = max(0, round(left_s * 1000))
    return task
