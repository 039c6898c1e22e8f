"""What a long recording without a file of instruments taught, kept for the next time it is opened.

How many decimals a price has is only known when every row was looked at: five sizes of binance_spot_20240808 have one
more than all others. For a recording of a hundred million rows that takes half a minute, so what was learned is kept
in the user's cache folder (``$XDG_CACHE_HOME/ticker``, by default ``~/.cache/ticker``), under a name that changes with
the files' paths, sizes and times of change. The recording's own folder is never written to; a user without a home, as
in a container, has no such folder, and learns it again each time.

This module must not know how instruments are inferred.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from feeds import layout
from feeds.instruments import Instruments

logger = logging.getLogger(__name__)

#: A recording of fewer rows is looked through in less than half a second.
LONG_ROWS: Final = 1_000_000
#: Of what is kept: to be counted up when the same files teach something else than before.
_VERSION: Final = 1


def recall(files: Iterable[Path]) -> Instruments | None:
    """Return the instruments that were learned from these very files; None if they are not known."""
    path = _place(files)
    if path is None:
        return None
    try:
        return layout.instruments_from_table(pq.read_table(path))
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        logger.warning("%s cannot be used and is made anew: %s", path, error)
        return None


def remember(files: Iterable[Path], instruments: Instruments) -> None:
    """Keep what was learned from these files; where that cannot be written it is learned again."""
    path = _place(files)
    if path is None:
        logger.warning("there is no home folder to keep what was learned of the recording in; set XDG_CACHE_HOME")
        return
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(layout.instruments_to_table(instruments), temporary)
        temporary.replace(path)
    except OSError as error:
        logger.warning("cannot keep what was learned of the recording, so the next start takes as long: %s", error)


def _place(files: Iterable[Path]) -> Path | None:
    """Return where the instruments of these files are kept; None if the user has no cache folder."""
    identity = hashlib.sha256(b"%d" % _VERSION)
    for file in sorted(files):
        stat = file.stat()
        identity.update(f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode(errors="surrogateescape"))
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # pathlib's word for a user without a home
        return None
    return cache / "ticker" / f"{identity.hexdigest()}.instruments.parquet"
