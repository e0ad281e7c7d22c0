"""The whole public API on 127.0.0.1, in this process, and tokens of every kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from controllerd.agents.blob import GrpcBlobStore
from controllerd.api.rpc.services import public_services
from controllerd.config import ControllerConfig
from controllerd.controller import Controller
from controllerd.domain.policy import Caller
from controllerd.domain.project import Project
from controllerd.domain.user import Token, User, secret_hash
from controllerd.leadership.commit_log import LocalLog
from controllerd.store import identity
from controllerd.store.database import Tx
from controllerd.store.identity import PROJECTS, TOKENS, USERS
from controllerd.terms import Alone
from daemonkit import rpc
from daemonkit.runtime import Runtime
from daemonkit.tls import TlsFiles
from skyrack.v1 import identity_pb2 as pb
from skyrack.v1 import identity_pb2_grpc

PASSWORD = "correct horse"


@dataclass
class Api:
    controller: Controller
    channel: grpc.aio.Channel
    services: list[str]
    tokens: dict[str, str]  # "admin", "alpha/member", "alpha/reader", "beta/member", "expired", "revoked", ...
    path: Path

    @property
    def stub(self) -> identity_pb2_grpc.IdentityServiceStub:
        return identity_pb2_grpc.IdentityServiceStub(self.channel)

    async def login(self, user: str, password: str = PASSWORD, **fields: object) -> pb.Token:
        return await self.stub.CreateToken(pb.CreateTokenRequest(user=user, password=password, **fields))  # type: ignore[arg-type]


def bearer(token: str | None) -> tuple[tuple[str, str], ...]:
    return () if token is None else (("authorization", f"Bearer {token}"),)


@pytest.fixture
async def api(tmp_path: Path, runtime: Runtime) -> AsyncIterator[Api]:
    config = ControllerConfig(data_dir=tmp_path)
    controller = Controller(
        config, tmp_path / "state.db", LocalLog(), GrpcBlobStore(TlsFiles(tmp_path)), runtime, Alone(config, runtime)
    )
    controller.authority.create()
    await controller.open()
    running = asyncio.create_task(controller.run())
    server = grpc.aio.server(interceptors=[rpc.Guard(runtime.new_id)], options=rpc.SERVER_OPTIONS)
    services = public_services(controller)
    for add, servicer in services.values():
        add(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        hashed = await controller.passwords.hash(PASSWORD)
        tokens = await controller.database.write(lambda tx: people(tx, hashed))
        yield Api(controller, channel, list(services), tokens, tmp_path)
    await server.stop(None)
    running.cancel()
    await asyncio.wait([running])
    await controller.close()


def people(tx: Tx, hashed: str) -> dict[str, str]:
    """Users "<project>-<role>" with one role each; gives their tokens, and some that are no good."""
    tokens: dict[str, str] = {}
    for project in ("operators", "alpha", "beta"):
        PROJECTS.insert(tx, Project(f"id-{project}", project, "", True, tx.now))
        for role in ("admin",) if project == "operators" else ("member", "reader"):
            user = USERS.insert(tx, User(f"id-{project}-{role}", f"{project}-{role}", "", hashed, True, tx.now))
            identity.grant(tx, user.id, f"id-{project}", role)
            tokens["admin" if role == "admin" else f"{project}/{role}"] = token_of(tx, user.id, f"id-{project}", tx.now + 3600)
    tokens["expired"] = token_of(tx, "id-operators-admin", "id-operators", tx.now - 1)
    tokens["revoked"] = token_of(tx, "id-operators-admin", "id-operators", tx.now + 3600)
    TOKENS.delete(tx, secret_hash(tokens["revoked"]))
    tx.touch("identity")
    return tokens


def token_of(tx: Tx, user_id: str, project_id: str, expires_at: float) -> str:
    secret = tx.runtime.new_secret()
    TOKENS.insert(tx, Token(secret_hash(secret), user_id, project_id, tx.now, expires_at))
    return secret


def caller_of(project: str, role: str) -> Caller:
    return Caller(f"id-{project}-{role}", f"{project}-{role}", f"id-{project}", project, frozenset({role}))
