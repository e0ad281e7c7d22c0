"""The nouns of a compute node: what is wanted, what is there, what is seen. Plain frozen values."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

GIB = 1 << 30


class Power(enum.Enum):
    PREPARED = "prepared"  # disks made, domain defined, not started
    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Image:
    image_id: str
    sha256: str  # hex; names the content
    size_bytes: int
    format: str  # "qcow2" or "raw"
    sources: tuple[str, ...] = ()  # "host:port" of storage nodes


@dataclass(frozen=True)
class Interface:
    port_id: str
    device: str  # the tap's name; networkd makes it
    mac: str
    mtu: int  # bytes; 0 = the kernel's default


@dataclass(frozen=True)
class Disk:
    """A volume as a server sees it: an NBD export on a storage node."""

    attachment_id: str
    volume_id: str
    target: str  # "vdb"...
    nbd_host: str
    nbd_port: int
    export_name: str


@dataclass(frozen=True)
class Account:
    """A user that the guest is to create."""

    name: str
    public_keys: tuple[str, ...] = ()
    sudo: bool = False


@dataclass(frozen=True)
class Metadata:
    """What a guest learns about itself."""

    hostname: str = ""
    project_id: str = ""
    availability_zone: str = ""
    meta: tuple[tuple[str, str], ...] = ()
    public_keys: tuple[tuple[str, str], ...] = ()  # (name, OpenSSH line)
    user_data: bytes = b""
    launch_index: int = 0
    accounts: tuple[Account, ...] = ()


@dataclass(frozen=True)
class Server:
    """One server as the controller wants it on this node. `server_id` is the domain's uuid."""

    server_id: str
    name: str
    vcpus: int
    memory_mib: int
    root_disk_gib: int  # 0 = as large as the image
    image: Image
    interfaces: tuple[Interface, ...] = ()
    disks: tuple[Disk, ...] = ()
    power: Power = Power.RUNNING
    absent: bool = False
    config_drive: bool = False
    metadata: Metadata = field(default_factory=Metadata)


class DomainState(enum.Enum):
    SHUTOFF = "shutoff"
    RUNNING = "running"
    PAUSED = "paused"


@dataclass(frozen=True)
class Domain:
    """One domain as the hypervisor has it now. Domains without our mark have ours=False and are never touched."""

    server_id: str
    state: DomainState
    ours: bool = True
    io_error: bool = False  # paused because a disk failed
    guest_ended: bool = False  # shut off because the guest switched itself off
    digest: str = ""  # of the persistent definition; "" = there is none, or it is not ours
    disks: tuple[tuple[str, str], ...] = ()  # (export name, target) of the running guest, or of the definition
    failed_disks: tuple[str, ...] = ()  # targets with I/O errors


@dataclass(frozen=True)
class Files:
    """What the node's disks hold for a server."""

    image: bool = False  # in the cache, checked
    root_disk: bool = False
    config_drive: bool = False
    anything: bool = False  # whatever is left to remove, unfinished files too


@dataclass(frozen=True)
class Usage:
    """Counters of a running guest since it started, as the guest sees them."""

    server_id: str
    cpu_ns: int
    memory_kib: int
    rx_bytes: int
    tx_bytes: int
    read_bytes: int
    write_bytes: int


@dataclass(frozen=True)
class Capacity:
    """Of the node, for servers."""

    vcpus: int
    memory_mib: int
    virt_type: str  # "kvm", "qemu" or "fake"
    hypervisor: str  # for people


class ObservedState(enum.Enum):
    PENDING = "pending"
    READY = "ready"
    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"
    FAILED = "failed"
    GONE = "gone"


@dataclass(frozen=True)
class Observed:
    """What the controller is told of a server. `milestones`: (name, wall time in seconds) of the last launch."""

    state: ObservedState
    fault: str = ""
    attached: tuple[str, ...] = ()  # attachment ids
    milestones: tuple[tuple[str, float], ...] = ()
    foreign: bool = False
