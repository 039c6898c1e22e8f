"""Takes order requests from sessions, has the exchange do them one after the other, and tells the accounts.

One task, :meth:`Gateway.run`, owns the exchange. It does what has come since the last time, writes all that has
happened to the journal as one group, and only then lets anybody know: replies and reports leave in the order in which
things happened, so a reply precedes every row that it causes. What the market does to resting orders between two
groups goes the same way.

**When the disk fails**, nobody is told what may not be on it. The journal is opened again, which says what really is;
a group that is not is answered ``unavailable`` and has not happened, and the exchange is built anew from what is. As
long as that does not succeed, requests are refused, also those that wait already, and resting orders neither fill nor
end; market data goes on. What ends orders meanwhile, a switch that falls or a market that is over, is done as soon as
the exchange is back.

The queue in front of the exchange is bounded; when it is full a request is refused, so that a session always reads on.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import msgspec
import trio
from msgspec import UNSET

from feeds.records import Batch, Marker
from feeds.venue import Venue
from ticker.errors import Code, ConfigError, JournalError, RequestError
from ticker.history import History
from ticker.listings import Listings
from ticker.orders import events
from ticker.orders.accounts import Accounts
from ticker.orders.callers import Callers
from ticker.orders.client import Client
from ticker.orders.exchange import Exchange, check_fits
from ticker.orders.group import Demand, Done, Group
from ticker.orders.journal import Journal
from ticker.orders.ledger import Ledger
from ticker.orders.methods import Answer, Methods, Work
from ticker.orders.models import LatencyModel
from ticker.orders.order import OPEN
from ticker.orders.params import PrivateParams
from ticker.orders.readers import Interest, Letter, Readers
from ticker.orders.switches import Switches
from ticker.wire import Request, params_of

logger = logging.getLogger(__name__)

QUEUE_DEPTH: Final = 10_000
#: The exchange works for about this long before what it did is written and others have their turn.
SLICE_S: Final = 0.002
#: The journal is opened again this often until that succeeds.
RETRY_S: Final = 1.0
#: How often readers of positions are told of other prices.
REVALUE_S: Final = 1.0
#: So many events after a snapshot there is another; recovery reads them in about ten seconds.
SNAPSHOT_EVENTS: Final = 1_000_000
#: A journal that begins with more events than this gets a snapshot at once.
SHORT_JOURNAL: Final = 10_000


#: Called when its turn has come; with None if there is no exchange any more.
Command = Callable[[Exchange | None], None]


class GatewayStatistics(msgspec.Struct, frozen=True):
    """What the gateway has done so far.

    Attributes:
        available: Whether the journal can be written.
        queued: Requests that wait.
        requests: That were done or refused by the exchange.
        groups: Written to the journal.
        events: In them.
        failures: How often the journal could not be written.
        open_orders: Of all accounts.
    """

    available: bool
    queued: int
    requests: int
    groups: int
    events: int
    failures: int
    open_orders: int


class Gateway:
    """The way from sessions to the exchange and back.

    Args:
        history: The market's last state.
        listings: The market's names.
        venue: What orders meet.
        accounts: Who may trade.
        journal: Not open yet.
        latency: How long requests are on their way; None: no time at all.
        remembered: How many orders that have ended are remembered.

    Attributes:
        accounts: Who may trade.
    """

    def __init__(
        self,
        history: History,
        listings: Listings,
        venue: Venue,
        accounts: Accounts,
        journal: Journal,
        *,
        latency: LatencyModel | None = None,
        remembered: int = 100_000,
    ) -> None:
        self._history = history
        self._venue = venue
        self.accounts = accounts
        self._journal = journal
        self._latency = latency
        self._remembered = remembered
        self._exchange: Exchange | None = None  # None: nothing can be done now
        self._readers = Readers(history)
        self._switches = Switches()
        self._callers = Callers(accounts, self._switches)
        self._methods = Methods(listings, self._callers)
        self._queue: deque[Command] = deque()
        self._underway: list[tuple[float, int, Command]] = []
        self._numbers = itertools.count()
        self._work = trio.Event()
        self._group = Group()
        self._arrivals: dict[Client, float] = {}
        self._unsaved = 0
        self._began = False
        self._doing = False
        self._counts = {"requests": 0, "groups": 0, "events": 0, "failures": 0}

    @property
    def busy(self) -> bool:
        """Whether there is anything to be done, written or told, and it can be."""
        waiting = self._queue or self._group.done or self._group.events
        return self._exchange is not None and (self._doing or bool(waiting))

    # Running

    async def recover(self) -> None:
        """Open the journal and take up what it holds; before that every request is refused.

        Raises:
            ConfigError: The journal is not this market's.
            JournalError: It cannot be read or written.
        """
        await self._journal.reopen()
        self._exchange = self._restored()
        self._note()
        await self._write(self._take(SHORT_JOURNAL))

    async def run(self) -> None:
        """Do requests for ever.

        A cancel lets what was done be written first, so that a clean stop loses nothing and needs no recovery.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._switches.run, self._cancel)
                nursery.start_soon(self._revalue)
                while True:
                    self._doing = False
                    await self._wait_work()
                    self._doing = True
                    self._do()
                    await self._commit()
        finally:
            with trio.CancelScope(shield=True):
                await self._finish()

    def _restored(self) -> Exchange:
        """Return an exchange with what the journal holds."""
        ledger = Ledger(self._remembered)
        recovered = self._journal.recovered
        try:
            if recovered.snapshot is not None:
                ledger.restore(recovered.snapshot)
            for payload in recovered.events:
                ledger.apply(events.decode(payload))
        except (msgspec.MsgspecError, KeyError) as error:
            raise ConfigError(
                f"the journal was written by another version ({error!r}): give another --journal"
            ) from error
        check_fits(ledger, self._history.instruments, self.accounts)
        self._unsaved = len(recovered.events)
        self._readers.read(ledger, self._journal.identity)
        return Exchange(self._history, self._venue, self.accounts, ledger)

    async def _wait_work(self) -> None:
        while not (self._queue or self._group.done or self._group.events):
            due = self._underway[0][0] if self._underway else float("inf")
            with trio.move_on_at(due):
                await self._work.wait()
            self._work = trio.Event()
            while self._underway and self._underway[0][0] <= trio.current_time():
                self._queue.append(heapq.heappop(self._underway)[2])

    def _do(self) -> None:
        exchange = self._exchange
        assert exchange is not None  # _commit waits until there is one
        until = time.perf_counter() + SLICE_S
        while self._queue and time.perf_counter() < until:
            self._queue.popleft()(exchange)

    async def _commit(self) -> None:
        group = self._take(SNAPSHOT_EVENTS)
        expected = self._journal.head + len(group.events)
        try:
            await self._write(group)
        except JournalError as error:
            self._counts["failures"] += 1
            logger.error("orders are not available: %s", error)
            await self._find_out(group, expected)

    def _take(self, limit: int) -> Group:
        """Take what has happened; more than ``limit`` events since the last snapshot make another one.

        It is made at once: what the market does while the group is written is not on disk when the snapshot is.
        """
        assert self._exchange is not None
        group, self._group = self._group, Group()
        if self._unsaved + len(group.events) > limit:
            group.snapshot = self._exchange.ledger.snapshot()
        return group

    async def _write(self, group: Group) -> None:
        """Write a group to the journal, tell what it did, and write its snapshot, so that recovery is short.

        Raises:
            JournalError: It may not be on disk, and nobody was told; or everybody was, and only its snapshot is not.
        """
        if group.events:
            with trio.CancelScope(shield=True):  # or nobody would know what was done
                await self._journal.append(group.events)
            self._counts["groups"] += 1
            self._counts["events"] += len(group.events)
            self._unsaved += len(group.events)
        self._deliver(group)
        if group.snapshot is not None:
            await self._journal.snapshot(group.snapshot)
            self._unsaved = 0

    def _collect(self) -> list[Letter]:
        """Take what has happened on the exchange into the group; return what is to be told of it."""
        assert self._exchange is not None
        happened, reports = self._exchange.drain()
        self._group.events += [events.encode(event) for event in happened]
        self._group.ended += [report.key for report in reports if report.status not in OPEN]
        return self._readers.tell(reports) if reports else []

    def _deliver(self, group: Group) -> None:
        group.deliver(self._readers.send)
        self._switches.ended(group.ended)

    # When the disk fails

    async def _find_out(self, group: Group, expected: int) -> None:
        """Find out whether a group is on disk, tell those who wait, and go on from what is there once that can be.

        Args:
            group: What may not be on disk.
            expected: The number of the last event if it is.
        """
        self._exchange = None
        self._refuse_waiting()
        while self._exchange is None:
            try:
                await self._journal.reopen()
                happened = self._journal.head == expected
                if happened:
                    self._deliver(group)
                else:
                    group.refuse(_unavailable())
                exchange = self._restored()
                await self._journal.snapshot(exchange.ledger.snapshot())  # it also shows that there is room again
                self._resume(exchange, [] if happened else group.demands)
            except JournalError as error:
                group.refuse(RequestError("EService:Unknown outcome", Code.STATUS_UNKNOWN, retry_after_ms=1000))
                logger.error("orders are still not available: %s", error)
                await trio.sleep(RETRY_S)

    def _refuse_waiting(self) -> None:
        waiting = [*self._queue, *(command for *_, command in sorted(self._underway))]
        self._queue.clear()
        self._underway.clear()
        for command in waiting:
            command(None)

    def _resume(self, exchange: Exchange, undone: list[Demand]) -> None:
        exchange.drain()  # accounts that were not in the journal; they are in its snapshot
        if self._began:
            exchange.new_epoch()
        self._switches.keep({key for account in exchange.ledger.accounts.values() for key in account.open_orders})
        demands = undone + self._group.demands
        self._exchange, self._group, self._unsaved = exchange, Group(), 0
        for letter in self._readers.refresh():
            self._readers.send(letter)
        for demand in demands:
            self._demand(demand)
        logger.warning("orders are available again")

    async def _finish(self) -> None:
        try:
            if self._exchange is not None:
                self._note()  # a defect may have ended us amid a command, and the snapshot has what that did
                await self._write(self._take(0))
        except JournalError as error:
            logger.error("the journal ends without a snapshot: %s", error)
        await self._journal.aclose()

    # Requests

    def methods(self, *, native: bool) -> list[str]:
        """Return the names of the order methods."""
        return self._methods.names(native=native)

    def submit(self, client: Client, request: Request, time_in: str) -> None:
        """Queue an order request.

        Raises:
            RequestError: It is malformed, not allowed, or cannot be queued; nothing was entered.
        """
        self._enqueue(client, request, time_in, self._methods.read(client, request))

    def _enqueue(self, client: Client, request: Request, time_in: str, work: Work) -> None:
        if self._exchange is None:
            raise _unavailable()
        if len(self._queue) + len(self._underway) >= QUEUE_DEPTH:
            raise RequestError("EService:Busy", Code.BUSY, retry_after_ms=100)

        def command(exchange: Exchange | None) -> None:
            if exchange is None:
                client.refuse(request, time_in, _unavailable())
                return
            self._counts["requests"] += 1
            try:
                answers = work(exchange)
            except RequestError as error:
                answers = [Answer(error=error)]
            self._group.done.append(Done(client, request, time_in, answers, self._collect()))

        self._schedule(client, command)

    def _schedule(self, client: Client, command: Command) -> None:
        """Have a command of a client done after those that it has sent before."""
        if self._exchange is None:  # they have all been refused
            command(None)
        elif self._latency is None:
            self._queue.append(command)
        else:
            due = max(trio.current_time() + self._latency.delay_s(), self._arrivals.get(client, 0.0))
            self._arrivals[client] = due
            heapq.heappush(self._underway, (due, next(self._numbers), command))
        self._work.set()

    # The market

    def market_moved(self, batch: Batch) -> None:
        """Let a batch, already in the history, do to resting orders what it does."""
        if self._exchange is not None:
            self._exchange.moved(batch)
            self._note()

    def mark(self, marker: Marker) -> None:
        """Take in a marker of the feed, already in the history."""
        if marker.kind == "end":
            self._demand(Exchange.ended)
        elif marker.kind == "epoch" and self._began:
            self._demand(Exchange.new_epoch)
        elif marker.kind == "epoch":  # orders of the journal return to the market, as they do after every failure
            self._began = True
            if self._exchange is not None:
                self._exchange.new_epoch()

    def _cancel(self, account: str, reason: str, keys: frozenset[int] | None) -> None:
        """A switch has fallen."""
        self._demand(lambda exchange: exchange.cancel_all(account, reason, keys))

    def _demand(self, demand: Demand) -> None:
        """Do what nobody has asked for: now, or as soon as the exchange is back."""
        if demand not in self._group.demands:  # a tape that loops has epochs without end, and one ends everything
            self._group.demands.append(demand)
        if self._exchange is not None:
            demand(self._exchange)
            self._note()

    def _note(self) -> None:
        """Have what happened without a request written and told."""
        letters = self._collect()
        if letters or self._group.events:
            self._group.tell(letters)
            self._work.set()

    async def _revalue(self) -> None:
        while True:
            await trio.sleep(REVALUE_S)
            letters = self._readers.revalue() if self._exchange is not None else []
            if letters:
                self._group.tell(letters)
                self._work.set()

    # Private channels

    def subscribe(self, client: Client, request: Request, time_in: str) -> None:
        """Begin to tell a client about its account.

        Raises:
            RequestError: It may not, or is subscribed already.
        """
        params = params_of(request, PrivateParams)
        account = self._callers.account(client, params.token, "read")
        interest = Interest(params.snap_trades, params.snap_orders, params.order_status, params.snapshot)
        resume = None if params.resume is UNSET or not client.native else params.resume
        self._readers.check(client, params.channel)

        def work(exchange: Exchange) -> list[Answer]:
            self._readers.check(client, params.channel)
            messages, recovered = self._readers.opening(client, account, params.channel, interest, resume)
            self._readers.add(client, account, params.channel, interest)
            ext: dict[str, Any] = {"epoch": self._readers.epoch, "sequence": exchange.ledger.accounts[account].reports}
            if resume is not None:
                ext["recovered"] = recovered
            answer = Answer(params.accepted, ext=ext)
            letters = [Letter(client, message) for message in messages]
            undo = partial(self._readers.discard, client, params.channel)
            self._group.done.append(Done(client, request, time_in, [answer], letters, undo))
            return []

        self._enqueue(client, request, time_in, work)

    def unsubscribe(self, client: Client, request: Request, time_in: str) -> None:
        """Stop telling a client about its account.

        Raises:
            RequestError: It is not subscribed.
        """
        params = params_of(request, PrivateParams)
        self._readers.remove(client, params.channel)
        client.accept(request, time_in, {"channel": params.channel})

    def reads(self, client: Client) -> bool:
        """Whether a client has a private subscription."""
        return self._readers.reads(client)

    def remove(self, client: Client, *, clean: bool) -> None:
        """Forget a client whose connection has ended; ``clean`` if it said goodbye."""
        self._readers.forget(client)
        account = self._callers.forget(client)
        if account is not None:
            if not clean:
                self._switches.leaving(account, client)
            self._schedule(client, lambda exchange: self._lost(client, account))  # after what it has sent before
        self._arrivals.pop(client, None)

    def _lost(self, client: Client, account: str) -> None:
        self._readers.forget(client)
        self._switches.lost(account, client)

    @property
    def durability(self) -> str:
        """What becomes of orders when the server ends: they are ``durable``, in ``memory``, or ``unavailable`` now."""
        if self._exchange is None:
            return "unavailable"
        return "durable" if self._journal.durable else "memory"

    def statistics(self) -> GatewayStatistics:
        """Return the counts so far."""
        accounts = () if self._exchange is None else self._exchange.ledger.accounts.values()
        return GatewayStatistics(
            available=self._exchange is not None,
            queued=len(self._queue) + len(self._underway),
            open_orders=sum(len(account.open_orders) for account in accounts),
            **self._counts,
        )


def _unavailable() -> RequestError:
    return RequestError("EService:Unavailable", Code.UNAVAILABLE, retry_after_ms=1000)
