"""The composition root: builds every part once and runs all of them. The whole nursery tree is in :func:`serve`."""

from __future__ import annotations

import gc
import logging
import resource
import signal
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any, Final

import trio

from feeds.feed import Feed, Supervisor
from feeds.market import MarketFeed
from feeds.recorder import Recorder
from feeds.replay import ReplayFeed, ReplayOptions, open_replay
from feeds.simulate import SimulatedFeed
from feeds.tape import Tape
from ticker.broadcast import Broadcaster
from ticker.bulletin import Bulletin
from ticker.bus import Bus
from ticker.config import Options
from ticker.fanout import FanOut
from ticker.history import History
from ticker.library import Library
from ticker.listings import Listings
from ticker.market import Market
from ticker.metrics import Metrics
from ticker.orders.accounts import demo_accounts, read_accounts
from ticker.orders.gateway import Gateway
from ticker.orders.journal import MEMORY, Journal, default_path
from ticker.orders.models import UniformLatency
from ticker.relay import RelayFeed, open_relay
from ticker.remote import PATH, Remote
from ticker.replays import SETTLE_S, Replays
from ticker.rest import PRIVATE, Rest
from ticker.server import Server
from ticker.stats import Stats
from ticker.transport import open_listener
from ticker.uring import open_ring
from ticker.web import PageMaker, Web

logger = logging.getLogger(__name__)

#: A stopping server waits this long until everything has been sent, and then for its clients; with forced closes after
#: it, it is gone within 5 s.
FLUSH_S: Final = 0.5
DRAIN_S: Final = 2.0
RECONNECT_AFTER_MS: Final = 1000


async def open_feed(options: Options, heard: trio.Event) -> Feed:
    """Return the feed that the options ask for.

    Args:
        options: Everything that can be set.
        heard: Set once somebody has subscribed; a recording is not played to nobody.

    Raises:
        FeedError: A recording cannot be read, or another server cannot be reached.
        OptionError: An option has a value that is not allowed.
    """
    if options.relay is not None:
        return await open_relay(options.relay)
    if options.replay is not None:
        return _open_replay(options.replay, heard)
    if options.market is not None:
        return MarketFeed(options.market)
    return SimulatedFeed(options.simulation)


def _open_replay(options: ReplayOptions, heard: trio.Event) -> ReplayFeed:
    async def wait_start() -> None:
        logger.info("the recording is ready; it begins with the first subscription")
        await heard.wait()
        await trio.sleep(SETTLE_S)

    return open_replay(options, hold_end=True, wait_start=wait_start)


def build_market(feed: Feed, heard: trio.Event, options: Options, fan_out: FanOut | None = None) -> Market:
    """Return a market with nothing in it yet, whose orders have not been recovered.

    Raises:
        ConfigError: The file of accounts cannot be read.
    """
    history, listings = History(feed.instruments, options.history), Listings(feed.instruments)
    orders = options.orders
    gateway = Gateway(
        history,
        listings,
        feed.venue if isinstance(feed, MarketFeed) else Tape(history),
        read_accounts(orders.accounts) if orders.accounts else demo_accounts(feed.instruments),
        Journal(_journal_path(feed, options)),
        latency=UniformLatency(orders.latency) if orders.latency.delays else None,
        remembered=orders.remembered,
    )
    playback = feed.playback if isinstance(feed, ReplayFeed) else None
    every = options.replays.digest_events
    return Market(
        name=feed.name,
        mode=feed.mode,
        history=history,
        listings=listings,
        broadcaster=Broadcaster(history, listings, heard, lambda: gateway.busy, fan_out),
        heard=heard,
        playback=playback,
        bulletin=None if playback is None else Bulletin(playback, history, every),
        gateway=gateway,
        origin=_origin(options, feed),
        away=(lambda: not feed.statistics().connected) if isinstance(feed, RelayFeed) else (lambda: False),
    )


def _journal_path(feed: Feed, options: Options) -> str:
    if options.orders.journal:
        return options.orders.journal
    if not options.server.port:  # a server for the moment: nobody knows its address beforehand
        return MEMORY
    return str(default_path().with_name(f"{feed.name}-{options.server.port}.journal"))


def _origin(options: Options, feed: Feed) -> dict[str, Any]:
    """Return what ``status`` says about how to have the same market again."""
    if isinstance(feed, SimulatedFeed):
        return {"model": options.simulation.model, "seed": options.simulation.seed}
    if isinstance(feed, MarketFeed):
        return {"model": "order book", "seed": feed.options.seed}
    return {"source": feed.name} if isinstance(feed, ReplayFeed) else {}


