"""``ours WHAT RATE SECONDS [send]``: this project's server over a scripted feed of one symbol at RATE quotes a second.

WHAT is ``ticker``, the real channel with every event sent, or a number: then ``trade`` is replaced by a topic that
sends a frame of that many bytes for every batch, and batches are empty, so that bus, broadcaster and outboxes are
measured without history's and codec's work per event. With ``send`` it is as on a system that gives no io_uring.
Everything else is the service as users start it.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from functools import partial

import numpy as np
import trio

from feeds import clock, records
from feeds.instruments import Instrument, Instruments
from feeds.records import Batch, Event, Marker, Quotes, Trades
from tests.benchmarks.peers.tick import end_after, tick_frame
from ticker import app, topics
from ticker.config import Options
from ticker.history import History
from ticker.listings import Listings
from ticker.server import ServerOptions
from ticker.session import SessionOptions
from ticker.topics.topic import EMPTY, Flush, Mark, OnSlow, Piece, Topic, TopicKey


class ScriptedFeed:
    """One trade, then quotes of BTC/USD at a fixed rate, each stamped with the wall time at which it was made."""

    name = "scripted"
    mode = "sim"
    instruments = Instruments(
        [Instrument(symbol="BTC/USD", base="BTC", quote="USD", price_precision=2, qty_precision=8)]
    )

    def __init__(self, rate: float, *, quotes: bool) -> None:
        self._rate = rate
        self._batches = self._quotes if quotes else self._nothing

    async def run(self, out: trio.abc.SendChannel[Event]) -> None:
        """Write for ever; a late event does not delay those after it."""
        began = trio.current_time()
        await out.send(Marker(kind="epoch", ts=clock.wall_ns(), reason="the benchmark begins"))
        for seq, batch in enumerate(self._batches(), 1):
            await out.send(batch)
            await trio.sleep_until(began + seq / self._rate)

    def _nothing(self) -> Iterator[Batch]:
        while True:
            yield Batch(ts=clock.wall_ns())

    def _quotes(self) -> Iterator[Batch]:
        first = self._common(1)
        price, qty, side = np.array([6_712_345]), np.array([12_500_000]), np.array([records.BUY], np.int8)
        trades = Trades(**first, price=price, qty=qty, side=side, trade_id=np.array([1]))
        yield Batch(ts=int(first["ts_recv"][0]), trades=trades)
        for seq in itertools.count(2):
            common = self._common(seq)
            bid = price + seq % 100
            quotes = Quotes(**common, bid_px=bid, bid_qty=qty, ask_px=bid + 10, ask_qty=qty)
            yield Batch(ts=int(common["ts_recv"][0]), quotes=quotes)

    def _common(self, seq: int) -> dict[str, np.ndarray]:
        now = np.array([clock.wall_ns()])
        return {
            "ts_recv": now, "ts_event": now, "seq": np.array([seq]), "instrument": np.zeros(1, np.int32),
            "flags": np.array([records.LAST], np.uint8),
        }  # fmt: skip


class PrebuiltTopic(Topic):
    """Sends a frame of ``frame_bytes`` bytes for every batch; who is behind gets the newest."""

    frame_bytes = 150

    def __init__(self, key: TopicKey, history: History, listings: Listings) -> None:
        super().__init__(key, history, listings, history.quote_position)
        self._seq = 0
        self._frame = b""

    def applied(self, batch: Batch) -> None:
        """See :meth:`Topic.applied`."""
        self.dirty = bool(self._wanted)

    def _collect_state(self, flush: Flush) -> None:
        before = self._seq
        self._seq += 1
        self._told.fill(self._seq)
        self._frame = tick_frame(self._seq, self.frame_bytes)
        for listing in self._interest:
            flush.add(listing, before, Piece(self._frame, 1, 1))

    def _collect_rows(self, flush: Flush) -> None:
        self._collect_state(flush)

    def _missed(self, listing: int, mark: Mark | None, on_slow: OnSlow) -> tuple[Piece, Mark]:
        return (EMPTY if mark is None else self._merged(listing, mark, self.mark(listing))), self.mark(listing)

    def _merged(self, listing: int, mark: Mark, told: Mark) -> Piece:
        return Piece(self._frame, told.position - mark.position, 1)

    def _snapshot(self, listing: int) -> tuple[Piece, Mark]:
        return EMPTY, self.mark(listing)


if __name__ == "__main__":
    what, rate, seconds, *how = sys.argv[1:]
    end_after(int(seconds))
    if how:
        app.open_ring = {"send": lambda: None}[how[0]]
    if what != "ticker":
        PrebuiltTopic.frame_bytes = int(what)
        topics.KINDS["trade"] = PrebuiltTopic
    feed = ScriptedFeed(float(rate), quotes=what == "ticker")
    options = Options(server=ServerOptions(port=0), session=SessionOptions(ticker_interval_ms=0))
    trio.run(app.serve_feed, feed, trio.Event(), options, partial(print, flush=True))
