"""The recordings that clients may replay: those of one folder, by their plain names.

A name is looked up in the list of what the folder holds and never made into a path by itself, so no name leads out of
it; neither does a symbolic link. Everything here reads the disk and belongs into a worker thread. It must not know who
asks, nor how a recording is played.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from feeds import layout
from feeds.errors import FeedError
from feeds.store import Recording, open_recording
from ticker.errors import Code, ConfigError, RequestError
from ticker.wire import MAX_ECHO

_PARTS: Final = (*layout.TABLES, "instruments")
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ -]{0,127}")


class Library:
    """The recordings of a folder; they may come and go while it is served.

    Args:
        directory: The folder; empty: there are no recordings.

    Raises:
        ConfigError: There is no such folder.
    """

    def __init__(self, directory: str) -> None:
        self._folder = Path(directory).resolve() if directory else None
        if self._folder is not None and not self._folder.is_dir():
            raise ConfigError(f"[replays] directory {directory}: there is no such folder; --replays takes one")

    def names(self) -> list[str]:
        """Return the names of the recordings, sorted.

        Raises:
            RequestError: The folder cannot be read any more.
        """
        return sorted(self._names())

    def open(self, name: str) -> Recording:
        """Open a recording.

        Raises:
            RequestError: There is none of this name, or it cannot be read; the text does not tell where it lies.
        """
        if name not in self._names() or self._folder is None:
            raise RequestError(f"Unknown source {name[:MAX_ECHO]}", Code.UNKNOWN_SOURCE, field="source")
        try:
            return open_recording(self._folder / name)
        except FeedError as error:
            raise RequestError(self.explained(error), Code.UNREADABLE_SOURCE, field="source") from error

    def explained(self, error: BaseException) -> str:
        """Return what is wrong with a recording, without where the folder is."""
        return str(error).replace(f"{self._folder}/", "")[:MAX_ECHO]

    def _names(self) -> set[str]:
        """Return the names of those recordings of which every file is one of the folder's own."""
        found, foreign = set(), set()
        for path in self._entries():
            name, _, part = path.name.removesuffix(".parquet").rpartition(".")
            if path.suffix == ".parquet" and part in _PARTS and _NAME.fullmatch(name):
                if not self._owns(path):
                    foreign.add(name)
                elif part in layout.TABLES:
                    found.add(name)
        return found - foreign

    def _owns(self, path: Path) -> bool:
        """Return whether an entry is a file that does not lie elsewhere; one that the system cannot follow is none."""
        try:
            return path.is_file() and path.resolve().parent == self._folder
        except OSError:
            return False

    def _entries(self) -> list[Path]:
        try:
            return [] if self._folder is None else list(self._folder.iterdir())
        except OSError as error:
            text = f"the folder of recordings cannot be read: {error.strerror}"
            raise RequestError(text, Code.UNREADABLE_SOURCE) from error
