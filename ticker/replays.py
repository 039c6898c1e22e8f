"""Replays that clients ask for: each a recording, played to those who joined it, with a market of its own.

A replay has a name, its *session*; whoever says the same name and source joins it. It has its own history, broadcaster
and pace, so nobody in the server's own market notices. At speed 0 it goes as fast as the slowest of its lossless
subscribers reads. It ends when it is stopped, or a while after the last of its clients has left.

:meth:`Replays.run` holds the nursery of all of them. This module must not know requests or sockets.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, Final, Protocol, TypeVar

import msgspec
import trio

from feeds.clock import parse_gap
from feeds.errors import FeedError, OptionError
from feeds.pace import BATCH_ROWS
from feeds.records import Batch, Marker
from feeds.replay import ReplayFeed
from feeds.store import Recording
from ticker.broadcast import Broadcaster
from ticker.bulletin import Bulletin, Reader
from ticker.bus import PatientBus
from ticker.control import perform
from ticker.errors import Code, RequestError
from ticker.fanout import FanOut
from ticker.history import History, HistoryOptions
from ticker.library import Library
from ticker.listings import Listings
from ticker.market import Publication
from ticker.prints import ROW_BYTES
from ticker.selection import Selection
from ticker.wire import Instant, ReplayAction, instant_ns

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: A tape waits for its first subscriber, and then this long for the rest of its subscriptions.
SETTLE_S: Final = 0.5
#: For how long a new epoch waits for lossless subscribers who have not yet taken the end of the last one.
PATIENCE_S: Final = 2.0
#: Requests that may wait for their recording to be opened.
QUEUE_DEPTH: Final = 64
#: Packed records number the listings of replays from here on; the server's own are below.
FIRST_LISTING: Final = 1 << 24


class ReplaysOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What clients may replay, and how much of it.

    Attributes:
        directory: The folder with the recordings; empty: none.
        max_sessions: Replays at a time.
        max_sessions_per_connection: Those that one client may have joined at a time.
        linger_s: For how many seconds a replay waits for somebody to come back after its last client has left.
        digest_events: A digest of the stream is told every so many rows, of the server's own replay as well.
    """

    directory: str = ""
    max_sessions: Annotated[int, msgspec.Meta(ge=1)] = 16
    max_sessions_per_connection: Annotated[int, msgspec.Meta(ge=1)] = 4
    linger_s: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    digest_events: Annotated[int, msgspec.Meta(ge=1)] = 100_000


class ReplaysStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What clients have had replayed.

    Attributes:
        begun: Replays so far.
        rows: Rows of tape that they have played; those that restate the market after a seek not counted.
        running: Those that are not over, the oldest first: source, members, rows, and where they are, as JSON. They
            have no names here, since whoever knows a name can join.
    """

    begun: int
    rows: int
    running: list[dict[str, Any]]


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """A replay that a client asks for.

    Attributes:
        session: Its name; empty: a new one that nobody else knows.
        source: The recording's name.
        symbols: Only these; empty: all.
        start: Where it begins; None: at the first row.
        end: Before which instant it ends; None: after the last row.
        speed: Tape seconds per second, or infinity.
        start_paused: Whether it waits to be resumed instead of for its first subscription.
        loop: Whether it begins again at its end.
        gap: What becomes of silences, as :func:`feeds.clock.parse_gap` reads it.
    """

    session: str
    source: str
    symbols: tuple[str, ...]
    start: Instant | None
    end: Instant | None
    speed: float
    start_paused: bool
    loop: bool
    gap: str


class Member(Reader, Protocol):
    """What a replay needs of a client."""

    def dismissed(self, replay: Replay) -> None:
        """Take note that a replay is over."""


class Replay:
    """A recording that is played to its members.

    Args:
        wish: What is played, under which name.
        recording: The tape.
        options: For how long it waits, how often it says its digest.
        history: How much is kept for those who missed it; at least what one batch of the tape has.
        explain: Returns what clients are told of an error.
        first_listing: As in :class:`ticker.listings.Listings`.
        fan_out: Sends to many.

    Raises:
        OptionError: Nothing of the tape is between ``from`` and ``to``.
        RequestError: It does not have one of the symbols, or an instant is none.

    Attributes:
        wish: As given.
        market: What one can subscribe to.
        playback: Controls it.
        bulletin: Tells where it is.
        members: Clients that have joined.
        began: Set with the first epoch, or at the end if there was none.
        error: Why it has ended, if it was not stopped.
    """

    def __init__(
        self,
        wish: Wish,
        recording: Recording,
        options: ReplaysOptions,
        history: HistoryOptions,
        explain: Callable[[BaseException], str],
        first_listing: int = FIRST_LISTING,
        fan_out: FanOut | None = None,
    ) -> None:
        self.wish = wish
        self._explain = explain
        self.members: dict[Member, None] = {}
        self.began = trio.Event()
        self.error = ""
        self._heard = trio.Event()
        self._selection = Selection(recording.instruments, wish.symbols)
        self._feed = ReplayFeed(
            recording,
            speed=wish.speed,
            loop=wish.loop,
            gap=parse_gap(wish.gap),
            start_paused=wish.start_paused,
            from_ns=None if wish.start is None else instant_ns(wish.start, "from", recording.start_ns),
            to_ns=None if wish.end is None else instant_ns(wish.end, "to", recording.start_ns),
            hold_end=True,
            wait_start=None if wish.start_paused else self._wait_start,
        )
        self.playback = self._feed.playback
        instruments = self._selection.instruments
        kept = History(instruments, _roomy(history, len(instruments)))
        listings = Listings(instruments, wish.session, first_listing)
        self.bulletin = Bulletin(self.playback, kept, options.digest_events, wish.session)
        self.market = self._published(kept, listings, fan_out)
        self._linger_s = options.linger_s
        self._life = trio.CancelScope()
        self._patience = trio.CancelScope()  # of the present wait for slow readers; a tape to be moved has none
        self._beginning = False  # an epoch has begun, and the market as it is there has not been published

    def _published(self, history: History, listings: Listings, fan_out: FanOut | None) -> Publication:
        return Publication(
            name=self._feed.name,
            mode=self._feed.mode,
            history=history,
            listings=listings,
            broadcaster=Broadcaster(history, listings, self._heard, fan_out=fan_out),
            heard=self._heard,
            playback=self.playback,
            bulletin=self.bulletin,
        )

    async def _wait_start(self) -> None:
        await self._heard.wait()
        await trio.sleep(SETTLE_S)

    # Who listens

    def join(self, member: Member) -> None:
        """Take in a client."""
        self.members[member] = self.bulletin.readers[member] = None
        self._life.deadline = math.inf

    def leave(self, member: Member) -> None:
        """Let a client go."""
        del self.members[member]
        self.bulletin.readers.pop(member, None)
        self.linger()

    def linger(self) -> None:
        """Where nobody is left, or nobody has come, wait for a while for somebody, and end."""
        if not self.members:
            self._life.deadline = trio.current_time() + self._linger_s

    def perform(self, wish: ReplayAction) -> None:
        """Do with the tape what a member asks for; as :func:`ticker.control.perform`."""
        perform(self.market, wish)
        if self.playback.interrupted or not self._patient():
            self._patience.cancel()

    def standing(self) -> dict[str, Any]:
        """Return what is played, to how many, and where it is, as JSON; without its name."""
        rows = self.playback.statistics().rows
        return {"source": self.wish.source, "members": len(self.members), "rows": rows, **self.bulletin.standing()}

    # The tape

    async def run(self) -> None:
        """Play the tape until it is stopped, breaks, or nobody has listened for a while; never raises."""
        try:
            with self._life:
                await self._play()
        except* FeedError as errors:
            error: BaseException = errors
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            self.error = self._explain(error)
            logger.warning("replay %s of %s has ended: %s", self.wish.session, self.wish.source, error)
        except* Exception:
            self.error = "internal error"
            logger.exception("replay %s of %s ended by a defect", self.wish.session, self.wish.source)
        self.playback.stop()
        self.began.set()
        self.bulletin.finish(self.error)
        for member in list(self.members):
            member.dismissed(self)

    async def _play(self) -> None:
        bus = PatientBus(self._publish, self._mark, self._patient, self._wait_told)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.market.broadcaster.run)
            nursery.start_soon(self.bulletin.run)
            await self._feed.run(bus)
            await self.market.broadcaster.settle()
            nursery.cancel_scope.cancel()

    def _patient(self) -> bool:
        return math.isinf(self.playback.speed) and not self._beginning

    async def _wait_told(self) -> None:
        if not self.playback.interrupted:
            with trio.CancelScope() as self._patience:
                await self.market.broadcaster.wait_told()

    def _publish(self, batch: Batch) -> None:
        batch = self._selection.of(batch)
        self._beginning = False
        self.market.broadcaster.publish(batch)
        self.bulletin.pass_over(batch)

    async def _mark(self, marker: Marker) -> None:
        if marker.kind == "epoch":
            with trio.move_on_after(PATIENCE_S):
                await self.market.broadcaster.wait_told()
        await self.market.broadcaster.mark(marker)
        self._beginning = marker.kind == "epoch"
        self.began.set()
        self.bulletin.mark(marker)


def _roomy(options: HistoryOptions, instruments: int) -> HistoryOptions:
    """Return options by which a whole batch is kept for a lossless subscriber, whatever instrument it is of."""
    trades = BATCH_ROWS * max(instruments, 1)
    return msgspec.structs.replace(
        options,
        trade_rows=max(options.trade_rows, trades),
        trade_bytes=max(options.trade_bytes, trades * ROW_BYTES),
        event_rows=max(options.event_rows, BATCH_ROWS),
        event_bytes=max(options.event_bytes, BATCH_ROWS * 1024),
    )


class Replays:
    """All replays that clients have asked for.

    Args:
        library: What may be replayed.
        options: And how much of it.
        history: How much a replay keeps for those who missed it.
        fan_out: Sends to many.
    """

    def __init__(
        self, library: Library, options: ReplaysOptions, history: HistoryOptions, fan_out: FanOut | None = None
    ) -> None:
        self._fan_out = fan_out
        self.options = options
        self._library = library
        self._history = history
        self._replays: dict[str, Replay] = {}
        self._first_listing = FIRST_LISTING
        self._begun = self._rows = 0  # rows of those that are over
        self._jobs, self._todo = trio.open_memory_channel[Callable[[trio.Nursery], Awaitable[None]]](QUEUE_DEPTH)

    def ask_sources(self, answer: Callable[[list[str]], None], refuse: Callable[[RequestError], None]) -> None:
        """Have somebody told which recordings there are, or why nobody knows.

        Raises:
            RequestError: Too many wait.
        """
        self._do(self._names, answer, refuse)

    def ask(self, wish: Wish, welcome: Callable[[Replay], None], refuse: Callable[[RequestError], None]) -> None:
        """Ask for a replay: for the one of that name, or a new one.

        Args:
            wish: Which.
            welcome: Called with it once it runs.
            refuse: Called instead where there is none to be had.

        Raises:
            RequestError: Too many wait for theirs.
        """

        def let_in(replay: Replay) -> None:
            welcome(replay)
            replay.linger()

        self._do(partial(self._found, wish), let_in, refuse)

    def _do(
        self,
        work: Callable[[trio.Nursery], Awaitable[T]],
        answer: Callable[[T], None],
        refuse: Callable[[RequestError], None],
    ) -> None:
        try:
            self._jobs.send_nowait(partial(_answered, work, answer, refuse))
        except trio.WouldBlock:
            raise RequestError("EService:Busy", Code.BUSY) from None

    async def run(self) -> None:
        """Open and run replays, for ever. The folder is read for one client after the other."""
        async with trio.open_nursery() as nursery:
            async for job in self._todo:
                await job(nursery)

    async def _names(self, nursery: trio.Nursery) -> list[str]:
        return await trio.to_thread.run_sync(self._library.names)

    async def _found(self, wish: Wish, nursery: trio.Nursery) -> Replay:
        replay = self._replays.get(wish.session)
        if replay is None:
            replay = await self._opened(wish)
            self._replays[replay.wish.session] = replay
            self._begun += 1
            await nursery.start(self._run, replay)
        if replay.wish.source != wish.source:
            text = f"session {wish.session} is a replay of another source"
            raise RequestError(text, Code.OTHER_SOURCE, field="source")
        if replay.playback.stopped:
            raise RequestError(replay.error or "the session has just been stopped", Code.UNREADABLE_SOURCE)
        return replay

    async def _opened(self, wish: Wish) -> Replay:
        if len(self._replays) >= self.options.max_sessions:
            text = f"the server runs {self.options.max_sessions} replays already"
            raise RequestError(text, Code.TOO_MANY_SESSIONS)
        recording = await trio.to_thread.run_sync(self._library.open, wish.source)
        if not wish.session:
            wish = msgspec.structs.replace(wish, session=secrets.token_hex(8))
        try:
            replay = Replay(
                wish,
                recording,
                self.options,
                self._history,
                self._library.explained,
                self._first_listing,
                self._fan_out,
            )
        except OptionError as error:  # of the tape nothing is left between from and to
            raise RequestError(str(error), Code.BAD_TIME, field="from") from None
        self._first_listing += len(replay.market.listings)
        return replay

    async def _run(self, replay: Replay, *, task_status: trio.TaskStatus[None]) -> None:
        """Run a replay; it has started once its first epoch has begun, or once it is over without."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(replay.run)
            await replay.began.wait()
            task_status.started()
        del self._replays[replay.wish.session]
        self._rows += replay.playback.statistics().rows

    def statistics(self) -> ReplaysStatistics:
        """Return the counts so far, and what runs."""
        running = [replay.standing() for replay in self._replays.values()]
        rows = self._rows + sum(row["rows"] for row in running)
        return ReplaysStatistics(begun=self._begun, rows=rows, running=running)


async def _answered(
    work: Callable[[trio.Nursery], Awaitable[T]],
    answer: Callable[[T], None],
    refuse: Callable[[RequestError], None],
    nursery: trio.Nursery,
) -> None:
    """Do what a client waits for, and tell it how that went."""
    try:
        result = await work(nursery)
    except RequestError as error:
        refuse(error)
    except Exception:  # one file must not end the server
        logger.exception("what a client wanted to replay was not to be had")
        refuse(RequestError("internal error", Code.UNAVAILABLE))
    else:
        answer(result)
