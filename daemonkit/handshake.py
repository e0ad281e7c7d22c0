"""Counts the TLS handshakes that gRPC refuses.

A certificate of another authority is refused inside gRPC, before any code of ours sees the connection. The one trace of it is
a line that gRPC's C++ core writes to file descriptor 2, at verbosity INFO. So that descriptor is read here: refusals are
counted (the first and every hundredth is logged), INFO lines are dropped, and what gRPC thinks of that verbosity; the rest is
passed on. Python's own standard error is moved to the real one before, so what Python writes goes out directly, even from a
dying process.

gRPC reads its verbosity when it is loaded: without GRPC_VERBOSITY=INFO in the environment of the process nothing is counted.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections.abc import Callable

from daemonkit import metrics

log = logging.getLogger(__name__)

_NOISE = re.compile(rb"[ID]\d{4} \d\d:\d\d:|W\d{4} .* Log level INFO is not suitable for production")
_REFUSED = re.compile(rb"Handshake failed with error SSL_ERROR_SSL: (.*)")
# What BoringSSL says of a certificate that it does not take; other failures are no certificate's, but a scanner's or the net's.
_WHY = (
    (re.compile(rb"PEER_DID_NOT_RETURN_A_CERTIFICATE"), "no_certificate"),
    (re.compile(rb"(?i)certificate|signature"), "certificate"),
)
LINE_BYTES_MAX = 8192


def count_refused() -> Callable[[], None]:
    """Begins, for the whole process, before it logs; gives what ends it."""
    if os.environ.get("GRPC_VERBOSITY") != "INFO":
        return lambda: None
    sys.stderr.flush()
    real = os.dup(2)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    ours, sys.stderr = sys.stderr, os.fdopen(os.dup(real), "w", buffering=1, errors="backslashreplace")
    thread = threading.Thread(target=_read, args=(reading, real), name="handshakes", daemon=True)
    thread.start()

    def end() -> None:
        sys.stderr.close()
        sys.stderr = ours
        os.dup2(real, 2)  # the last writing end of the pipe goes with it, and so the thread
        thread.join()
        os.close(real)

    return end


def _read(reading: int, real: int) -> None:
    count = 0
    with os.fdopen(reading, "rb") as lines:
        while line := lines.readline(LINE_BYTES_MAX):
            if refused := _REFUSED.search(line):
                count += 1
                _refused(refused[1], count)
            elif not _NOISE.match(line):
                os.write(real, line)


def _refused(text: bytes, count: int) -> None:
    why = next((label for pattern, label in _WHY if pattern.search(text)), "handshake")
    metrics.REFUSED_PEERS.labels(why).inc()
    if count % 100 == 1:
        log.warning("refused in the TLS handshake", extra={"why": text.decode(errors="replace").strip(), "so_far": count})
