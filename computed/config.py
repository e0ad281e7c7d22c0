"""Every option of computed. Unix socket paths have 107 bytes in the kernel, so the console directory's length is checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from daemonkit.config import option
from daemonkit.errors import ConfigError

SOCKET_PATH_BYTES_MAX = 107
_SOCKET_NAME_BYTES = len("/") + 36 + len(".sock")

_DATA = "/var/lib/skyrack/computed"


@dataclass(frozen=True)
class Config:
    node: str = option("", "name of this node; must equal the common name of its certificate")
    controllers: list[str] = option([], "agent service of every controller, host:port (port 7701)")
    data_dir: Path = option(Path(_DATA), "what this daemon must not forget; one process at a time")
    tls_dir: Path = option(Path("/etc/skyrack/tls"), "ca.pem, node.pem and node.key of this node")
    listen: str = option("127.0.0.1:7720", "own gRPC address with mTLS: health and reflection")
    metrics_listen: str = option("127.0.0.1:9720", "Prometheus metrics over HTTP; empty = none")
    log_level: str = option("info", "debug, info, warning or error")

    driver: str = option("libvirt", "libvirt, or fake (nothing is really started; for trials)")
    libvirt_uri: str = option("qemu:///system", "which libvirtd to drive")
    virt_type: str = option("auto", "kvm, qemu (emulation) or auto (kvm if /dev/kvm opens and the CPU has vmx or svm)")
    images_dir: Path = option(Path(f"{_DATA}/images"), "image cache; QEMU must be able to read it")
    images_max_gib: int = option(50, "size of the image cache; images that no server uses go first, oldest use first")
    disks_dir: Path = option(Path(f"{_DATA}/disks"), "root disks and config drives, one directory a server")
    console_dir: Path = option(Path(f"{_DATA}/console"), "sockets and logs of the serial consoles")
    nbd_tls_dir: Path = option(Path("/etc/skyrack/nbd-tls"), "certificates for QEMU, made from tls_dir; see qemu.conf")
    qemu_group: str = option("", "group that may read the key in nbd_tls_dir; empty = root only")
    vnc: bool = option(False, "give every server a screen, as VNC on a unix socket in console_dir")
    tb_cache_mib: int = option(64, "translation cache of an emulated guest (virt_type qemu)")
    spare_pci_ports: int = option(8, "free slots for hot plug in every server")

    reserved_memory_mib: int = option(512, "memory kept for the node itself, not offered to servers")
    stop_grace_s: float = option(60.0, "how long a guest may take to obey the power button before it is cut off")
    starts_max: int = option(4, "servers started at the same time; the others queue")
    sample_interval_s: float = option(10.0, "between usage samples")
    pass_interval_s: float = option(30.0, "between safety passes over everything; changes and events act at once")

    def __post_init__(self) -> None:
        if self.driver not in ("libvirt", "fake"):
            raise ConfigError(f"driver is {self.driver!r}; known: libvirt, fake")
        if self.virt_type not in ("auto", "kvm", "qemu"):
            raise ConfigError(f"virt_type is {self.virt_type!r}; known: auto, kvm, qemu")
        if len(str(self.console_dir)) + _SOCKET_NAME_BYTES > SOCKET_PATH_BYTES_MAX:
            raise ConfigError(f"console_dir is too long: a socket path may have {SOCKET_PATH_BYTES_MAX} bytes")
        if self.starts_max < 1 or self.sample_interval_s <= 0 or self.pass_interval_s <= 0 or self.stop_grace_s < 0:
            raise ConfigError("starts_max, sample_interval_s and pass_interval_s must be positive, stop_grace_s not negative")
        if self.images_max_gib < 1 or self.spare_pci_ports < 0 or self.tb_cache_mib < 1:
            raise ConfigError("images_max_gib and tb_cache_mib must be positive, spare_pci_ports not negative")

    def for_daemon(self) -> None:
        """Checks what only a real daemon needs. Errors: ConfigError."""
        if not self.node or not self.controllers:
            raise ConfigError("node and controllers must be set")
