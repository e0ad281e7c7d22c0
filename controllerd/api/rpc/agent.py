"""AgentService: lets agents in by their certificates and hands the stream to the sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator

from controllerd.agents.session import Sessions
from controllerd.api.rpc.gate import Context
from daemonkit.tls import peer
from daemonkit.transport import GrpcControllerStream
from skyrack.v1 import agent_pb2 as pb
from skyrack.v1 import agent_pb2_grpc


class AgentService(agent_pb2_grpc.AgentServiceServicer):
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def Session(self, request_iterator: AsyncIterator[pb.AgentMessage], context: Context) -> None:  # type: ignore[override]
        """Reads and writes through the context: what is sent down does not wait for what comes up."""
        await self._sessions.serve(GrpcControllerStream(context), peer(context))
