"""Keypair: the public half of an SSH key (RFC 4253 §6.6, OpenSSH's one-line form)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass

from controllerd.domain import check
from daemonkit.errors import InvalidArgument

KINDS = (
    "ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com",
)  # fmt: skip
LENGTH_MAX = 16384


@dataclass(frozen=True)
class Keypair:
    id: str
    user_id: str
    name: str
    public_key: str
    fingerprint: str  # "SHA256:..." as ssh-keygen -l prints it
    created_at: float

    def __post_init__(self) -> None:
        """Errors: InvalidArgument."""
        check.name("name", self.name)


def parse_public_key(field: str, text: str) -> tuple[str, str]:
    """(the key on one line, its fingerprint). Errors: InvalidArgument naming `field`."""
    line = check.text(field, text.strip(), length_max=LENGTH_MAX, empty=False)
    kind, _, rest = line.partition(" ")
    body = rest.split(" ", 1)[0]
    if kind not in KINDS:
        raise InvalidArgument(field, f"must begin with one of {', '.join(KINDS)}")
    try:
        blob = base64.b64decode(body, validate=True)
        (length,) = struct.unpack(">I", blob[:4])
        inner = blob[4 : 4 + length].decode()
    except (binascii.Error, struct.error, UnicodeDecodeError):
        raise InvalidArgument(field, "is not an OpenSSH public key") from None
    if inner != kind or len(blob) <= 4 + length:
        raise InvalidArgument(field, "is not an OpenSSH public key")
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return line, f"SHA256:{digest}"
