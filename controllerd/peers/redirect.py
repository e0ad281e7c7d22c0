"""What a controller that does not lead says on its address for agents and controllers: who leads.

An agent that comes while nobody leads, or the leader does not answer, is held until somebody serves, for `HOLD_S`, and is then
sent there: so all agents know the new leader at once, however long their own pauses have grown. They are let go spread over
some time, for the new leader's sake. Others, which know how to wait by themselves, are answered at once.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

import grpc

from controllerd.api.rpc.gate import Context
from controllerd.leadership.leaders import Leaders
from controllerd.peers.link import Link
from daemonkit.errors import NoLeader, NotLeader
from daemonkit.runtime import Runtime

AGENT_SESSION = "/skyrack.v1.AgentService/Session"
HOLD_S = 8.0  # less than an agent waits for its welcome
HELD_MAX = 20_000  # agents
SPREAD_S = 0.001  # an agent that was held

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic for the type checker only


class Redirect(grpc.GenericRpcHandler):
    def __init__(self, leaders: Leaders, link: Link, runtime: Runtime) -> None:
        self._leaders, self._link, self._runtime = leaders, link, runtime
        self._held = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        act = self._send_agent if handler_call_details.method == AGENT_SESSION else self._send
        return grpc.stream_stream_rpc_method_handler(act)

    async def _send(self, _requests: Any, _context: Context) -> None:
        leader = self._leaders.leader
        raise NotLeader(leader.agents if leader else "", 0)

    async def _send_agent(self, requests: Any, context: Context) -> None:
        if self._link.serving() is None:
            await self._hold()
        await self._send(requests, context)

    async def _hold(self) -> None:
        """Errors: NoLeader."""
        if self._held >= HELD_MAX:
            raise NoLeader(HOLD_S)
        self._held += 1
        spread_s = self._held * SPREAD_S
        try:
            async with asyncio.timeout(HOLD_S):
                while self._link.serving() is None and not self._link.only_at_home:
                    await self._link.changed()
        except TimeoutError:
            raise NoLeader(1.0) from None
        finally:
            self._held -= 1
        await asyncio.sleep(self._runtime.jitter_s(spread_s))
