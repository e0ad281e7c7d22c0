"""The SDK: `async with skyrack.client.Cloud.connect() as cloud: await cloud.servers.get(...)`.

Asynchronous; `skyrack.client.sync` has the same names for programs without an event loop. Users see dataclasses and
`skyrack.client.errors`, never protobuf or gRPC.
"""

from skyrack.client.cloud import Cloud
from skyrack.client.connection import Patience
from skyrack.client.errors import CloudError

__all__ = ["Cloud", "CloudError", "Patience"]
