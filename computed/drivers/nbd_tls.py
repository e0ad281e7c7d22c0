"""Certificates in the names QEMU wants them, for volumes over NBD with TLS.

Whoever runs libvirtd sets in qemu.conf: nbd_tls_x509_cert_dir = "/etc/skyrack/nbd-tls" (or what nbd_tls_dir
says; the directory must exist when libvirtd starts). QEMU reads them when a volume is opened, so a renewed certificate is
used by the next attachment.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from daemonkit.errors import ConfigError
from daemonkit.tls import TlsFiles, write_private


def prepare(tls: TlsFiles, directory: Path, group: str = "") -> None:
    """Writes what differs. `group` may read the key, "" = only root. Errors: ConfigError."""
    names = {"ca-cert.pem": tls.ca, "client-cert.pem": tls.certificate, "client-key.pem": tls.key}
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o750)
        for name, source in names.items():
            target, content = directory / name, source.read_bytes()
            if not target.exists() or target.read_bytes() != content:
                write_private(target, content)
            if group:
                shutil.chown(target, group=group)
                target.chmod(0o640)
        if group:
            shutil.chown(directory, group=group)
    except (OSError, LookupError) as error:
        raise ConfigError(f"{directory}: {error}") from None
