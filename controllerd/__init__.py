"""The controller: authoritative state, scheduling, durable tasks, reconcilers, agent sessions, public API.

Imports point down only: daemon -> api.rpc -> app | reconcilers -> tasks -> agents | leadership | scheduler | store -> domain.
"""

import daemonkit  # noqa: F401  before gRPC, whose environment it sets
