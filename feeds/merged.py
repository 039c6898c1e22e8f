"""Several recordings as one: on one clock, with one list of instruments.

Each keeps its rows as they are, but for three things. ``ts_recv`` is moved by the recording's *offset*, which mends
recorders whose clocks disagreed, or puts latency between venues; ``ts_event`` is what the venue said and stays. The
dense ids become those of the common list, in which the same symbol of two recordings is two instruments. And ``seq``
is given anew by whoever merges the rows (:func:`feeds.merge.in_order`): the total order is (``ts_recv``, rank of the
recording, ``seq`` in it), and the rank is the place in which it was named. All times are UTC, whatever zone a file
names beside them.

This module must not know of files or of pacing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np

from feeds.errors import OptionError
from feeds.instruments import Instrument, Instruments
from feeds.merge import in_order
from feeds.records import I32, Batch, Levels, Quotes, Table, Trades
from feeds.sources import Playable, Source
from feeds.store import Recording, open_recording

TableT = TypeVar("TableT", bound=Table)


class Part:
    """One recording as a part of several.

    Args:
        recording: Where the rows are.
        ids: int32, shape ``(n,)``: by its own dense ids those of the common list.
        offset_ns: Added to ``ts_recv``.
    """

    def __init__(self, recording: Recording, ids: I32, offset_ns: int) -> None:
        self._recording = recording
        self._ids = ids
        self._offset_ns = offset_ns
        self.start_ns = recording.start_ns + offset_ns
        self.end_ns = recording.end_ns + offset_ns

    def trades(self, from_ns: int | None = None) -> Iterator[Trades]:
        """See :meth:`~feeds.sources.Source.trades`."""
        return self._moved(self._recording.trades, from_ns)

    def quotes(self, from_ns: int | None = None) -> Iterator[Quotes]:
        """See :meth:`~feeds.sources.Source.quotes`."""
        return self._moved(self._recording.quotes, from_ns)

    def levels(self, from_ns: int | None = None) -> Iterator[Levels]:
        """See :meth:`~feeds.sources.Source.levels`."""
        return self._moved(self._recording.levels, from_ns)

    def state_before(self, ts_ns: int) -> Batch:
        """See :meth:`~feeds.sources.Playable.state_before`."""
        state = self._recording.state_before(ts_ns - self._offset_ns)
        return Batch(ts=ts_ns, quotes=self._placed(state.quotes), levels=self._placed(state.levels))

    def _moved(self, read: Callable[[int | None], Iterator[TableT]], from_ns: int | None) -> Iterator[TableT]:
        return map(self._placed, read(None if from_ns is None else from_ns - self._offset_ns))

    def _placed(self, table: TableT) -> TableT:
        ids, ts_recv = self._ids[table.instrument], table.ts_recv + self._offset_ns
        return msgspec.structs.replace(table, instrument=ids, ts_recv=ts_recv)


class MergedRecording:
    """Several recordings on one clock; a :class:`~feeds.sources.Playable`.

    A symbol that only one of them has keeps its name. One that several have is called ``SYMBOL.VENUE`` in each, or
    ``SYMBOL.NAME`` after the recordings where their venues are not all different; of its other names it keeps those
    that nothing else has.

    Args:
        recordings: At least one; their order is their rank.
        offsets_ns: By name of a recording, what is added to its ``ts_recv``.

    Attributes:
        name: Their names, joined by "+".
        instruments: Of the first, then of the second, and so on.
        start_ns: First ``ts_recv`` of any, offset included, ns UTC.
        end_ns: Last ``ts_recv`` of any, offset included, ns UTC.

    Raises:
        OptionError: Two recordings have one name, or an offset is for none of them.
    """

    def __init__(self, recordings: Sequence[Recording], offsets_ns: dict[str, int] | None = None) -> None:
        offsets = offsets_ns or {}
        names = [recording.name for recording in recordings]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise OptionError(f"two recordings are named {twice[0]!r}; rename one, its name tells them apart")
        if unknown := sorted(offsets.keys() - set(names)):
            raise OptionError(f"offset for {unknown[0]!r}, which is not replayed; there are {', '.join(names)}")
        self.name = "+".join(names)
        self.instruments = Instruments(_told_apart(recordings))
        self._parts: list[Part] = []
        taken = 0
        for recording in recordings:
            ids = np.arange(taken, taken + len(recording.instruments), dtype=np.int32)
            self._parts.append(Part(recording, ids, offsets.get(recording.name, 0)))
            taken += len(ids)
        self.start_ns = min(part.start_ns for part in self._parts)
        self.end_ns = max(part.end_ns for part in self._parts)

    @property
    def sources(self) -> Sequence[Source]:
        """What is merged, by rank."""
        return self._parts

    def state_before(self, ts_ns: int) -> Batch:
        """Return the markets of all recordings at an instant (ns UTC), see :meth:`feeds.store.Recording.state_before`.

        Raises:
            RecordingError: A row on which it rests is not fit for the bus.
        """
        states = [part.state_before(ts_ns) for part in self._parts]
        pieces: list[list[Any]] = [[state.levels for state in states], [state.quotes for state in states]]
        levels, quotes = in_order(pieces, -sum(map(len, states)))
        return Batch(ts=ts_ns, levels=levels, quotes=quotes)


def open_recordings(paths: Sequence[str], offsets_ns: dict[str, int] | None = None) -> Playable:
    """Return what lies at one or several paths, as one tape.

    Args:
        paths: Each as :func:`feeds.store.open_recording` takes it; at least one.
        offsets_ns: By name of a recording, what is added to its ``ts_recv``.

    Raises:
        RecordingError: One of them cannot be opened.
        OptionError: Two recordings have one name, or an offset is for none of them.
    """
    recordings = [open_recording(path) for path in paths]
    return recordings[0] if len(recordings) == 1 and not offsets_ns else MergedRecording(recordings, offsets_ns)


def _told_apart(recordings: Sequence[Recording]) -> Iterator[Instrument]:
    """Yield the instruments of all recordings; no two of them have a name in common."""
    having = Counter(name for recording in recordings for name in recording.instruments.names)
    venues = [recording.venue() for recording in recordings]
    by_venue = all(venues) and len(set(venues)) == len(venues)
    for recording, venue in zip(recordings, venues, strict=True):
        for instrument in recording.instruments:
            symbol = instrument.symbol
            if having[symbol] > 1:
                symbol = f"{symbol}.{venue if by_venue else recording.name}"
            aliases = tuple(alias for alias in instrument.aliases if having[alias] == 1)
            yield msgspec.structs.replace(instrument, symbol=symbol, aliases=aliases)
