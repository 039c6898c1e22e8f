"""A batch reaches topics whole, by column or one event at a time; none of them shows in what a topic tells."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from feeds.records import BUY, SELL, Batch
from tests.scripted import BTC, ETH, INSTRUMENTS, Tape
from ticker.history import History, HistoryOptions
from ticker.intake import take_in
from ticker.listings import Listings
from ticker.topics import open_topic
from ticker.topics.topic import TopicKey

TICKER = TopicKey("ticker", "bbo", mode="batch", native=True)
LATEST = TopicKey("ticker", "trades", native=True)
CANDLES = TopicKey("ohlc", 1, mode="batch", native=True)
BOOK = TopicKey("book", 10, mode="batch", native=True)


def batch() -> Batch:
    """Quotes, trades and a book in one instant."""
    tape = Tape()
    quotes = tape.quotes((BTC, 90, 1, 110, 2), (ETH, 50, 1, 60, 2), (BTC, 91, 1, 110, 2))
    levels = tape.levels(BTC, (BUY, 90, 1), (SELL, 110, 2), snapshot=True)
    trades = tape.trades((BTC, BUY, 110, 1), (ETH, BUY, 60, 0), (BTC, SELL, 91, 2))
    return Batch(ts=trades.ts, quotes=quotes.quotes, levels=levels.levels, trades=trades.trades)


def told(*keys: TopicKey) -> list[dict[int, bytes]]:
    """Return what the topics of these keys tell of two such batches."""
    history, listings = History(INSTRUMENTS, HistoryOptions()), Listings(INSTRUMENTS)
    history.epoch = "0000abcd"
    topics = [open_topic(key, history, listings) for key in keys]
    for topic in topics:
        topic.acquire(range(len(listings)))
    for _ in range(2):
        take_in(batch(), history, topics)
    return [topic.collect().pieces for topic in topics]


@pytest.mark.parametrize("others", [(CANDLES,), (LATEST,), (BOOK,), (LATEST, BOOK), (LATEST, BOOK, CANDLES)])
def test_what_a_topic_tells_does_not_depend_on_who_else_is_told(others: Sequence[TopicKey]) -> None:
    every_quote, *rest = told(TICKER, *others)
    assert [every_quote] == told(TICKER)
    assert rest == [told(key)[0] for key in others]
    assert b'"last":4,"n":3,' in every_quote[BTC]
