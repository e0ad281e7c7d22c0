"""Every public service: its full name, how generated code adds it to a server, and what serves it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from controllerd.api.rpc.cluster import ClusterService
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
from controllerd.api.rpc.switch import Services
from controllerd.api.rpc.volume import VolumeService
from skyrack.v1 import (
    cluster_pb2_grpc,
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

if TYPE_CHECKING:
    from controllerd.controller import Controller

PACKAGE = "skyrack.v1"
_ADD: dict[str, Callable[[Any, Any], None]] = {
    "IdentityService": identity_pb2_grpc.add_IdentityServiceServicer_to_server,
    "ClusterService": cluster_pb2_grpc.add_ClusterServiceServicer_to_server,
    "NodeService": node_pb2_grpc.add_NodeServiceServicer_to_server,
    "QuotaService": quota_pb2_grpc.add_QuotaServiceServicer_to_server,
    "TaskService": task_pb2_grpc.add_TaskServiceServicer_to_server,
    "EventService": event_pb2_grpc.add_EventServiceServicer_to_server,
    "FlavorService": flavor_pb2_grpc.add_FlavorServiceServicer_to_server,
    "KeypairService": keypair_pb2_grpc.add_KeypairServiceServicer_to_server,
    "ImageService": image_pb2_grpc.add_ImageServiceServicer_to_server,
    "ServerService": server_pb2_grpc.add_ServerServiceServicer_to_server,
    "NetworkService": network_pb2_grpc.add_NetworkServiceServicer_to_server,
    "RouterService": router_pb2_grpc.add_RouterServiceServicer_to_server,
    "SecurityGroupService": security_group_pb2_grpc.add_SecurityGroupServiceServicer_to_server,
    "VolumeService": volume_pb2_grpc.add_VolumeServiceServicer_to_server,
}
NAMES = tuple(f"{PACKAGE}.{name}" for name in _ADD)


def public_services(c: Controller) -> Services:
    """Of one term."""
    gate = Gate(c.login)
    servicers = {
        "IdentityService": IdentityService(gate, c.identity, c.login),
        "ClusterService": ClusterService(gate, c.cluster),
        "NodeService": NodeService(gate, c.nodes),
        "QuotaService": QuotaService(gate, c.quotas),
        "TaskService": TaskService(gate, c.history, c.operations),
        "EventService": EventService(gate, c.history),
        "FlavorService": FlavorService(gate, c.flavors),
        "KeypairService": KeypairService(gate, c.keypairs),
        "ImageService": ImageService(gate, c.images),
        "ServerService": ServerService(gate, c.servers, c.volumes),
        "NetworkService": NetworkService(gate, c.networks, c.subnets, c.ports),
        "RouterService": RouterService(gate, c.routers, c.floating_ips),
        "SecurityGroupService": SecurityGroupService(gate, c.security_groups),
        "VolumeService": VolumeService(gate, c.volumes),
    }
    return {f"{PACKAGE}.{name}": (add, servicers[name]) for name, add in _ADD.items()}
