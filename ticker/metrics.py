"""The figures of a running server in Prometheus' text format.

Nothing is counted twice: each part counts for itself and hands out a frozen struct, and this module only names the
fields when somebody looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from feeds.feed import Supervisor
from ticker.broadcast import BroadcastStatistics
from ticker.market import Market
from ticker.server import Server


class Metrics(Collector):
    """Collects the statistics of every part of the service."""

    def __init__(self, market: Market, server: Server, supervisor: Supervisor) -> None:
        self._market = market
        self._server = server
        self._supervisor = supervisor
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def page(self) -> tuple[str, bytes]:
        """Return content type and text of ``/metrics``."""
        return CONTENT_TYPE_PLAIN_0_0_4, generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Return nothing: metrics are described as they are collected."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric with its value of now."""
        yield from self._broadcast(self._market.broadcaster.statistics())
        server = self._server.statistics()
        yield _gauge("connections", "Open connections of any kind.", server.connections)
        yield _gauge("sessions", "Open WebSocket sessions.", server.sessions)
        yield _gauge("backlog_bytes", "Bytes waiting in the outboxes of open sessions.", server.backlog_bytes)
        yield _counter("connections_accepted", "Connections accepted.", server.accepted)
        ended = CounterMetricFamily("ticker_connections_ended", "Connections ended, by reason.", labels=["reason"])
        for reason, count in sorted(server.ended.items()):
            ended.add_metric([reason], count)
        yield ended
        yield _counter("feed_restarts", "Restarts of the feed after it broke.", self._supervisor.restarts)
        yield _gauge("market_time_seconds", "Time of the market, Unix seconds.", self._market.history.ts / 1e9)

    def _broadcast(self, told: BroadcastStatistics) -> Iterator[Metric]:
        yield _counter("batches", "Batches taken from the feed.", told.batches)
        yield _counter("events", "Trades, quotes and book rows in them.", told.events)
        yield _counter("sweeps", "Flushes of a topic to its subscribers.", told.sweeps)
        yield _counter("buffers", "Buffers accepted by subscribers in sweeps.", told.buffers)
        yield _counter("fallen_behind", "How often a subscriber's socket took nothing.", told.fallen_behind)
        yield _counter("cut_off", "Subscribers that a lossless channel could not wait for.", told.cut_off)
        yield _gauge("subscriptions", "Subscriptions to topics now.", told.subscriptions)
        late = GaugeMetricFamily("ticker_flush_lateness_ms", "Lateness of recent flushes.", labels=["quantile"])
        late.add_metric(["0.5"], told.late_p50_ms)
        late.add_metric(["0.99"], told.late_p99_ms)
        yield late


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"ticker_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"ticker_{name}", text, value=value)
