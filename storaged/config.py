"""Every option of storaged."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from daemonkit.config import option
from daemonkit.errors import ConfigError

SOCKET_PATH_BYTES_MAX = 107  # of the kernel, for the storage daemon's socket

_DATA = "/var/lib/skyrack/storaged"


@dataclass(frozen=True)
class Config:
    node: str = option("", "name of this node; must equal the common name of its certificate")
    controllers: list[str] = option([], "agent service of every controller, host:port (port 7701)")
    data_dir: Path = option(Path(_DATA), "what this daemon must not forget; one process at a time")
    tls_dir: Path = option(Path("/etc/skyrack/tls"), "ca.pem, node.pem and node.key of this node")
    listen: str = option(
        "127.0.0.1:7730", "own gRPC address with mTLS: images, health and reflection; others dial it as written"
    )
    metrics_listen: str = option("127.0.0.1:9730", "Prometheus metrics over HTTP; empty = none")
    log_level: str = option("info", "debug, info, warning or error")

    driver: str = option("qsd", "qsd (qemu-storage-daemon), or fake (volumes are only remembered; for trials)")
    images_dir: Path = option(Path(f"{_DATA}/images"), "images, by their content")
    images_reserve_mib: int = option(1024, "free space that uploads leave on the file system of images_dir")
    volumes_dir: Path = option(Path(f"{_DATA}/volumes"), "volumes, a qcow2 file each")
    nbd_listen: str = option("127.0.0.1:10809", "ip:port where compute nodes reach volumes (NBD with TLS)")

    def __post_init__(self) -> None:
        if self.driver not in ("qsd", "fake"):
            raise ConfigError(f"driver is {self.driver!r}; known: qsd, fake")
        if self.images_reserve_mib < 0:
            raise ConfigError("images_reserve_mib must not be negative")
        if len(str(self.qsd_dir / "qmp.sock")) > SOCKET_PATH_BYTES_MAX:
            raise ConfigError(f"data_dir is too long: a socket path may have {SOCKET_PATH_BYTES_MAX} bytes")
        if "," in f"{self.data_dir}":
            raise ConfigError("data_dir must not contain a comma")
        self.nbd_address()

    @property
    def qsd_dir(self) -> Path:
        """Socket, pid file and certificates of the storage daemon."""
        return self.data_dir / "qsd"

    def nbd_address(self) -> tuple[str, int]:
        """Errors: ConfigError."""
        host, _, port = self.nbd_listen.rpartition(":")
        try:
            return str(ipaddress.ip_address(host.strip("[]"))), int(port)
        except ValueError:
            raise ConfigError(f"nbd_listen is {self.nbd_listen!r}, must be ip:port") from None

    def for_daemon(self) -> None:
        """Checks what only a real daemon needs. Errors: ConfigError."""
        if not self.node or not self.controllers:
            raise ConfigError("node and controllers must be set")
        for path in (self.data_dir, self.tls_dir, self.images_dir, self.volumes_dir):
            if not path.is_absolute():
                raise ConfigError(f"{path} must be an absolute path")