async def serve(options: Options, announce: Callable[[str], None]) -> None:
    """Serve the market that the options ask for until SIGINT or SIGTERM, then drain.

    Args:
        options: Everything that can be set.
        announce: Called with one line once connections are accepted.

    Raises:
        ConfigError: The address cannot be had, or the journal is that of another market.
        JournalError: The journal cannot be read or written.
        FeedError: A recording cannot be read, at the start or later, or cannot be begun.
    """
    heard = trio.Event()
    await serve_feed(await open_feed(options, heard), heard, options, announce)


async def serve_feed(feed: Feed, heard: trio.Event, options: Options, announce: Callable[[str], None]) -> None:
    """Serve a feed; otherwise as :func:`serve`.

    Args:
        feed: What happens in the market.
        heard: Set by the first subscription.
        options: Everything that can be set.
        announce: Called with one line once connections are accepted.
    """
    fan_out = FanOut(open_ring())
    market, supervisor = build_market(feed, heard, options, fan_out), Supervisor(feed)
    replays = Replays(Library(options.replays.directory), options.replays, options.history, fan_out)
    remote = Remote(market)
    pages: dict[str, PageMaker] = {}
    server = Server(
        market,
        Web(pages, {PATH: remote.control, PRIVATE: Rest(market.gateway.accounts).private}),
        options.server,
        session=options.session,
        guard=options.guard,
        trust=options.trust,
        replays=replays,
    )
    recorder = None if options.record is None else Recorder(feed, options.record)
    metrics = Metrics(market, server, supervisor, replays, recorder)
    stats = Stats(market, server, supervisor, replays, metrics.loop_lag)
    pages |= {"/healthz": stats.health, "/api/stats": stats.stats, "/metrics": metrics.page}
    pages |= {"/metrics/per-subscriber": metrics.subscribers_page, PATH: remote.state}
    _allow_many_files()
    listener = open_listener(options.server.host, options.server.port)
    await market.gateway.recover()
    _calm_collector()

    first = None if recorder is None else recorder.take
    feeding = trio.CancelScope()
    bus = Bus(market.happened, market.marked, ready=market.broadcaster.wait_swept, first=first)

    with closing(fan_out), trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as connections:  # outermost: what must drain ends last
            async with trio.open_nursery() as tasks:
                if recorder is not None:
                    await tasks.start(recorder.run)
                tasks.start_soon(_feed, feeding, supervisor, bus, market.bulletin)
                if market.bulletin is not None:
                    tasks.start_soon(market.bulletin.run)
                tasks.start_soon(market.broadcaster.run)
                tasks.start_soon(market.gateway.run)
                tasks.start_soon(replays.run)
                tasks.start_soon(server.heartbeats)
                tasks.start_soon(metrics.run)
                tasks.start_soon(
                    partial(trio.serve_listeners, server.serve_connection, [listener], handler_nursery=connections)
                )
                announce(_address(options.server.host, listener.address[1]))
                async for _ in signals:
                    break
                feeding.cancel()
                with trio.move_on_after(FLUSH_S):
                    await market.broadcaster.settle()  # what waits for its interval
                server.drain(RECONNECT_AFTER_MS)
                with trio.move_on_after(DRAIN_S):
                    await server.wait_empty()
                tasks.cancel_scope.cancel()
            connections.cancel_scope.cancel()


async def _feed(feeding: trio.CancelScope, supervisor: Supervisor, bus: Bus, bulletin: Bulletin | None) -> None:
    with feeding:
        await supervisor.run(bus)
    if feeding.cancelled_caught:
        return
    if bulletin is not None:
        bulletin.finish()
    logger.info("feed %s has ended; its last state is still served", supervisor.feed.name)


def _address(host: str, port: int) -> str:
    netloc = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"ticker listening on ws://{netloc}/v2 (http://{netloc}/)"


def _calm_collector() -> None:
    """Have the garbage collector look less often, and never again at what was made so far.

    A market keeps hundreds of thousands of small objects that live long and hold no cycles; collecting as often as
    Python does by default cost a fifth of the encoding time at 10,000 ticker rows/s.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _allow_many_files() -> None:
    """Raise the soft limit of open files to the hard one: every subscriber is a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
