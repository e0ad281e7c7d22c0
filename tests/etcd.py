"""A real etcd cluster on 127.0.0.1, its data under a directory of the test's, its members ended by their ids.

    with EtcdCluster(tmp_path / "etcd", members=3, tls=True) as etcd:
        kv = EtcdKv(etcd.endpoints, etcd.tls_dir)
        etcd.pause(0)          # SIGSTOP
        etcd.resume(0)
        etcd.kill(1)           # SIGKILL
        etcd.restart(1)        # with its data, on its ports

A member dies with the process that started it.
"""

from __future__ import annotations

import random
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.pki import Pki

START_S = 60.0
# Below the kernel's ephemeral ports: a member that is down must find its port free when it comes back.
PORTS = range(20000, 32000)


@dataclass(frozen=True)
class Ports:
    client: int
    peer: int
    metrics: int


_given: set[int] = set()


def free_port() -> int:
    """One that nobody listens on now, and that was not given before."""
    rng = random.SystemRandom()
    while True:
        port = rng.choice([port for port in PORTS if port not in _given])
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port


class EtcdCluster:
    """`tls`: members and clients show certificates (clients' files in `tls_dir`). `options`: further flags of each member."""

    def __init__(self, directory: Path, members: int = 3, tls: bool = False, options: Sequence[str] = ()) -> None:
        self.directory = directory
        self.directory.mkdir(parents=True)
        self.ports = [Ports(free_port(), free_port(), free_port()) for _ in range(members)]
        self._options = list(options)
        self._server_tls, self.tls_dir = self._certificates() if tls else (None, None)
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * members

    @property
    def endpoints(self) -> list[str]:
        return [f"127.0.0.1:{ports.client}" for ports in self.ports]

    @property
    def pids(self) -> list[int]:
        """Of the members that were started and not killed."""
        return [process.pid for process in self._processes if process is not None]

    def start(self) -> None:
        """Returns when all members answer."""
        for number in range(len(self.ports)):
            self._spawn(number)
        self.wait()

    def kill(self, number: int) -> None:
        process = self._processes[number]
        if process is not None:
            process.kill()
            process.wait()
            self._processes[number] = None

    def pause(self, number: int) -> None:
        self._signal(number, signal.SIGSTOP)

    def resume(self, number: int) -> None:
        self._signal(number, signal.SIGCONT)

    def restart(self, number: int) -> None:
        """Returns at once; see `wait`."""
        self.kill(number)
        self._spawn(number)

    def wait(self) -> None:
        """Until all members that run agree on a leader."""
        deadline = time.monotonic() + START_S
        for ports, process in zip(self.ports, self._processes, strict=True):
            while process is not None and not _healthy(ports.metrics):
                assert process.poll() is None, f"etcd ended: see {self.directory}"
                assert time.monotonic() < deadline, f"etcd does not come up: see {self.directory}"
                time.sleep(0.05)

    def leader(self) -> int:
        """Number of the member that leads the others; -1 = none does, as far as they tell."""
        return next((n for n, ports in enumerate(self.ports) if self._processes[n] and _leads(ports.metrics)), -1)

    def close(self) -> None:
        for number in range(len(self.ports)):
            self.kill(number)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _signal(self, number: int, which: signal.Signals) -> None:
        process = self._processes[number]
        assert process is not None, f"member {number} does not run"
        process.send_signal(which)

    def _spawn(self, number: int) -> None:
        with (self.directory / f"m{number}.log").open("ab") as output:
            argv = ["setpriv", "--pdeathsig", "KILL", "--", "etcd", *self._flags(number), *self._options]
            self._processes[number] = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def _flags(self, number: int) -> list[str]:
        ports, scheme = self.ports[number], "https" if self._server_tls else "http"
        client, peer = f"{scheme}://127.0.0.1:{ports.client}", f"{scheme}://127.0.0.1:{ports.peer}"
        all_peers = ",".join(f"m{n}={scheme}://127.0.0.1:{other.peer}" for n, other in enumerate(self.ports))
        flags = {
            "name": f"m{number}",
            "data-dir": str(self.directory / f"m{number}"),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": all_peers,
            "initial-cluster-token": self.directory.name,
            "initial-cluster-state": "new",
            "listen-metrics-urls": f"http://127.0.0.1:{ports.metrics}",
            "pre-vote": "true",
            "logger": "zap",
            "log-outputs": "stderr",
            "log-level": "warn",
        } | self._tls_flags()
        return [f"--{name}={value}" for name, value in flags.items()]

    def _tls_flags(self) -> dict[str, str]:
        if self._server_tls is None:
            return {}
        ca, certificate, secret = (str(self._server_tls / name) for name in ("ca.pem", "node.pem", "node.key"))
        client = {"cert-file": certificate, "key-file": secret, "trusted-ca-file": ca, "client-cert-auth": "true"}
        return client | {f"peer-{name}": value for name, value in client.items()}

    def _certificates(self) -> tuple[Path, Path]:
        """Directories of the members' files and of the clients'."""
        pki = Pki(self.directory / "tls", "etcd-authority")
        server, client = pki.node("etcd"), pki.node("controller")
        shutil.copy(client / "node.pem", client / "client.pem")
        shutil.copy(client / "node.key", client / "client.key")
        return server, client


def _healthy(port: int) -> bool:
    return b'"true"' in _get(port, "health")


def _leads(port: int) -> bool:
    return b"\netcd_server_is_leader 1\n" in _get(port, "metrics")


def _get(port: int, path: str) -> bytes:
    """Empty when there is no answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=2) as answer:
            body: bytes = answer.read()
            return body
    except OSError:
        return b""
