"""Logging set-up shared by every process: one line per record, text or JSON, to standard error; never a prompt."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any


class JsonFormatter(logging.Formatter):
    """One JSON object per record; fields given as `extra={"fields": {...}}` become keys."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        entry: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update(getattr(record, "fields", {}))
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """A readable line; structured fields follow as key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        line = super().format(record)
        fields = getattr(record, "fields", {})
        return line + "".join(f" {k}={v}" for k, v in fields.items())


def configure_logging(level: str = "info", *, style: str = "text") -> None:
    """Send quire's log records to standard error; `style` is `text` or `json`."""
    handler = logging.StreamHandler(sys.stderr)
    text = TextFormatter("%(asctime)s %(levelname).1s %(name)s: %(message)s", datefmt="%H:%M:%S")
    handler.setFormatter(JsonFormatter() if style == "json" else text)
    logger = logging.getLogger("quire")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
