"""A client that knows nothing of Skyrack: what it can call and say it learns from the server, by gRPC reflection.

As a program, inside a node: `reflecting.py HOST:PORT` with the node's certificate prints {service: [method, ...]} as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

CALL_LIMIT_S = 30.0
_TLS = Path("/etc/skyrack/tls")


class Reflected:
    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._database = ProtoReflectionDescriptorDatabase(channel)
        self._pool = DescriptorPool(self._database)

    def services(self) -> list[str]:
        return sorted(self._database.get_services())

    def methods(self, service: str) -> list[MethodDescriptor]:
        return list(self._pool.FindServiceByName(service).methods)

    def call(self, method: str, request: dict[str, Any] | None = None, **metadata: str) -> dict[str, Any]:
        """`method`: "package.Service/Method". The answer, of a stream the first one. Errors: grpc.RpcError."""
        service, _, name = method.partition("/")
        found = self._pool.FindServiceByName(service).FindMethodByName(name)
        message = json_format.ParseDict(request or {}, message_factory.GetMessageClass(found.input_type)())
        arity = ("stream" if found.client_streaming else "unary") + "_" + ("stream" if found.server_streaming else "unary")
        stub = getattr(self._channel, arity)(
            f"/{method}",
            request_serializer=lambda given: given.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(found.output_type).FromString,
        )
        pairs = [(key.replace("_", "-"), value) for key, value in metadata.items()]
        answer = stub(iter([message]) if found.client_streaming else message, metadata=pairs, timeout=CALL_LIMIT_S)
        if isinstance(answer, Iterator):
            answer = next(answer)
        told: dict[str, Any] = json_format.MessageToDict(answer, preserving_proto_field_name=True)
        return told


def as_node(address: str) -> grpc.Channel:
    """With the certificate of the node we are in."""
    parts = {name: (_TLS / name).read_bytes() for name in ("ca.pem", "node.key", "node.pem")}
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(*parts.values()))


if __name__ == "__main__":
    with as_node(sys.argv[1]) as _channel:
        _client = Reflected(_channel)
        print(json.dumps({service: [method.name for method in _client.methods(service)] for service in _client.services()}))
