"""Instants and durations as people write them, in integer nanoseconds: no float comes in between."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

import numpy as np

from feeds.errors import OptionError

_UNITS: Final = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION: Final = re.compile(r"([+-]?)(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_INSTANT: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?))?(Z|[+-]\d\d:\d\d)?", re.IGNORECASE
)


def parse_duration(text: str) -> int:
    """Return the ns that "250ms", "-1.5s", "+10us" or "2h" means.

    Raises:
        OptionError: It is none of these, or no whole number of ns.
    """
    match = _DURATION.fullmatch(text.strip())
    if match:
        sign, number, unit = match.groups()
        ns = Decimal(number) * _UNITS[unit]
        if ns == (whole := int(ns)) and whole < 2**62:
            return -whole if sign == "-" else whole
    raise OptionError(f"{text!r} is not a duration like 250ms, -1.5s, 10us or 2h")


def parse_instant(text: str, start_ns: int) -> int:
    """Return the instant, int ns UTC, that a text means.

    Args:
        text: A date, or a date and a time down to the nanosecond, in UTC unless a zone follows
            ("2024-08-08T23:56:00.000000001Z", "2024-08-09 01:56+02:00"); or how long after the start ("+90s").
        start_ns: What is then meant by the start, ns UTC.

    Raises:
        OptionError: It is neither, or no year that int64 ns can hold.
    """
    text = text.strip()
    if text.startswith("+"):
        return start_ns + parse_duration(text)
    match = _INSTANT.fullmatch(text)
    if match and 1678 <= int(text[:4]) <= 2261:
        date, time, zone = match.groups()
        try:
            ns = int(np.datetime64(f"{date}T{time or '00:00'}", "ns").astype(np.int64))
        except ValueError:  # the 31st of February, the 25th hour
            pass
        else:
            return ns - _zone_ns(zone)
    raise OptionError(f"{text!r} is not an instant like 2024-08-08T23:56:00Z, nor +90s after the start")


def _zone_ns(zone: str | None) -> int:
    """Return how far a zone is ahead of UTC."""
    if zone is None or zone in "Zz":
        return 0
    hours, minutes = zone[1:].split(":")
    return (-1 if zone[0] == "-" else 1) * (int(hours) * 60 + int(minutes)) * _UNITS["m"]
