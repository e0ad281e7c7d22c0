"""The way to the leader: one connection over mutual TLS to its address for agents and controllers, looked after all the time.

It is offered only while it stands and the other end says that it leads (its health, asked by one prober for all who wait). So
a leader that died, or that was elected but does not serve yet, is seen once and not by every call.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from controllerd.leadership.leaders import Leaders
from controllerd.leadership.member import Member
from daemonkit import rpc
from daemonkit.errors import ConfigError
from daemonkit.tls import TlsFiles

LEADER = "skyrack.v1.Leader"  # a name whose health is SERVING only where and while a controller leads
PROBE_S = 2.0
PAUSE_FIRST_S = 0.05
PAUSE_MAX_S = 0.5
LOOK_S = 1.0  # the state is looked at so often even if nothing is heard
HOME_S = 60.0  # the same, while this controller leads: it is asked nothing
LEFT_S = 1.0  # what calls with a leader have left when another one is there


class Link:
    def __init__(self, leaders: Leaders, tls: TlsFiles) -> None:
        self._leaders, self._tls = leaders, tls
        self._address = ""
        self._channel: grpc.aio.Channel | None = None
        self._serving = False
        self._home = False
        self._looked = False  # for the leader, since there was news
        self._doubted = asyncio.Event()
        self._news = asyncio.Event()

    def serving(self) -> grpc.aio.Channel | None:
        """To a leader that serves; None when there is none now."""
        if self._channel is None or not self._serving:
            return None
        if self._channel.get_state() is not grpc.ChannelConnectivity.READY:
            self.doubt()
            return None
        return self._channel

    def at_home(self, leads: bool) -> None:
        """This controller itself leads now, or no longer."""
        self._home = leads
        self._doubted.set()

    @property
    def only_at_home(self) -> bool:
        """This controller leads, and cannot be reached at its own address: who waits here shall call again."""
        return self._home and self._looked and not self._serving

    def doubt(self) -> None:
        """A call came back with NOT_LEADER, or the connection is gone: look again."""
        self._serving = False
        self._doubted.set()

    async def changed(self) -> None:
        """Returns when there may be another answer from `serving`."""
        await self._news.wait()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as leaving:
            try:
                pause_s = PAUSE_FIRST_S
                while True:
                    leader, home = self._leaders.leader, self._home
                    self._doubted.clear()
                    self._serving = await self._look_unless_changed(leader, leaving)
                    self._looked = home and self._home
                    if self._serving or self._looked:
                        self._tell()
                    elif leader != self._leaders.leader:
                        pause_s = PAUSE_FIRST_S
                        continue
                    await self._wait(self._rest_s(leader, pause_s))
                    pause_s = PAUSE_FIRST_S if self._serving else min(pause_s * 2, PAUSE_MAX_S)
            finally:
                await self._close(None)

    def _rest_s(self, leader: Member | None, pause_s: float) -> float:
        if self._home:
            return HOME_S
        return LOOK_S if self._serving or leader is None else pause_s

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _wait(self, limit_s: float) -> None:
        """For the next look: there is another leader, somebody has doubts, or it is time."""
        waiting = [asyncio.ensure_future(event) for event in (self._leaders.changed(), self._doubted.wait())]
        try:
            await asyncio.wait(waiting, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in waiting:
                future.cancel()

    async def _look_unless_changed(self, leader: Member | None, leaving: asyncio.TaskGroup) -> bool:
        """A look at a machine that does not answer takes long; news of another leader end it."""
        looking = asyncio.ensure_future(self._look(leader, leaving))
        changed = asyncio.ensure_future(self._leaders.changed())
        try:
            await asyncio.wait([looking, changed], return_when=asyncio.FIRST_COMPLETED)
            return looking.done() and looking.result()
        finally:
            looking.cancel()
            changed.cancel()

    async def _look(self, leader: Member | None, leaving: asyncio.TaskGroup) -> bool:
        if leader is None:  # calls with the former one may still end well
            return False
        if leader.agents != self._address and self._channel is not None:
            leaving.create_task(self._channel.close(LEFT_S))
            self._channel = None
        self._address = leader.agents
        try:
            self._channel = self._channel or rpc.channel(leader.agents, self._tls.client())
        except ConfigError:  # of files that are just being replaced
            return False
        if await _connected(self._channel):
            return await _leads(self._channel)
        await self._close(None)  # gRPC's own pauses grow long
        return False

    async def _close(self, left_s: float | None) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(left_s)


async def _connected(channel: grpc.aio.Channel) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(PROBE_S):
            while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
                if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
                    return False
                await channel.wait_for_state_change(state)
            return True
    return False


async def _leads(channel: grpc.aio.Channel) -> bool:
    try:
        request = health_pb2.HealthCheckRequest(service=LEADER)
        answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=PROBE_S)
    except grpc.RpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
