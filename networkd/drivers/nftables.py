"""libnftables in this process: text in, one transaction, text out.

A context speaks to the namespace in which it was made. One thread at a time. `generation` is the kernel's count of
transactions in a namespace: it tells whether anybody else changed the rules since.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import socket
import struct
from collections.abc import Callable

from daemonkit.errors import ConfigError

_STATELESS = 1 << 2  # NFT_CTX_OUTPUT_STATELESS
_GETGEN = (10 << 8) | 16  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN
_NETLINK_NETFILTER = 12
_SOL_NETLINK, _ADD_MEMBERSHIP, _NFNLGRP_NFTABLES = 270, 1, 7
SETTLE_S = 0.2
NFTA_GEN_ID = 1


class NftError(OSError):
    """The rules were refused; nothing of them is in force."""


def _library() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libnftables.so.1")
    except OSError:
        raise ConfigError("libnftables.so.1 is missing: apt-get install libnftables1") from None
    lib.nft_ctx_new.restype = ctypes.c_void_p
    lib.nft_ctx_new.argtypes = [ctypes.c_uint32]
    for function in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(lib, function).argtypes = [ctypes.c_void_p]
    for function in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(lib, function).argtypes = [ctypes.c_void_p]
        getattr(lib, function).restype = ctypes.c_char_p
    lib.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    lib.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    return lib


class Nft:
    """Made in the namespace it is for."""

    def __init__(self) -> None:
        self._lib = _library()
        self._context = self._lib.nft_ctx_new(0)
        self._lib.nft_ctx_buffer_output(self._context)
        self._lib.nft_ctx_buffer_error(self._context)
        self._lib.nft_ctx_output_set_flags(self._context, _STATELESS)

    def run(self, text: str) -> str:
        """One transaction. Errors: NftError with what libnftables said."""
        failed = self._lib.nft_run_cmd_from_buffer(self._context, text.encode())
        out = self._lib.nft_ctx_get_output_buffer(self._context) or b""
        complaint = self._lib.nft_ctx_get_error_buffer(self._context) or b""
        if failed:
            raise NftError(0, complaint.decode(errors="replace").strip()[:500] or "nft failed")
        return bytes(out).decode(errors="replace")

    def close(self) -> None:
        self._lib.nft_ctx_free(self._context)


class RulesWatch:
    """Calls `changed`, a moment later and once for many, when rules in the namespace of this thread were changed by anybody."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._pending: asyncio.TimerHandle | None = None
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._sock = socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER)
        self._sock.bind((0, 0))
        self._sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
        asyncio.get_running_loop().add_reader(self._sock, self._drain)

    def _drain(self) -> None:
        """What changed does not matter; an overflow says the same."""
        try:
            while self._sock.recv(1 << 16):
                pass
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
        if self._pending is None:
            self._pending = asyncio.get_running_loop().call_later(SETTLE_S, self._tell)

    def _tell(self) -> None:
        self._pending = None
        self._changed()

    def close(self) -> None:
        if self._pending is not None:
            self._pending.cancel()
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()


def once(text: str) -> int:
    """Runs `text` in the namespace of this thread; gives the generation after it."""
    nft = Nft()
    try:
        nft.run(text)
    finally:
        nft.close()
    return generation()


def generation() -> int:
    """Of the rules in the namespace of this thread."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as sock:
        sock.settimeout(5.0)
        sock.send(struct.pack("=IHHIIBBH", 20, _GETGEN, 1, 1, 0, 0, 0, 0))
        data = sock.recv(4096)
    offset = 20
    while offset + 8 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if kind & 0x3FFF == NFTA_GEN_ID:
            return int(struct.unpack_from("!I", data, offset + 4)[0])
        offset += max((length + 3) & ~3, 4)
    return 0
