"""How a batch reaches the history and the topics: whole, or event by event where somebody is told every one of them.

What holds after every event is made by column where it can be, and with touches of books that stand in for quotes one
event at a time. It must not know who is told.
"""

from __future__ import annotations

from collections.abc import Sequence

from feeds.book import BookEvent
from feeds.records import Batch
from ticker.history import History
from ticker.topics.topic import Topic


def take_in(batch: Batch, history: History, topics: Sequence[Topic]) -> None:
    """Have the history take in a batch, and each topic mark what it has to tell of it."""
    books = [topic for topic in topics if topic.key.channel == "book"]
    every = [topic.key for topic in topics if topic.key.mode != "merge"]
    tickers = any(key.channel == "ticker" for key in every)
    candles = {int(key.variant) for key in every if key.channel == "ohlc"}

    def book_changed(event: BookEvent) -> None:
        for topic in books:
            topic.book_changed(event)

    on_book = book_changed if books else None
    each = tickers or bool(candles)
    one_by_one, by_column = history.parted(batch, tickers=tickers) if each else (batch, None)
    for piece in one_by_one.by_event() if each else (batch,):
        history.apply(piece, on_book)
        for topic in topics:
            topic.applied(piece)
    if by_column:
        afterwards = history.apply_each(by_column, on_book, tickers=tickers, candles=candles)
        for topic in topics:
            topic.applied_each(by_column, afterwards)
