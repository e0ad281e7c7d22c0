"""What the box asks of the cloud it started: is it there, let these nodes in, are they up, is there a public network."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from daemonkit.errors import DeadlineExceeded
from daemonkit.rpc import from_rpc_error
from skyrack.sandbox.layout import CLIENT_ADDRESS, PUBLIC_CIDR, PUBLIC_POOL
from skyrack.v1 import (
    identity_pb2,
    identity_pb2_grpc,
    network_pb2,
    network_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
)

_CALL_S = 10.0
_POLL_S = 0.1
PUBLIC = "public"


def read_env(text: str) -> dict[str, str]:
    """admin.env: shell lines NAME=value, perhaps exported and quoted."""
    words = [word for word in shlex.split(text, comments=True) if "=" in word]
    return dict(word.split("=", 1) for word in words)


class Cloud:
    """One login of the admin; use as a context. Errors of calls: those of daemonkit.errors."""

    def __init__(self, endpoint: str, ca: Path, env: dict[str, str]) -> None:
        credentials = grpc.ssl_channel_credentials(ca.read_bytes())
        self._channel = grpc.aio.secure_channel(endpoint, credentials, options=[("grpc.enable_retries", 0)])
        self._env = env
        self._token = ""

    async def __aenter__(self) -> Cloud:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def until_serving(self, limit_s: float) -> None:
        """Errors: DeadlineExceeded with the last answer."""
        last = "no answer"
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    try:
                        stub = health_pb2_grpc.HealthStub(self._channel)
                        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2.0)
                        if answer.status == health_pb2.HealthCheckResponse.SERVING:
                            return
                        last = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
                    except grpc.aio.AioRpcError as error:
                        last = error.details() or str(error.code())
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise DeadlineExceeded(f"the controller does not serve after {limit_s:g} s: {last}") from None

    async def join_token(self, node: str, roles: Iterable[str]) -> str:
        """A word that lets `node` join once."""
        request = node_pb2.CreateJoinTokenRequest(name=node, roles=list(roles))
        answer = await self._call(node_pb2_grpc.NodeServiceStub(self._channel).CreateJoinToken, request)
        return str(answer.token)

    async def node_states(self) -> dict[str, str]:
        """Node name to "JOINED", "UP" or "DOWN"."""
        answer = await self._call(
            node_pb2_grpc.NodeServiceStub(self._channel).ListNodes, node_pb2.ListNodesRequest(page_size=1000)
        )
        return {node.name: node_pb2.NodeState.Name(node.state).removeprefix("NODE_STATE_") for node in answer.nodes}

    async def until_up(self, names: Iterable[str], limit_s: float, tell: Callable[[str], None]) -> None:
        """Tells of each node as it comes up. Errors: DeadlineExceeded naming those that did not."""
        missing, states = set(names), {}
        try:
            async with asyncio.timeout(limit_s):
                while missing:
                    states = await self.node_states()
                    risen = sorted(name for name in missing if states.get(name) == "UP")
                    for name in risen:
                        tell(f"{name} is up")
                    missing -= set(risen)
                    await asyncio.sleep(_POLL_S if missing else 0)
        except TimeoutError:
            seen = ", ".join(f"{name} is {states.get(name, 'unknown')}" for name in sorted(missing))
            raise DeadlineExceeded(f"not up after {limit_s:g} s: {seen}") from None

    async def ensure_public_network(self) -> bool:
        """The provider network `public`, its addresses and its gateway: the client. True when it was made now."""
        stub = network_pb2_grpc.NetworkServiceStub(self._channel)
        listed = await self._call(stub.ListNetworks, network_pb2.ListNetworksRequest(name=PUBLIC, external=True))
        network = listed.networks[0] if listed.networks else None
        if network is not None and network.subnet_ids:
            return False
        if network is None:
            network = await self._call(stub.CreateNetwork, network_pb2.CreateNetworkRequest(name=PUBLIC, external=True))
        subnet = network_pb2.CreateSubnetRequest(
            network_id=network.id,
            name=PUBLIC,
            cidr=PUBLIC_CIDR,
            gateway_ip=CLIENT_ADDRESS,
            dhcp=False,
            pools=[network_pb2.AddressPool(first=PUBLIC_POOL[0], last=PUBLIC_POOL[1])],
        )
        await self._call(stub.CreateSubnet, subnet)
        return True

    async def _call(self, method: Callable[..., Awaitable[Any]], request: Any) -> Any:
        try:
            if not self._token:
                asked = identity_pb2.CreateTokenRequest(
                    user=self._env["SKYRACK_USER"],
                    password=self._env["SKYRACK_PASSWORD"],
                    project=self._env.get("SKYRACK_PROJECT", ""),
                )
                stub = identity_pb2_grpc.IdentityServiceStub(self._channel)
                self._token = (await stub.CreateToken(asked, timeout=_CALL_S)).token
            metadata = (("authorization", f"Bearer {self._token}"),)
            return await method(request, metadata=metadata, timeout=_CALL_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
