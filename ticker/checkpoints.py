"""The digest of a stream, at every so many rows of it: two runs that say the same have had the same rows.

It knows batches and counts. Where a batch was cut, and how fast it came, makes no difference.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from feeds.records import Batch, StreamDigest


class Checkpoint(msgspec.Struct, frozen=True):
    """A digest of the rows of an epoch so far.

    Attributes:
        events: How many rows; of one instant trades count first, then quotes, then rows of books.
        sha256: As :meth:`feeds.records.StreamDigest.hexdigest` has it.
    """

    events: int
    sha256: str


class Checkpoints:
    """Takes the digest of a stream whenever another ``every`` rows have come, and at its end.

    Attributes:
        last: The last one of this epoch; None before the first.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._rows = 0
        self._digest = StreamDigest()
        self.last: Checkpoint | None = None

    def begin(self) -> None:
        """Begin an epoch: nothing has come yet."""
        self._rows, self._digest, self.last = 0, StreamDigest(), None

    def pass_over(self, batch: Batch) -> bool:
        """Take in a batch; return whether a checkpoint lies in it."""
        before = self.last
        while (wanted := self._every - self._rows % self._every) <= len(batch):
            first, batch = _cut(batch, wanted)
            self._add(first)
            self._note()
        self._add(batch)
        return self.last is not before

    def end(self) -> Checkpoint:
        """Take the digest of everything, where the stream has ended."""
        if self.last is not None and self.last.events == self._rows:
            return self.last
        return self._note()

    def _add(self, batch: Batch) -> None:
        self._digest.update(batch)
        self._rows += len(batch)

    def _note(self) -> Checkpoint:
        self.last = Checkpoint(self._rows, self._digest.hexdigest())
        return self.last


def _cut(batch: Batch, rows: int) -> tuple[Batch, Batch]:
    """Return the first ``rows`` rows of a batch, and the others."""
    tables: tuple[Any, ...] = (batch.trades, batch.quotes, batch.levels)
    order = np.argsort(np.concatenate([table.ts_recv for table in tables]), kind="stable")[:rows]
    ends = np.cumsum([len(table) for table in tables])
    counts = np.bincount(np.searchsorted(ends, order, side="right"), minlength=len(tables)).tolist()
    first = [table.slice(0, count) for table, count in zip(tables, counts, strict=True)]
    rest = [table.slice(count, len(table)) for table, count in zip(tables, counts, strict=True)]
    return tuple(  # type: ignore[return-value]  # two of them
        Batch(ts=batch.ts, trades=trades, quotes=quotes, levels=levels) for trades, quotes, levels in (first, rest)
    )
