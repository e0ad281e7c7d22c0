"""Logging: one line an event. JSON for machines; on a terminal, the same event for a person.

Use the standard library: `log.info("server started", extra={"server": id})`. The request id of the work at hand travels in
a context variable and is on every line. Never log a secret: tokens, passwords and keys have no place in `extra` or text.
"""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

request_id: ContextVar[str] = ContextVar("request_id", default="")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def setup(daemon: str, level: str = "info", stream: TextIO | None = None) -> None:
    """Replaces the root logger's handlers. `level`: debug, info, warning, error."""
    out = stream or sys.stderr
    handler = logging.StreamHandler(out)
    handler.setFormatter(PlainFormatter() if out.isatty() else JsonFormatter(daemon))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {k: v for k, v in vars(record).items() if k not in _STANDARD}


class JsonFormatter(logging.Formatter):
    def __init__(self, daemon: str) -> None:
        super().__init__()
        self._daemon = daemon

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "daemon": self._daemon,
            "room": record.name,
            "event": record.getMessage(),
        }
        if rid := request_id.get():
            line["request_id"] = rid
        line = line | {k: v for k, v in _extras(record).items() if k not in line}  # no extra passes for the daemon or the time
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return _json(line)


def _json(line: dict[str, object]) -> str:
    """Never fails: what JSON cannot say is said by `repr`, and what has no `repr` by its type."""
    try:
        text = json.dumps(line, default=_text, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        text = json.dumps({key: _text(value) for key, value in line.items()}, ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode()  # lone surrogates, as file names can have


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"


class PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        extras = " ".join(f"{k}={_text(v)}" for k, v in _extras(record).items())
        rid = f" [{request_id.get()}]" if request_id.get() else ""
        text = f"{clock} {record.levelname.lower():7} {record.name}: {record.getMessage()} {extras}".rstrip() + rid
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text
