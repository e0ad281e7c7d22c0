"""What computed counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from daemonkit.metrics import REGISTRY

SERVERS = Gauge("skyrack_computed_servers", "servers on this node", ["state"], registry=REGISTRY)
LAUNCH_S = Histogram(
    "skyrack_computed_launch_seconds", "time of each step of a launch", ["step"], registry=REGISTRY,
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60),
)  # fmt: skip
IMAGE_CACHE_BYTES = Gauge("skyrack_computed_image_cache_bytes", "size of the image cache", registry=REGISTRY)
IMAGE_REQUESTS = Counter("skyrack_computed_image_requests_total", "images needed", ["where"], registry=REGISTRY)
RECONNECTS = Counter("skyrack_computed_libvirt_connects_total", "connections made to libvirtd", registry=REGISTRY)
