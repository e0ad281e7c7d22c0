"""Run as a program: a server that a stranger and a caller without certificate dial. Prints how many were refused, and why."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import grpc

from daemonkit import handshake, metrics, rpc
from daemonkit.tls import TlsFiles


async def dial(address: str, credentials: grpc.ChannelCredentials) -> None:
    channel = rpc.channel(address, credentials)
    try:
        await channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=20)
    except grpc.aio.AioRpcError as error:
        print("error", error.code().name)
    else:
        print("let in")
    await channel.close(None)


async def main(ours: Path, strange: Path) -> None:
    server = rpc.Server(lambda: "rid")
    port = server.bind("127.0.0.1:0", TlsFiles(ours).server(clients_must_show_certificate=True))
    await server.start([])
    address = f"127.0.0.1:{port}"
    await dial(address, TlsFiles(strange).client())
    await dial(address, grpc.ssl_channel_credentials((ours / "ca.pem").read_bytes()))
    await dial(address, TlsFiles(ours).client())
    await server.stop(0)


if __name__ == "__main__":
    end = handshake.count_refused()
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
    print("still on standard error", file=sys.stderr)
    end()
    print("and after it", file=sys.stderr)
    for why in ("certificate", "no_certificate"):
        print(why, metrics.REFUSED_PEERS.labels(why)._value.get() > 0)
