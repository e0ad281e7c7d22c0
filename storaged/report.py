"""What this node tells by itself: each change, at once."""

from __future__ import annotations

from collections.abc import Mapping

from daemonkit.session import Session
from storaged import metric, wire
from storaged.drivers.base import VolumeDriver
from storaged.images.store import ImageStore
from storaged.reconcile import Reconciler
from storaged.spec import Observed


class Reporter:
    """Sends through the session, which is given once it exists."""

    def __init__(self) -> None:
        self.session: Session | None = None

    def tell(self, news: Mapping[str, Observed]) -> None:
        if self.session is not None:
            self.session.report([wire.observed(key, told) for key, told in news.items()])


def publish_gauges(reconciler: Reconciler, images: ImageStore, driver: VolumeDriver) -> None:
    """Gauges are worked out when somebody asks for them."""
    held = reconciler.held
    metric.VOLUMES.set_function(lambda: len(held))
    metric.VOLUME_BYTES.set_function(lambda: sum(volume.size_bytes for volume in list(held.values())))
    metric.VOLUME_ALLOCATED_BYTES.set_function(lambda: sum(volume.allocated_bytes for volume in list(held.values())))
    metric.EXPORTS.set_function(lambda: sum(len(volume.tags) for volume in list(held.values())))
    metric.BLOBS.set_function(lambda: len(images.held))
    metric.BLOB_BYTES.set_function(lambda: sum(blob.size_bytes for blob in list(images.held.values())))
    metric.QSD_RESTARTS.set_function(lambda: driver.restarts)
