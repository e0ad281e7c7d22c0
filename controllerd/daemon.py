"""controllerd as a program: the controller behind its sockets.

    skyrack-controllerd --config FILE
    skyrack-controllerd --print-config
    skyrack-controllerd bootstrap --config FILE --admin-env FILE [--api-name NAME...]
    skyrack-controllerd bundle NAME --address IP [--address IP...] --config FILE [-o FILE]
    skyrack-controllerd bootstrap --bundle FILE --config FILE
    skyrack-controllerd restore FILE [--replace] [--api-name NAME...] --config FILE
    skyrack-controllerd restore --from-leader --config FILE

Two gRPC servers: the public API (TLS; callers show a token) and the agent service (mutual TLS; callers are nodes).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc

from controllerd.agents.blob import GrpcBlobStore
from controllerd.api.rpc.agent import AgentService
from controllerd.api.rpc.flavor import FlavorService
from controllerd.api.rpc.gate import Gate
from controllerd.api.rpc.history import EventService, TaskService
from controllerd.api.rpc.identity import IdentityService
from controllerd.api.rpc.image import ImageService
from controllerd.api.rpc.keypair import KeypairService
from controllerd.api.rpc.network import NetworkService
from controllerd.api.rpc.node import NodeService
from controllerd.api.rpc.quota import QuotaService
from controllerd.api.rpc.router import RouterService
from controllerd.api.rpc.security_group import SecurityGroupService
from controllerd.api.rpc.server import ServerService
from controllerd.api.rpc.volume import VolumeService
from controllerd.bootstrap import bootstrap
from controllerd.bundle import install_bundle, make_bundle
from controllerd.config import ControllerConfig
from controllerd.controller import Controller
from controllerd.leadership.commit_log import LocalLog
from controllerd.leadership.etcd.client import EtcdKv
from controllerd.restore import from_leader, restore
from daemonkit import log, metrics, rpc
from daemonkit.config import describe, load
from daemonkit.errors import ConfigError, SkyrackError
from daemonkit.lifecycle import DataDirectory, Lifecycle, run
from daemonkit.runtime import Runtime, system_runtime
from daemonkit.tls import TlsFiles, write_private
from skyrack.v1 import (
    agent_pb2_grpc,
    event_pb2_grpc,
    flavor_pb2_grpc,
    identity_pb2_grpc,
    image_pb2_grpc,
    keypair_pb2_grpc,
    network_pb2_grpc,
    node_pb2_grpc,
    quota_pb2_grpc,
    router_pb2_grpc,
    security_group_pb2_grpc,
    server_pb2_grpc,
    task_pb2_grpc,
    volume_pb2_grpc,
)

# How generated code puts a servicer into a server.
Add = Callable[[Any, grpc.aio.Server], None]


def public_services(controller: Controller) -> dict[str, tuple[Add, object]]:
    """Full name of each public service -> how it is added, and what serves it."""
    gate = Gate(controller.login)
    services: dict[str, tuple[Add, object]] = {
        "IdentityService": (
            identity_pb2_grpc.add_IdentityServiceServicer_to_server,
            IdentityService(gate, controller.identity, controller.login),
        ),
        "NodeService": (node_pb2_grpc.add_NodeServiceServicer_to_server, NodeService(gate, controller.nodes)),
        "QuotaService": (quota_pb2_grpc.add_QuotaServiceServicer_to_server, QuotaService(gate, controller.quotas)),
        "TaskService": (
            task_pb2_grpc.add_TaskServiceServicer_to_server,
            TaskService(gate, controller.history, controller.operations),
        ),
        "EventService": (event_pb2_grpc.add_EventServiceServicer_to_server, EventService(gate, controller.history)),
        "FlavorService": (flavor_pb2_grpc.add_FlavorServiceServicer_to_server, FlavorService(gate, controller.flavors)),
        "KeypairService": (
            keypair_pb2_grpc.add_KeypairServiceServicer_to_server,
            KeypairService(gate, controller.keypairs),
        ),
        "ImageService": (image_pb2_grpc.add_ImageServiceServicer_to_server, ImageService(gate, controller.images)),
        "ServerService": (
            server_pb2_grpc.add_ServerServiceServicer_to_server,
            ServerService(gate, controller.servers, controller.volumes),
        ),
        "NetworkService": (
            network_pb2_grpc.add_NetworkServiceServicer_to_server,
            NetworkService(gate, controller.networks, controller.subnets, controller.ports),
        ),
        "RouterService": (
            router_pb2_grpc.add_RouterServiceServicer_to_server,
            RouterService(gate, controller.routers, controller.floating_ips),
        ),
        "SecurityGroupService": (
            security_group_pb2_grpc.add_SecurityGroupServiceServicer_to_server,
            SecurityGroupService(gate, controller.security_groups),
        ),
        "VolumeService": (volume_pb2_grpc.add_VolumeServiceServicer_to_server, VolumeService(gate, controller.volumes)),
    }
    return {f"skyrack.v1.{name}": how for name, how in services.items()}


async def serve(config: ControllerConfig, life: Lifecycle, runtime: Runtime) -> None:
    """Until it is told to stop. Errors: ConfigError."""
    tls = TlsFiles(config.tls_dir)
    async with AsyncExitStack() as stack:
        directory = DataDirectory(config.data_dir)
        stack.callback(directory.close)
        controller = Controller(config, config.data_dir / "state.db", LocalLog(), GrpcBlobStore(tls), runtime)
        await controller.open()
        stack.push_async_callback(controller.close)
        metrics.INFO.labels("controllerd", version("skyrack")).set(1)
        stack.callback(metrics.serve(config.metrics_listen).shutdown)
        async with asyncio.TaskGroup() as group:
            work = [group.create_task(controller.run()), group.create_task(metrics.watch_loop_lag())]
            await _listen(stack, config, controller, tls, runtime)
            life.ready(f"epoch {controller.database.epoch}, API on {config.api_listen}")
            await life.stopping.wait()
            for task in work:
                task.cancel()


async def _listen(
    stack: AsyncExitStack, config: ControllerConfig, controller: Controller, tls: TlsFiles, runtime: Runtime
) -> None:
    agents = rpc.Server(runtime.new_id)
    agent_pb2_grpc.add_AgentServiceServicer_to_server(AgentService(controller.sessions), agents.grpc)
    agents.bind(config.agents_listen, tls.server(clients_must_show_certificate=True))
    public = rpc.Server(runtime.new_id)
    services = public_services(controller)
    for add, servicer in services.values():
        add(servicer, public.grpc)
    public.bind(config.api_listen, tls.server(clients_must_show_certificate=False))
    for server, names in ((agents, ["skyrack.v1.AgentService"]), (public, list(services))):
        await server.start(names)
        stack.push_async_callback(server.stop)


def main() -> int:
    arguments = _arguments()
    if arguments.print_config:
        print(describe(ControllerConfig), end="")
        return 0
    try:
        config = load(ControllerConfig, arguments.config)
        log.setup("controllerd", config.log_level)
        if arguments.act != "serve":
            print(_set_up(config, arguments), file=sys.stderr if arguments.act == "bundle" else sys.stdout)
            return 0
    except SkyrackError as error:
        print(f"cannot start: {error.message}", file=sys.stderr)
        return 1
    return run(lambda life: serve(config, life, system_runtime()))


def _set_up(config: ControllerConfig, arguments: argparse.Namespace) -> str:
    """Gives a line for people. Errors: ConfigError."""
    try:
        if arguments.act == "bundle":
            bundle = make_bundle(config, arguments.name, arguments.address, system_runtime())
            return _write_bundle(arguments.output or f"{arguments.name}.bundle", bundle)
        if arguments.act == "restore":
            return asyncio.run(_restore(config, arguments))
        if arguments.bundle:
            given = sys.stdin.buffer.read() if arguments.bundle == "-" else Path(arguments.bundle).read_bytes()
            return install_bundle(config, given)
    except OSError as error:
        raise ConfigError(f"{error.filename or 'bundle'}: {error.strerror}") from None
    return asyncio.run(bootstrap(config, arguments.api_name, arguments.admin_env, system_runtime()))


async def _restore(config: ControllerConfig, arguments: argparse.Namespace) -> str:
    """Errors: ConfigError, Unavailable (etcd does not answer)."""
    if arguments.from_leader:
        return from_leader(config, system_runtime())
    kv = EtcdKv(config.cluster.etcd, config.cluster.etcd_tls_dir) if config.cluster.etcd else None
    try:
        file, replace, names = Path(arguments.name), arguments.replace, arguments.api_name
        return await restore(config, file, kv, system_runtime(), replace=replace, names=names)
    finally:
        if kv:
            await kv.close()


def _write_bundle(output: str, bundle: bytes) -> str:
    if output == "-":
        sys.stdout.buffer.write(bundle)
        return "whoever reads this can issue certificates of this cloud"
    write_private(Path(output), bundle)
    return f"{output}: whoever has it can issue certificates of this cloud; remove it after use"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="skyrack-controllerd", description="The controller of a Skyrack cloud.")
    parser.add_argument("act", nargs="?", choices=["serve", "bootstrap", "bundle", "restore"], default="serve")
    parser.add_argument("name", nargs="?", help="bundle: name of the controller that it is for; restore: the backup's file")
    parser.add_argument("--config", type=Path, default=Path("/etc/skyrack/controllerd.toml"))
    parser.add_argument("--print-config", action="store_true", help="print every option with its default, and end")
    env = Path("/etc/skyrack/admin.env")
    parser.add_argument("--admin-env", type=Path, default=env, help="bootstrap: where the admin's access is written")
    parser.add_argument(
        "--api-name", action="append", default=[], help="bootstrap, restore: a further name or address of the API"
    )
    parser.add_argument("--bundle", metavar="FILE", help="bootstrap: as another controller made it; - = standard input")
    parser.add_argument("--address", action="append", default=[], help="bundle: an address or name of that controller")
    parser.add_argument("-o", "--output", metavar="FILE", help="bundle: default NAME.bundle; - = standard output")
    parser.add_argument("--replace", action="store_true", help="restore: over a state that is there; it is kept beside")
    further = "restore: no file; set this copy aside, and take a new one from the controller that was restored"
    parser.add_argument("--from-leader", action="store_true", help=further)
    arguments = parser.parse_args()
    needs = {"bundle": "the name of a controller", "restore": "" if arguments.from_leader else "the file of a backup"}
    if (arguments.name is not None) != bool(needed := needs.get(arguments.act, "")):
        parser.error(f"{arguments.act} needs {needed}" if needed else f"unknown: {arguments.name}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
