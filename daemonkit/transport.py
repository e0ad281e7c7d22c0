"""The agent stream as a port: gRPC in production, memory (`daemonkit.memory`) in a simulation.

Concurrent writes kill a gRPC call, so `send` lets one writer in at a time and waits for the peer: a peer that does not read
slows its own stream down, not our memory. A cancelled `send` or `receive` ends the stream.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import grpc

from daemonkit.errors import SkyrackError, Unavailable
from daemonkit.rpc import channel, from_rpc_error
from daemonkit.tls import TlsFiles
from skyrack.v1 import agent_pb2, agent_pb2_grpc


class AgentStream(Protocol):
    """The agent's end of a session."""

    async def send(self, message: agent_pb2.AgentMessage) -> None:
        """Errors: as `receive`."""

    async def receive(self) -> agent_pb2.ControllerMessage:
        """Errors: NotLeader, Forbidden... as the controller raised them; Unavailable at the end of the stream."""

    async def close(self) -> None: ...


class ControllerStream(Protocol):
    """The controller's end of a session."""

    async def send(self, message: agent_pb2.ControllerMessage) -> None:
        """Errors: Unavailable at the end of the stream."""

    async def receive(self) -> agent_pb2.AgentMessage:
        """Errors: Unavailable at the end of the stream."""


class Dialer(Protocol):
    async def dial(self, address: str) -> AgentStream: ...


class GrpcDialer:
    """Dials over mTLS; a fresh channel each time, so that one broken connection does not delay the next."""

    def __init__(self, tls: TlsFiles) -> None:
        self._tls = tls

    async def dial(self, address: str) -> AgentStream:
        """Errors: ConfigError without certificate files. Whether anybody is there is seen at the first `send`."""
        return GrpcAgentStream(channel(address, self._tls.client()))


class GrpcAgentStream:
    def __init__(self, connection: grpc.aio.Channel) -> None:
        self._connection = connection
        self._call = agent_pb2_grpc.AgentServiceStub(connection).Session()
        self._writing = asyncio.Lock()

    async def send(self, message: agent_pb2.AgentMessage) -> None:
        async with self._writing:
            try:
                await self._call.write(message)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from None
            except asyncio.InvalidStateError:
                raise await self._why_done() from None

    async def receive(self) -> agent_pb2.ControllerMessage:
        try:
            message = await self._call.read()
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        if not isinstance(message, agent_pb2.ControllerMessage):
            raise Unavailable("the controller ended the session")
        return message

    async def _why_done(self) -> SkyrackError:
        """grpc tells a late writer only that the call is over; the status tells why."""
        code = await self._call.code()
        if code is grpc.StatusCode.OK:
            return Unavailable("the controller ended the session")
        details, trailing = await self._call.details(), await self._call.trailing_metadata()
        return from_rpc_error(grpc.aio.AioRpcError(code, None, trailing, details))

    async def close(self) -> None:
        self._call.cancel()
        await self._connection.close(None)


class GrpcControllerStream:
    """Wraps the servicer context of `AgentService.Session`, which must be a coroutine function that yields nothing."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._context = context
        self._writing = asyncio.Lock()

    async def send(self, message: agent_pb2.ControllerMessage) -> None:
        async with self._writing:
            try:
                await self._context.write(message)
            except Exception as error:  # grpc raises several private types when the peer is gone
                raise Unavailable(f"the agent is gone: {type(error).__name__}") from None

    async def receive(self) -> agent_pb2.AgentMessage:
        try:
            message = await self._context.read()
        except Exception as error:  # as above
            raise Unavailable(f"the agent is gone: {type(error).__name__}") from None
        if not isinstance(message, agent_pb2.AgentMessage):
            raise Unavailable("the agent ended the session")
        return message
