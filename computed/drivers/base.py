"""The two ports below the reconciler: who runs domains, and who keeps their files.

Drivers never retry. Each method is idempotent or says what it raises when there is nothing to do. Errors: Unavailable when
the hypervisor can't be reached (later it may be), HypervisorError when it refused, OutOfSpace, InvalidArgument.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from computed.spec import Capacity, Disk, Domain, Files, Server, Usage
from daemonkit.errors import SkyrackError


class HypervisorError(SkyrackError):
    """The hypervisor refused. The message is safe for tenants; what it said word for word is in the log."""

    reason = "FAILED"


@dataclass(frozen=True)
class Watcher:
    """Whom a hypervisor tells. Both are called on the event loop and return at once.

    changed: something about this domain changed, look. connected: events may have been missed, look at everything.
    """

    changed: Callable[[str], None]
    connected: Callable[[], None]


class Hypervisor(Protocol):
    async def run(self, watcher: Watcher) -> None:
        """Connects, and again whenever the connection breaks, until cancelled."""

    def digest(self, server: Server) -> str:
        """Of the definition that `define` would make."""

    async def domains(self) -> list[Domain]:
        """All with our mark."""

    async def look(self, server_id: str) -> Domain | None: ...

    async def define(self, server: Server) -> None: ...

    async def start(self, server_id: str) -> None:
        """Gives back when the guest runs."""

    async def press_power_button(self, server_id: str) -> None: ...

    async def cut_power(self, server_id: str) -> None: ...

    async def resume(self, server_id: str) -> None: ...

    async def undefine(self, server_id: str) -> None: ...

    async def attach(self, server_id: str, disk: Disk) -> None: ...

    async def detach(self, server_id: str, export_name: str) -> None:
        """Only asks: the disk is gone when `look` no longer shows it; `changed` is called then."""

    async def reboot(self, server_id: str, *, hard: bool, grace_s: float) -> None:
        """Gives back when the guest began anew; a soft one that is not obeyed within the grace turns hard."""

    async def usage(self) -> list[Usage]:
        """Of the running guests with our mark."""

    def capacity(self) -> Capacity | None:
        """None until the hypervisor was reached once."""

    def missing_interfaces(self, server: Server) -> list[str]:
        """Those of its taps that networkd has not made yet."""


class Store(Protocol):
    """Images, root disks, config drives and console logs of the node."""

    def files(self, server: Server) -> Files: ...

    def servers(self) -> set[str]:
        """Ids of the servers with files here."""

    def images(self) -> list[str]:
        """sha256 of each cached image."""

    async def fetch_image(self, server: Server) -> None:
        """Many waiters, one download. Errors: Unavailable (no source has it), InvalidArgument (not what it claims)."""

    async def make_disks(self, server: Server) -> None:
        """Errors: InvalidArgument when the image does not fit on the flavor's disk."""

    async def remove(self, server_id: str) -> None: ...

    async def console_log(self, server_id: str, bytes_max: int) -> bytes:
        """The last bytes; empty when it never ran."""

    def disk_bytes(self) -> int:
        """Size of the file system that holds the root disks."""

    def keep_images(self, servers: Sequence[Server]) -> None:
        """Images of these servers are in use: not to be thrown out of the cache."""

    def close(self) -> None: ...


class BlobSource(Protocol):
    """Where images come from."""

    def read(self, address: str, sha256: str, offset: int) -> AsyncIterator[bytes]:
        """The content from `offset` on, in chunks. Errors: NotFound, Unavailable, Forbidden."""
        ...
