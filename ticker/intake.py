"""How a batch reaches the history and the topics: whole, or event by event where somebody is told every one of them.

Tickers after every event are made by column where they can be; touches of books that stand in for quotes, and candles,
one event at a time. It must not know who is told.
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
    every = {topic.key.channel for topic in topics if topic.key.mode != "merge"} & {"ticker", "ohlc"}

    def book_changed(event: BookEvent) -> None:
        for topic in books:
            topic.book_changed(event)

    on_book = book_changed if books else None
    one_by_one, by_column = history.parted(batch) if every == {"ticker"} else (batch, None)
    for piece in one_by_one.by_event() if every else (batch,):
        history.apply(piece, on_book)
        for topic in topics:
            topic.applied(piece)
    if by_column:
        tickers = history.apply_each(by_column, on_book)
        for topic in topics:
            topic.applied_each(by_column, tickers)
