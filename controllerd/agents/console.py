"""Serial consoles, read from the nodes that keep their logs."""

from __future__ import annotations

from controllerd.agents.session import Sessions
from skyrack.v1 import agent_pb2


class ConsoleLogs:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def read(self, node_id: str, server_id: str, bytes_max: int) -> bytes:
        """The end of the log. Errors: Unavailable (the node is away, or has none)."""
        question = agent_pb2.ReadConsoleLog(server_id=server_id, bytes_max=bytes_max)
        return await self._sessions.ask(node_id, "computed", agent_pb2.Query(read_console_log=question))
