"""What storaged counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from daemonkit.metrics import REGISTRY

BLOBS = Gauge("skyrack_storaged_blobs", "images held", registry=REGISTRY)
BLOB_BYTES = Gauge("skyrack_storaged_blob_bytes", "size of the images held", registry=REGISTRY)
BLOB_PUTS = Counter("skyrack_storaged_blob_puts_total", "uploads of images", ["result"], registry=REGISTRY)
BLOB_PUT_S = Histogram(
    "skyrack_storaged_blob_put_seconds", "duration of uploads that were kept", registry=REGISTRY,
    buckets=(0.1, 0.5, 1, 5, 20, 60, 300, 1800),
)  # fmt: skip
BLOB_PUT_BYTES = Counter("skyrack_storaged_blob_put_bytes_total", "bytes of uploads that were kept", registry=REGISTRY)
BLOB_GET_BYTES = Counter("skyrack_storaged_blob_get_bytes_total", "bytes of images sent", registry=REGISTRY)
VOLUMES = Gauge("skyrack_storaged_volumes", "volumes held", registry=REGISTRY)
VOLUME_BYTES = Gauge("skyrack_storaged_volume_bytes", "virtual size of the volumes held", registry=REGISTRY)
VOLUME_ALLOCATED_BYTES = Gauge("skyrack_storaged_volume_allocated_bytes", "disk space of the volumes held", registry=REGISTRY)
EXPORTS = Gauge("skyrack_storaged_exports", "exports served", registry=REGISTRY)
STEP_S = Histogram(
    "skyrack_storaged_step_seconds", "duration of each step on a volume", ["step", "result"], registry=REGISTRY,
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2, 10, 60, 600),
)  # fmt: skip
QSD_RESTARTS = Gauge("skyrack_storaged_qsd_restarts", "times the storage daemon had to be started again", registry=REGISTRY)
