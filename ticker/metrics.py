"""The figures of a running service in Prometheus' text format.

Nothing is counted twice: each part counts for itself and hands out a frozen struct, and this module only names the
fields when somebody looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import Final, TypeVar

import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from feeds.feed import Supervisor
from feeds.recorder import Recorder, RecorderStatistics
from ticker.broadcast import Broadcaster
from ticker.market import Market
from ticker.marketdata import SubscriptionStatistics
from ticker.orders.gateway import Gateway
from ticker.relay import RelayFeed, RelayStatistics
from ticker.replays import Replays
from ticker.server import Server
from ticker.timing import Timing
from ticker.web import Page

#: The event loop is asked this often how late it is.
LOOP_LAG_INTERVAL_S: Final = 0.1
#: Sessions that are asked, and series that are printed, before others may run: a millisecond.
ROWS_PER_PART: Final = 200
#: Figures by channel, as :class:`ticker.subscriber.ChannelStatistics` names them.
CHANNEL_GAUGES: Final = {
    "subscriptions": "Subscriptions now.",
    "groups": "Groups of subscriptions that are sent the same bytes.",
    "behind": "Subscriptions whose socket takes nothing.",
    "lag_s": "For how long the longest of them has been so.",
}
CHANNEL_COUNTERS: Final = {
    "published": "Source events that subscribers were taken past: delivered, conflated or dropped.",
    "delivered": "Source events sent to subscribers as rows.",
    "conflated": "Source events that a later state stood for.",
    "dropped": "Source events lost for a subscriber.",
}

_Row = TypeVar("_Row")


class Metrics:
    """Collects the statistics of every part of the service.

    Attributes:
        loop_lag: How late the event loop ran what was due.
    """

    def __init__(
        self,
        market: Market,
        server: Server,
        supervisor: Supervisor,
        replays: Replays,
        recorder: Recorder | None = None,
    ) -> None:
        self._market = market
        self._server = server
        self._supervisor = supervisor
        self._replays = replays
        self._recorder = recorder
        self.loop_lag = Timing()

    async def run(self) -> None:
        """Measure for ever how late the event loop is."""
        while True:
            due = trio.current_time() + LOOP_LAG_INTERVAL_S
            await trio.sleep_until(due)
            self.loop_lag.observe(trio.current_time() - due)

    def page(self, query: dict[str, str]) -> Page:
        """Return ``/metrics``."""
        return _page(self._service())

    def subscribers_page(self, query: dict[str, str]) -> Page:
        """Return ``/metrics/per-subscriber``: a series for every subscription, for those who want that many.

        It comes in parts and is printed here: 10,000 subscriptions take 20 ms, where the library takes 300 at once.
        """
        return 200, CONTENT_TYPE_PLAIN_0_0_4, self._subscribers()

    def _service(self) -> Iterator[Metric]:
        yield from self._broadcast(self._market.broadcaster)
        server = self._server.statistics()
        yield _gauge("connections", "Open connections of any kind.", server.connections)
        yield _gauge("sessions", "Open WebSocket sessions.", server.sessions)
        yield _gauge("backlog_bytes", "Bytes waiting in the outboxes of open sessions.", server.backlog_bytes)
        yield _counter("connections_accepted", "Connections accepted.", server.accepted)
        ended = CounterMetricFamily("ticker_connections_ended", "Connections ended, by reason.", labels=["reason"])
        for reason, count in sorted(server.ended.items()):
            ended.add_metric([reason], count)
        yield ended
        yield from self._orders(self._market.gateway)
        yield _counter("feed_restarts", "Restarts of the feed after it broke.", self._supervisor.restarts)
        yield _gauge("market_time_seconds", "Time of the market, Unix seconds.", self._market.history.ts / 1e9)
        replays = self._replays.statistics()
        yield _gauge("replays", "Replays that clients have asked for and that are not over.", len(replays.running))
        yield _counter("replays_begun", "Replays that clients have asked for.", replays.begun)
        yield _counter("replayed_rows", "Rows of tape that they have played.", replays.rows)
        if isinstance(self._supervisor.feed, RelayFeed):
            yield from _relaying(self._supervisor.feed.statistics())
        if self._recorder is not None:
            yield from _recording(self._recorder.statistics())

    def _orders(self, gateway: Gateway) -> Iterator[Metric]:
        done = gateway.statistics()
        yield _gauge("orders_available", "1 while the journal can be written, else 0.", done.available)
        yield _gauge("orders_open", "Open orders of all accounts.", done.open_orders)
        yield _gauge("orders_queued", "Order requests that wait.", done.queued)
        yield _counter("order_requests", "Order requests that the exchange has done or refused.", done.requests)
        yield _counter("journal_groups", "Groups of events written to the journal.", done.groups)
        yield _counter("journal_events", "Events in them.", done.events)
        yield _counter("journal_failures", "How often the journal could not be written.", done.failures)

    def _subscribers(self) -> Iterator[bytes]:
        told: list[_Labelled] = []
        for sessions in _parts(list(self._server.sessions.values())):
            told += [
                (_labels(session.id, row), row) for session in sessions for row in session.statistics().subscriptions
            ]
            yield b""
        for name, text in CHANNEL_COUNTERS.items():
            yield from _series(f"ticker_subscriber_{name}_total", "counter", text, told, attrgetter(name))
        text = "For how long its socket took nothing."
        yield from _series("ticker_subscriber_lag_seconds", "gauge", text, told, lambda row: row.lag_ms / 1000)

    def _broadcast(self, broadcaster: Broadcaster) -> Iterator[Metric]:
        told = broadcaster.statistics()
        yield _counter("batches", "Batches taken from the feed.", told.batches)
        yield _counter("events", "Trades, quotes and book rows in them.", told.events)
        yield _counter("sweeps", "Flushes of a topic to its subscribers.", told.sweeps)
        yield _counter("buffers", "Buffers offered to subscribers in sweeps.", told.buffers)
        yield _counter("fallen_behind", "How often a subscriber's socket took nothing.", told.fallen_behind)
        yield _counter("cut_off", "Subscribers that a lossless channel could not wait for.", told.cut_off)
        for name, text in CHANNEL_GAUGES.items():
            metric = name.replace("lag_s", "lag_seconds")  # units are spelled out there
            gauge = GaugeMetricFamily(f"ticker_{metric}", text, labels=["channel"])
            for channel, figures in told.channels.items():
                gauge.add_metric([channel], getattr(figures, name))
            yield gauge
        for name, text in CHANNEL_COUNTERS.items():
            counter = CounterMetricFamily(f"ticker_{name}", text, labels=["channel"])
            for channel, figures in told.channels.items():
                counter.add_metric([channel], getattr(figures, name))
            yield counter
        yield _histogram("flush_lateness", "From when a flush was due to its last subscriber.", broadcaster.lateness)
        yield _histogram("sweep_duration", "How long a flush took to reach its subscribers.", broadcaster.duration)
        yield _histogram("loop_lag", "How late the event loop ran what was due.", self.loop_lag)


def _relaying(told: RelayStatistics) -> Iterator[Metric]:
    yield _gauge("relay_connected", "1 while the relayed server is subscribed to, else 0.", told.connected)
    yield _gauge("relay_native", "1 where it numbers its events, so that nothing is missed unnoticed.", told.native)
    yield _counter("relay_messages", "Messages with market data that it sent.", told.messages)
    yield _counter("relay_rows", "Rows made of them.", told.rows)
    yield _counter("relay_connections", "Connections that came to subscribe.", told.connections)
    yield _counter("relay_holes", "How often something was missing in a stream.", told.holes)
    yield _counter("relay_missing", "Numbered events that are known to be missing.", told.missing)
    yield _counter("relay_mismatches", "Books without the checksum that the server gave.", told.mismatches)


def _recording(told: RecorderStatistics) -> Iterator[Metric]:
    yield _gauge("recording", "1 while what happens is recorded, 0 while the disk refuses.", told.state == "recording")
    yield _counter("recorded_rows", "Rows written to the log.", told.rows)
    yield _counter("recorded_bytes", "Bytes written to the log.", told.size)
    yield _counter("recorded_segments", "Segments of the log begun.", told.segments)
    yield _counter("recording_lost_rows", "Rows that the disk refused or was too slow for.", told.lost)
    yield _counter("recording_errors", "How often the disk refused.", told.errors)
    yield _gauge("recording_waiting_rows", "Rows not written yet.", told.waiting)
    yield _gauge("recording_waiting_seconds", "For how long the oldest of them has waited, at most.", told.waiting_s)


class _Page(Collector):
    """Hands metrics that were collected already to the library that prints them."""

    def __init__(self, metrics: Iterator[Metric]) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        """Return nothing: metrics are described as they are collected."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Return the metrics."""
        return self._metrics


def _page(metrics: Iterator[Metric]) -> Page:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(metrics))
    return 200, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(registry)


#: The labels of a subscription, as they are printed, and its counts.
_Labelled = tuple[str, SubscriptionStatistics]


def _labels(connection: int, row: SubscriptionStatistics) -> str:
    return f'{{connection="{connection}",sub_id="{row.sub_id}",channel="{row.channel}"}}'


def _series(
    name: str, kind: str, text: str, told: list[_Labelled], value: Callable[[SubscriptionStatistics], float]
) -> Iterator[bytes]:
    """Yield the text of a metric with a series for every subscription."""
    yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n".encode()
    for part in _parts(told):
        yield "".join([f"{name}{labels} {value(row)}\n" for labels, row in part]).encode()


def _parts(rows: list[_Row]) -> Iterator[list[_Row]]:
    for first in range(0, len(rows), ROWS_PER_PART):
        yield rows[first : first + ROWS_PER_PART]


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"ticker_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"ticker_{name}", text, value=value)


def _histogram(name: str, text: str, timing: Timing) -> Metric:
    return HistogramMetricFamily(f"ticker_{name}_seconds", text, buckets=timing.buckets(), sum_value=timing.total_s)
