"""Trades and quotes of a batch on one line for each instrument. It knows tables only, and no state before them."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from feeds.records import I32, I64, Quotes, Trades, event_times


class Timeline(msgspec.Struct, frozen=True):
    """Events ordered by instrument, and of each in the order of the tape.

    Attributes:
        trades, quotes: The tables in this order.
        instrument: int32 dense id, shape ``(m,)``.
        seq: int64 place on the tape, shape ``(m,)``.
        times: When each happened, int64 ns UTC, shape ``(m,)``.
        is_quote: bool, shape ``(m,)``; the others are trades.
        bounds: Where the events of each instrument begin, and ``m``.
    """

    trades: Trades
    quotes: Quotes
    instrument: I32
    seq: I64
    times: I64
    is_quote: npt.NDArray[np.bool_]
    bounds: npt.NDArray[np.intp]

    def since_trade(self, after: npt.NDArray[Any], before: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what holds after each event where only trades change it.

        Args:
            after: What holds after each trade, in the order of ``trades``.
            before: What held before the batch, shape ``(m,)``.
        """
        return self._since(~self.is_quote, after, before)

    def since_quote(self, after: npt.NDArray[Any], before: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the same where only quotes change it."""
        return self._since(self.is_quote, after, before)

    def _since(
        self, changes: npt.NDArray[np.bool_], after: npt.NDArray[Any], before: npt.NDArray[Any]
    ) -> npt.NDArray[Any]:
        if not len(after):
            return before
        count = np.cumsum(changes)
        starts = self.bounds[:-1]
        elsewhere: I64 = np.repeat((count - changes)[starts], np.diff(self.bounds))  # changes of instruments before it
        return np.where(count > elsewhere, after[count - 1], before)


def timeline(trades: Trades, quotes: Quotes) -> Timeline:
    """Return the line of at least one trade or quote."""
    trades, quotes = (table.take(np.argsort(table.instrument, kind="stable")) for table in (trades, quotes))  # type: ignore[assignment]
    instrument = np.concatenate((trades.instrument, quotes.instrument))
    seq = np.concatenate((trades.seq, quotes.seq))
    order = np.lexsort((seq, instrument))
    instrument = instrument[order]
    edges = np.flatnonzero(np.diff(instrument, prepend=-1))
    return Timeline(
        trades=trades,
        quotes=quotes,
        instrument=instrument,
        seq=seq[order],
        times=np.concatenate((event_times(trades), event_times(quotes)))[order],
        is_quote=order >= len(trades),
        bounds=np.append(edges, len(order)),
    )
