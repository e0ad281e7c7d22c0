"""A whole cloud in one process, for tests: no root, no KVM, nothing outside a temporary directory.

    async with skyrack.testing.Cloud() as cloud:
        server = await cloud.client.servers.create("web", ...)

Real are the controller, the agents, the API behind TLS on 127.0.0.1 and the SDK; fake are the drivers and the wire between
controller and agents. `skyrack.testing.sync` has the same for programs without an event loop.
"""

from skyrack.testing.cloud import Cloud

__all__ = ["Cloud"]
