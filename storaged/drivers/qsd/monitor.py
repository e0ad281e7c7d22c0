"""QMP commands to the storage daemon that we use, typed. Names and arguments: QEMU's storage-daemon QMP reference."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from qemu.qmp import Message, QMPClient
from qemu.qmp.error import QMPError
from qemu.qmp.protocol import Runstate
from qemu.qmp.qmp_client import ExecuteError

from daemonkit.errors import CommandFailed, DeadlineExceeded, Unavailable
from storaged.drivers.qsd.process import AUTHORIZATION

CONNECT_TIMEOUT_S = 5.0
EXECUTE_TIMEOUT_S = 30.0
GONE_TIMEOUT_S = 10.0

logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # it logs each end of a connection as an error, with a trace


class Monitor:
    """One connection. Errors of every method: Unavailable when it is lost, CommandFailed when the daemon refuses."""

    def __init__(self) -> None:
        self._client: Any = QMPClient("storaged")

    async def connect(self, path: Path) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._client.connect(str(path))
        except (QMPError, OSError, TimeoutError) as error:
            raise Unavailable(f"the storage daemon does not answer: {error}") from None

    async def close(self) -> None:
        with suppress(QMPError, OSError, EOFError):
            await self._client.disconnect()

    async def lost(self) -> None:
        """Returns when the connection is over."""
        while self._client.runstate == Runstate.RUNNING:
            await self._client.runstate_changed()

    async def _execute(self, name: str, /, **arguments: Any) -> Any:
        try:
            async with asyncio.timeout(EXECUTE_TIMEOUT_S):
                return await self._client.execute(name, {key.replace("_", "-"): value for key, value in arguments.items()})
        except ExecuteError as error:
            raise CommandFailed([name], 1, str(error)) from None
        except TimeoutError:
            raise DeadlineExceeded(f"the storage daemon takes longer than {EXECUTE_TIMEOUT_S:g} s for {name}") from None
        except (QMPError, OSError, EOFError) as error:
            raise Unavailable(f"the storage daemon went away: {type(error).__name__}") from None

    async def exports(self) -> dict[str, str]:
        """Export id -> node name."""
        return {e["id"]: e["node-name"] for e in await self._execute("query-block-exports")}

    async def nodes(self) -> list[str]:
        """Names of the nodes that somebody named: ours."""
        found = await self._execute("query-named-block-nodes", flat=True)
        return [node["node-name"] for node in found if not node["node-name"].startswith("#")]

    async def open(self, node: str, path: Path) -> None:
        # cache.direct: what a guest was told is on the disk does not sit in this machine's memory.
        file = {"driver": "file", "filename": str(path), "cache": {"direct": True}, "discard": "unmap", "aio": "threads"}
        await self._execute("blockdev-add", node_name=node, driver="qcow2", file=file, discard="unmap", cache={"direct": True})

    async def close_node(self, node: str) -> None:
        await self._execute("blockdev-del", node_name=node)

    async def export(self, tag: str, node: str, name: str) -> None:
        await self._execute("block-export-add", type="nbd", id=tag, node_name=node, name=name, writable=True)

    async def unexport(self, tag: str) -> None:
        """Cuts its clients; returns when their last request is over. Errors: DeadlineExceeded."""

        def of_this(event: Message) -> bool:
            return bool(event["data"]["id"] == tag)

        with self._client.listener("BLOCK_EXPORT_DELETED", of_this) as deleted:
            await self._execute("block-export-del", id=tag, mode="hard")
            try:
                async with asyncio.timeout(GONE_TIMEOUT_S):
                    await deleted.get()
            except TimeoutError:
                raise DeadlineExceeded("a client of the volume can't be cut: its disk does not answer") from None

    async def authorize(self, names: Iterable[str]) -> None:
        """Certificates with one of these distinguished names may connect, all others not. Open connections stay."""
        rules = [{"match": name, "policy": "allow", "format": "exact"} for name in names]
        await self._execute("qom-set", path=f"/objects/{AUTHORIZATION}", property="rules", value=rules)
