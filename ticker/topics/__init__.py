"""Topics: a channel with its parameters, encoded once for all its subscribers. See :mod:`ticker.topics.topic`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ticker.history import History
from ticker.listings import Listings
from ticker.topics.book import BookTopic
from ticker.topics.ohlc import OhlcTopic
from ticker.topics.ticker import TickerTopic
from ticker.topics.topic import Topic, TopicKey
from ticker.topics.trade import PackedTradeTopic, TradeTopic

#: What makes the topics of each channel.
KINDS: Final[dict[str, Callable[[TopicKey, History, Listings], Topic]]] = {
    "ticker": TickerTopic,
    "trade": TradeTopic,
    "book": BookTopic,
    "ohlc": OhlcTopic,
}


def open_topic(key: TopicKey, history: History, listings: Listings) -> Topic:
    """Return a new topic that nobody wants anything of yet."""
    kind = PackedTradeTopic if key.packed and key.channel == "trade" else KINDS[key.channel]
    return kind(key, history, listings)
