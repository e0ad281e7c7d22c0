"""What a controller that does not lead says on its address for agents and controllers: who leads.

An agent that comes while nobody leads, or the leader does not answer, is held until somebody serves, for `HOLD_S`. If it is
this controller that leads then, the agent's session begins where it is. Else the agent is sent to the leader: so all agents
know the new one at once, however long their own pauses have grown. For the new leader's sake they are let in, or go, one after
the other. Others, which know how to wait by themselves, are answered at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

import grpc

from controllerd.api.rpc.gate import Context
from controllerd.leadership.leaders import Leaders
from controllerd.peers.link import Link
from daemonkit.errors import NoLeader, NotLeader
from skyrack.v1 import agent_pb2

AGENT_SESSION = "/skyrack.v1.AgentService/Session"
HOLD_S = 8.0  # less than an agent waits for its welcome
HELD_MAX = 20_000  # agents
TURN_S, TURNS_MAX_S = 0.0015, 4.0  # one that was held is let in, or goes, so long after another; all of them within that time

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic for the type checker only


class Redirect(grpc.GenericRpcHandler):
    def __init__(self, leaders: Leaders, link: Link, own: Callable[[str], Handler | None]) -> None:
        """`own`: what answers a method here while this controller leads."""
        self._leaders, self._link, self._own = leaders, link, own
        self._held: dict[asyncio.Future[None], None] = {}  # in the order in which they came
        self._letting_go: asyncio.Task[None] | None = None

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        if handler_call_details.method != AGENT_SESSION:
            return grpc.stream_stream_rpc_method_handler(self._send)
        take, give = agent_pb2.AgentMessage.FromString, agent_pb2.ControllerMessage.SerializeToString
        return grpc.stream_stream_rpc_method_handler(self._hold_agent, take, give)

    async def _send(self, _requests: Any, _context: Context) -> None:
        leader = self._leaders.leader
        raise NotLeader(leader.agents if leader else "", 0)

    async def _hold_agent(self, requests: Any, context: Context) -> None:
        if self._link.serving() is None:
            await self._hold()
            if (here := self._own(AGENT_SESSION)) is not None:
                session: Any = here.stream_stream
                await session(requests, context)
                return
        await self._send(requests, context)

    async def _hold(self) -> None:
        """Until it is this agent's turn. Errors: NoLeader."""
        if len(self._held) >= HELD_MAX:
            raise NoLeader(HOLD_S)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held[turn] = None
        if self._letting_go is None:
            self._letting_go = asyncio.create_task(self._let_go())
        try:
            async with asyncio.timeout(HOLD_S):
                await turn
        except TimeoutError:
            raise NoLeader(1.0) from None
        finally:
            self._held.pop(turn, None)

    async def _let_go(self) -> None:
        """One after the other, while somebody serves, until nobody is held. Woken together they would keep all else waiting."""
        try:
            turn_s = TURN_S
            while self._held:
                if self._link.serving() is None and self._own(AGENT_SESSION) is None:
                    await self._link.changed()
                    turn_s = min(TURN_S, TURNS_MAX_S / max(1, len(self._held)))
                    continue
                turn = next(iter(self._held))
                del self._held[turn]
                if not turn.done():
                    turn.set_result(None)
                await asyncio.sleep(turn_s)
        finally:
            self._letting_go = None
