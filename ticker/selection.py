"""Some of a tape's instruments, numbered anew. It knows columns; it must not know listings or what is played."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec
import numpy as np

from feeds.errors import UnknownSymbolError
from feeds.instruments import Instruments
from feeds.records import Batch, Table
from ticker.errors import Code, RequestError
from ticker.wire import MAX_ECHO

TableT = TypeVar("TableT", bound=Table)


class Selection:
    """The instruments that somebody wants of a tape.

    Args:
        instruments: The tape's.
        symbols: Their names, aliases too; empty: all.

    Attributes:
        instruments: Those chosen, in the tape's order.

    Raises:
        RequestError: The tape does not have one of them.
    """

    def __init__(self, instruments: Instruments, symbols: Sequence[str]) -> None:
        self._number = np.full(len(instruments), -1, np.int32)
        try:
            chosen = sorted({instruments.id_of(symbol) for symbol in symbols}) or range(len(instruments))
        except UnknownSymbolError as error:
            raise RequestError(str(error)[:MAX_ECHO], Code.UNKNOWN_SYMBOL, field="symbol") from None
        self._number[chosen] = np.arange(len(chosen))
        whole = len(chosen) == len(instruments)
        self.instruments = instruments if whole else Instruments(instruments[i] for i in chosen)

    def of(self, batch: Batch) -> Batch:
        """Return what a batch has of them; it may be nothing."""
        if len(self.instruments) == len(self._number):
            return batch
        trades, quotes, levels = self._rows(batch.trades), self._rows(batch.quotes), self._rows(batch.levels)
        return Batch(ts=batch.ts, trades=trades, quotes=quotes, levels=levels)

    def _rows(self, table: TableT) -> TableT:
        rows = table.take(self._number[table.instrument] >= 0)
        return msgspec.structs.replace(rows, instrument=self._number[rows.instrument])
