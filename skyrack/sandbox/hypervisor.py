"""libvirt in a host of the box: its configuration, its units, and a warm cache of what this machine's QEMU can do."""

from __future__ import annotations

import shutil
from pathlib import Path

from skyrack.sandbox.unit import Unit

NBD_TLS_DIRECTORY = "/etc/skyrack/nbd-tls"
CAPABILITIES = "cache/libvirt/qemu/capabilities"

UNITS = (
    Unit("virtlogd", ("virtlogd",), notify=True),
    Unit("libvirtd", ("libvirtd",), notify=True),
)

# One libvirtd a host, used by root's computed only; five requests at once (the default) would queue behind a slow one.
_LIBVIRTD = """\
host_uuid = "{uuid}"
unix_sock_group = "root"
auth_unix_rw = "none"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
max_clients = 200
max_workers = 40
max_client_requests = 30
"""

# nbd_tls = 0: a disk asks for TLS itself (tls='yes'), with the certificates of this directory, which must exist.
_QEMU = f"""\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
nbd_tls = 0
nbd_tls_x509_cert_dir = "{NBD_TLS_DIRECTORY}"
"""

# libvirtd looks its default account up even when the configuration names another one.
_ACCOUNTS = {
    "passwd": {"libvirt-qemu": "libvirt-qemu:x:64055:64055:Libvirt Qemu:/var/lib/libvirt:/usr/sbin/nologin"},
    "group": {"kvm": "kvm:x:64054:", "libvirt-qemu": "libvirt-qemu:x:64055:"},
}


def accounts(file: str, text: str) -> str:
    """/etc/passwd or /etc/group (`file`) with what libvirt's packages would have added to the machine's."""
    known = {line.split(":")[0] for line in text.splitlines()}
    return text + "".join(f"{line}\n" for name, line in _ACCOUNTS[file].items() if name not in known)


def configure(etc: Path, uuid: str) -> None:
    """Writes the private /etc of a host that is to run libvirt. `uuid` identifies the host to libvirt for ever."""
    for name in ("qemu", "secrets", "nwfilter", "hooks", "storage"):
        (etc / "libvirt" / name).mkdir(parents=True, exist_ok=True)
    (etc / "libvirt/libvirtd.conf").write_text(_LIBVIRTD.format(uuid=uuid))
    (etc / "libvirt/qemu.conf").write_text(_QEMU)
    (etc / "libvirt/virtlogd.conf").write_text("")
    for file in _ACCOUNTS:
        (etc / file).write_text(accounts(file, Path("/etc", file).read_text()))
    (etc / "skyrack" / Path(NBD_TLS_DIRECTORY).name).mkdir(parents=True, exist_ok=True)


def keep_capabilities(var: Path, warm: Path) -> None:
    """Saves what a host's libvirt learnt about QEMU (2-4 s of probing) for the hosts to come."""
    learnt = var / CAPABILITIES
    if learnt.is_dir() and any(learnt.iterdir()):
        shutil.copytree(learnt, warm, dirs_exist_ok=True)


def warm_capabilities(var: Path, warm: Path) -> None:
    """Gives a new host the saved knowledge; libvirt itself throws it away when QEMU or the kernel changed."""
    if warm.is_dir():
        shutil.copytree(warm, var / CAPABILITIES, dirs_exist_ok=True)
