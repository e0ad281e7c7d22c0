"""The two gRPC servers of a controller, always up, whether it leads or not.

The public API (TLS; callers show a token) and the address for agents and other controllers (mutual TLS). While this controller
leads, the services of its term answer at both: the public ones on the second address too, for controllers that forward to it.
Else public calls are forwarded to the leader, and agents are told where it is. Reflection and health name every service all
the time; the health of `LEADER` is SERVING only while this controller leads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from controllerd.api.rpc.switch import Handler, Services, Switch
from controllerd.leadership.leaders import Leaders
from controllerd.peers.forward import Forwarder, ForwardSettings
from controllerd.peers.link import LEADER, Link
from controllerd.peers.redirect import Redirect
from controllerd.peers.service import admit
from daemonkit import rpc
from daemonkit.runtime import Runtime
from daemonkit.tls import TlsFiles

INNER = ("skyrack.v1.AgentService", "skyrack.v1.PeerService")


@dataclass(frozen=True)
class FrontSettings:
    """ "host:port" each; port 0 = any free one."""

    api_listen: str
    agents_listen: str
    forward: ForwardSettings = field(default_factory=ForwardSettings)


class Front:
    def __init__(
        self, leaders: Leaders, settings: FrontSettings, public: Collection[str], tls: TlsFiles, runtime: Runtime
    ) -> None:
        """`public`: full names of the public services."""
        self._settings, self._tls = settings, tls
        self._names = {"api": list(public), "agents": [*INNER, *public]}
        self._link = Link(leaders, tls)
        self._public = Switch(public, Forwarder(self._link, settings.forward))
        self._inner = Switch(self._names["agents"], Redirect(leaders, self._link, self._in_term), admit)
        self._leads = False
        self._api, self._agents = rpc.Server(runtime.new_id), rpc.Server(runtime.new_id)
        self.api_port = self.agents_port = 0

    def _in_term(self, method: str) -> Handler | None:
        return self._inner.in_term(method)

    async def start(self) -> None:
        """A controller that need not wait to lead may `lead` first.

        Errors: ConfigError when an address is taken, or certificate files are missing.
        """
        self._api.grpc.add_generic_rpc_handlers((self._public,))
        self._agents.grpc.add_generic_rpc_handlers((self._inner,))
        api, agents = (self._tls.server(clients_must_show_certificate=must) for must in (False, True))
        self.api_port = self._api.bind(self._settings.api_listen, api)
        self.agents_port = self._agents.bind(self._settings.agents_listen, agents)
        for server, names in ((self._agents, self._names["agents"]), (self._api, self._names["api"])):
            await server.start(names)
        await self._tell(self._leads)

    async def run(self) -> None:
        """Until cancelled: looks after the way to the leader."""
        await self._link.run()

    @asynccontextmanager
    async def lead(self, public: Services, inner: Services) -> AsyncIterator[None]:
        """Inside, these answer: `public` at both addresses, `inner` at the one for agents and controllers."""
        async with self._inner.establish({**inner, **public}), self._public.establish(public):
            await self._tell(True)
            self._link.at_home(True)
            try:
                yield
            finally:
                self._link.at_home(False)
                await self._tell(False)

    async def _tell(self, leads: bool) -> None:
        self._leads = leads
        for server in (self._api, self._agents):
            await server.tell(LEADER, leads)

    async def leave(self, limit_s: float) -> None:
        """Stops, as soon as calls can be passed on to another controller, which is waited for so long at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._link.serving() is None:
                    await self._link.changed()
        await self.stop()

    async def stop(self, grace_s: float = 1.0) -> None:
        for server in (self._api, self._agents):
            await server.stop(grace_s)
