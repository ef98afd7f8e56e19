"""Logs of the master and the agents: events with their values, on stderr."""

from __future__ import annotations

import logging
import sys

import structlog

from paceline.settings import LogLevel


def configure_log(level: LogLevel) -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
