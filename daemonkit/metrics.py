"""Prometheus metrics of a daemon: its own registry, served as text on its management address.

Names: skyrack_<daemon or room>_<what>_<unit>. Every daemon has process metrics, event loop lag and RPC counts.
"""

from __future__ import annotations

import asyncio
from http.server import ThreadingHTTPServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

LOOP_LAG_S = Histogram(
    "skyrack_loop_lag_seconds", "how late the event loop wakes up", registry=REGISTRY,
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
)  # fmt: skip
RPC_S = Histogram(
    "skyrack_rpc_seconds", "calls served", ["method", "code"], registry=REGISTRY,
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10),
)  # fmt: skip
REFUSED_PEERS = Counter("skyrack_refused_peers_total", "connections refused for their certificate", ["why"], registry=REGISTRY)
CLOCK_STEP_S = Gauge("skyrack_clock_step_seconds", "machine's clock less the time that the store goes by", registry=REGISTRY)
INFO = Gauge("skyrack_info", "software version", ["daemon", "version"], registry=REGISTRY)
CERTIFICATE_LEFT_DAYS = Gauge("skyrack_certificate_left_days", "until a certificate in use ends", ["file"], registry=REGISTRY)

LAG_INTERVAL_S = 0.25


def serve(address: str) -> ThreadingHTTPServer:
    """Serves /metrics on "host:port" from a thread of the client library; call `.shutdown()` at the end."""
    host, _, port = address.rpartition(":")
    server, _thread = start_http_server(int(port), host.strip("[]"), REGISTRY)
    return server  # type: ignore[return-value]


async def watch_loop_lag() -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_INTERVAL_S
        await asyncio.sleep(LAG_INTERVAL_S)
        LOOP_LAG_S.observe(max(0.0, loop.time() - due))
