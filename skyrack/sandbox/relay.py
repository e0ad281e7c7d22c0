"""From 127.0.0.1 of the machine to the controllers' API in the box: the only door, and it opens inwards only.

One process for a sandbox: its listeners belong to the machine's network namespace, it lives in the fabric's (where `down`
finds it), and every connection inwards is made from a socket born in the controller's own namespace, which is looked up each
time: a controller that was powered off comes back in a new one. Run as `python -I -S relay.py LOCK FABRIC [PORT NAMESPACE
HOST PORT]...`, LOCK being the launcher's lock to let go of, or -1; prints "listening" and closes its output when the
listeners stand.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import sys
from functools import partial
from typing import NamedTuple

_CLONE_NEWNET = 0x40000000
_CHUNK_BYTES = 65536
_DIAL_LIMIT_S = 5.0
_libc = ctypes.CDLL(None, use_errno=True)


class Door(NamedTuple):
    port: int
    namespace: str
    host: str
    inner_port: int


def enter(path: str) -> None:
    """Moves this thread. The loop does nothing else meanwhile, so nobody sees it between two namespaces."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(descriptor, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {path}")
    finally:
        os.close(descriptor)


def socket_in(namespace: str, home: str) -> socket.socket:
    try:
        enter(namespace)
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    finally:
        enter(home)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction, until its end; half-closed connections stay half open, a broken one breaks on the other side too."""
    try:
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()


async def serve(door: Door, home: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    inner = None
    try:
        inner = socket_in(door.namespace, home)
        async with asyncio.timeout(_DIAL_LIMIT_S):
            await asyncio.get_running_loop().sock_connect(inner, (door.host, door.inner_port))
        inner_reader, inner_writer = await asyncio.open_connection(sock=inner)
    except OSError:  # TimeoutError is one
        writer.transport.abort()  # as if nobody listened
        if inner is not None:
            inner.close()
        return
    try:
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))
    finally:
        inner_writer.close()
        writer.close()


async def main(lock: int, home: str, doors: list[Door]) -> None:
    listeners = [socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) for _ in doors]
    enter(home)
    if lock >= 0:
        os.close(lock)  # from here on we are found by our namespace
    async with asyncio.TaskGroup() as group:
        for listener, door in zip(listeners, doors, strict=True):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", door.port))
            server = await asyncio.start_server(partial(serve, door, home), sock=listener)
            group.create_task(server.serve_forever())
        os.write(1, b"listening\n")
        null = os.open("/dev/null", os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)


if __name__ == "__main__":
    lock, home, *rest = sys.argv[1:]
    words = zip(*[iter(rest)] * 4, strict=True)
    asyncio.run(main(int(lock), home, [Door(int(a), b, c, int(d)) for a, b, c, d in words]))
