"""A TCP proxy on 127.0.0.1 that can freeze, thaw and cut what goes through it, to break a network without touching it.

    async with Proxy({0: 2379}) as proxy:            # listens on a free port, forwards to 2379
        proxy.freeze(proxy.ports[0], "back")         # requests arrive, answers do not
        proxy.cut(proxy.ports[0])                    # connections are reset, also new ones, and what was held is lost
        proxy.thaw(proxy.ports[0])

For a test whose loop must not carry it (or that stops processes), the same in a process of its own:

    with ProxyProcess({20001: 2379, 20002: 2380}) as proxy:
        proxy.freeze(20001)
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

DIRECTIONS = ("forth", "back")  # from whoever connects to the target, and from the target
CHUNK_BYTES = 64 << 10


class Way:
    """All connections through one port. The gates are open unless frozen."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.is_cut = False
        self.gates = {direction: asyncio.Event() for direction in DIRECTIONS}
        self.transports: set[asyncio.BaseTransport] = set()
        self.thaw()

    def freeze(self, direction: str) -> None:
        for one in DIRECTIONS if direction == "both" else (direction,):
            self.gates[one].clear()

    def thaw(self) -> None:
        self.is_cut = False
        for gate in self.gates.values():
            gate.set()

    def cut(self) -> None:
        self.is_cut = True
        for transport in list(self.transports):
            transport.abort()  # type: ignore[attr-defined]

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.transports.add(writer.transport)
        target = None
        try:
            await self.gates["forth"].wait()
            if self.is_cut:
                return
            answers, target = await asyncio.open_connection("127.0.0.1", self.target)
            self.transports.add(target.transport)
            await asyncio.gather(self._pump(reader, target, "forth"), self._pump(answers, writer, "back"))
        except OSError:
            pass  # the target is not there, or an end was reset: so is the other one
        finally:
            for end in (writer, target):
                if end is not None:
                    self.transports.discard(end.transport)
                    end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str) -> None:
        while data := await reader.read(CHUNK_BYTES):
            await self.gates[direction].wait()
            writer.write(data)
            await writer.drain()
        await self.gates[direction].wait()
        if writer.can_write_eof():
            writer.write_eof()


class Proxy:
    """`ways`: port to listen on (0: a free one) to target port. `ports`: what is listened on, in that order."""

    def __init__(self, ways: Mapping[int, int] | list[tuple[int, int]]) -> None:
        self._wanted = list(ways.items()) if isinstance(ways, Mapping) else ways
        self._ways: dict[int, Way] = {}
        self._servers = AsyncExitStack()

    @property
    def ports(self) -> list[int]:
        return list(self._ways)

    def freeze(self, port: int, direction: str = "both") -> None:
        """Nothing passes in that direction ("forth", "back", "both"), nobody is told. New connections are taken, and hang."""
        self._ways[port].freeze(direction)

    def thaw(self, port: int) -> None:
        """What was held passes now, in order."""
        self._ways[port].thaw()

    def cut(self, port: int) -> None:
        self._ways[port].cut()

    async def __aenter__(self) -> Self:
        for listen, target in self._wanted:
            way = Way(target)
            server = await asyncio.start_server(way.carry, "127.0.0.1", listen)
            self._servers.callback(server.close)
            self._servers.callback(way.cut)
            self._ways[server.sockets[0].getsockname()[1]] = way
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._servers.aclose()
        for way in self._ways.values():
            for gate in way.gates.values():
                gate.set()
        await asyncio.sleep(0)


class ProxyProcess:
    """The same from another process, with blocking calls; each returns when it is done."""

    def __init__(self, ways: Mapping[int, int]) -> None:
        pairs = [f"{listen}:{target}" for listen, target in ways.items()]
        argv = ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", "tests.proxy", *pairs]
        here = Path(__file__).parents[1]
        self._process = subprocess.Popen(argv, cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer("listening")

    def freeze(self, port: int, direction: str = "both") -> None:
        self._tell(f"freeze {port} {direction}")

    def thaw(self, port: int) -> None:
        self._tell(f"thaw {port}")

    def cut(self, port: int) -> None:
        self._tell(f"cut {port}")

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self._process.communicate(timeout=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        self._answer("ok")

    def _answer(self, expected: str) -> None:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        assert answer == expected, f"the proxy said {answer!r}"


async def serve(pairs: list[tuple[int, int]]) -> None:
    """Obeys lines on standard input until it ends."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(partial(asyncio.StreamReaderProtocol, lines), sys.stdin)
    async with Proxy(pairs) as proxy:
        print("listening", flush=True)
        while line := (await lines.readline()).decode().split():
            verb, port, rest = line[0], int(line[1]), line[2:]
            act: Any = {"freeze": proxy.freeze, "thaw": proxy.thaw, "cut": proxy.cut}[verb]
            act(port, *rest)
            print("ok", flush=True)


if __name__ == "__main__":
    asyncio.run(serve([(int(a), int(b)) for a, b in (pair.split(":") for pair in sys.argv[1:])]))
