from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from daemonkit import log


class Unspeakable:
    def __str__(self) -> str:
        raise ValueError


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    out = io.StringIO()
    log.setup("testd", "debug", out)
    yield out
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)


def last(stream: io.StringIO) -> dict[str, Any]:
    lines = stream.getvalue().splitlines()
    record: dict[str, Any] = json.loads(lines[-1])
    return record


def test_a_line_has_request_id_and_extras(stream: io.StringIO) -> None:
    token = log.request_id.set("r-1")
    logging.getLogger("room").info("server %s", "started", extra={"server": "s", "daemon": "liar"})
    log.request_id.reset(token)
    line = last(stream)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info", "daemon": "testd", "room": "room", "event": "server started", "request_id": "r-1", "server": "s",
    }  # fmt: skip
    logging.info("no request")
    assert "request_id" not in last(stream)


def test_odd_values_do_not_crash(stream: io.StringIO) -> None:
    ring: list[Any] = []
    ring.append(ring)
    odd = [Unspeakable(), ring, {(1, 2): 3}, float("nan"), "\udc80", b"\xff", {1: Unspeakable()}, "line\nbreak", 10**400]
    for value in odd:
        logging.warning("odd", extra={"value": value})
        assert last(stream)["event"] == "odd" and "value" in last(stream)
    assert len(stream.getvalue().splitlines()) == len(odd)


def test_tracebacks_stay_on_the_line(stream: io.StringIO) -> None:
    try:
        raise ValueError("why")
    except ValueError:
        logging.exception("failed")
    assert "ValueError: why" in last(stream)["error"] and len(stream.getvalue().splitlines()) == 1


def test_a_person_gets_plain_text() -> None:
    record = logging.makeLogRecord({"name": "room", "levelname": "INFO", "msg": "hello", "server": Unspeakable()})
    assert "info    room: hello server=<Unspeakable>" in log.PlainFormatter().format(record)
