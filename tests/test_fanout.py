"""One buffer to many sockets: a ring does what a loop over ``send`` does, to every socket and never to another."""

from __future__ import annotations

import array
import random
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scripted import sweeps
from tests.serving import CLOSE, TEXT, House, Peer, client_frame, open_house
from ticker import uring
from ticker.fanout import FanOut, Short
from ticker.outbox import REFUSING, Sink
from ticker.uring import Uring, open_ring

needs_ring = pytest.mark.skipif(open_ring() is None, reason="the system gives no io_uring")
ROOM = 16
#: How subscribers end their connections: without a word, by a Close frame, by breaking the protocol.
GOODBYES = (b"", client_frame(CLOSE, (1000).to_bytes(2)), b"\xff\xff", client_frame(TEXT, b"\xff"))


class Pairs:
    """Connected sockets: our ends, and what the others got."""

    def __init__(self, number: int) -> None:
        self._ends = [socket.socketpair() for _ in range(number)]
        self.sinks: list[Sink] = [ours for ours, _ in self._ends]
        for ours, theirs in self._ends:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
            ours.setblocking(False)
            theirs.setblocking(False)

    @property
    def files(self) -> array.array[int]:
        return array.array("i", [sink.fileno() for sink in self.sinks])

    def read(self, place: int) -> bytes:
        got = b""
        with suppress(BlockingIOError, ConnectionResetError):
            while data := self._ends[place][1].recv(1 << 20):
                got += data
        return got

    def leave(self, place: int) -> None:
        self._ends[place][1].close()

    def close(self) -> None:
        for ours, theirs in self._ends:
            ours.close()
            theirs.close()


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    pairs = Pairs(ROOM)
    yield pairs
    pairs.close()


def outcomes(short: list[Short]) -> list[tuple[int, object]]:
    """What is comparable of what did not go whole."""
    return [
        (place, type(outcome) if isinstance(outcome, OSError) else outcome) for place, outcome in sorted(short, key=str)
    ]


@needs_ring
def test_a_ring_sends_to_all_however_often_its_queues_have_gone_round(pairs: Pairs) -> None:
    ring, sent = Uring(ROOM), [b""] * ROOM
    rng = random.Random(1)
    for turn in range(300):
        number, data = rng.randint(1, ROOM), b"%d " % turn
        assert ring.send(pairs.files[:number], data).tolist() == [len(data)] * number
        sent[:number] = [before + data for before in sent[:number]]
        if turn % 5 == 4:
            assert [pairs.read(place) for place in range(ROOM)] == sent
            sent = [b""] * ROOM


@needs_ring
@pytest.mark.parametrize("begun", [0, 1, ROOM - 1])
def test_what_the_kernel_does_not_begin_is_taken_back(pairs: Pairs, begun: int) -> None:
    ring = Uring(ROOM)
    call = ring._call
    ring._call = lambda number, file, _, *rest: call(number, file, begun, *rest)
    assert ring.send(pairs.files, b"some").tolist() == [4] * begun + [0] * (ROOM - begun)
    ring._call = call
    assert ring.send(pairs.files[:3], b"more").tolist() == [4] * 3
    got = [pairs.read(place) for place in range(ROOM)]
    assert got == [(b"some" if place < begun else b"") + (b"more" if place < 3 else b"") for place in range(ROOM)]


@needs_ring
def test_what_an_exception_leaves_in_the_queues_is_not_the_next_senders(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = Uring(ROOM)
    call = ring._call

    def interrupted(*arguments: object) -> None:
        if after:
            call(*arguments)
        raise KeyboardInterrupt

    for late in (False, True):
        after = late
        ring._call = interrupted
        with pytest.raises(KeyboardInterrupt):
            ring.send(pairs.files, b"lost")
        ring._call = call
        assert ring.send(pairs.files[:2], b"two").tolist() == [3, 3]
    assert pairs.read(0) == b"twolosttwo"
    assert pairs.read(5) == b"lost"


def test_places_are_continuous_where_the_counters_begin_again() -> None:
    assert uring._parts(2**32 - 3, 5, 16) == [(0, 3, 13), (3, 5, 0)]
    assert uring._parts(2, 3, 16) == [(0, 3, 2)]
    assert uring._parts(0, 16, 16) == [(0, 16, 0)]


@needs_ring
def test_a_ring_that_fails_for_good_is_given_up(pairs: Pairs, caplog: pytest.LogCaptureFixture) -> None:
    ring = Uring(ROOM)

    def fail(*_: object) -> int:
        uring.ctypes.set_errno(1)
        return -1

    ring._call = fail
    fan_out = FanOut(ring, many=1)
    assert fan_out.way == "io_uring"
    assert fan_out.send(pairs.sinks, pairs.files, b"x") == []
    assert [pairs.read(place) for place in range(ROOM)] == [b"x"] * ROOM
    assert fan_out.way == "send"
    assert "io_uring has failed" in caplog.text


@needs_ring
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_ring_and_a_loop_do_the_same(seed: int) -> None:
    looped, ringed = Pairs(ROOM), Pairs(ROOM)
    ways = ((looped, FanOut()), (ringed, FanOut(Uring(ROOM), many=1)))
    rng = random.Random(seed)
    got: list[list[bytes]] = [[b""] * ROOM, [b""] * ROOM]
    gone: set[int] = set()
    for _ in range(30):
        place, data = rng.randrange(ROOM), rng.randbytes(rng.choice((1, 150, 3000, 60_000)))
        kind = rng.random()
        if kind < 0.1:
            gone.add(place)
        for (pairs, _), received in zip(ways, got, strict=True):
            if kind < 0.1:
                pairs.leave(place)
            elif kind < 0.2:
                pairs.sinks[place] = REFUSING
            elif place not in gone:
                received[place] += pairs.read(place)
        results = [outcomes(way.send(pairs.sinks, pairs.files, data)) for pairs, way in ways]
        assert results[0] == results[1]
    for (pairs, _), received in zip(ways, got, strict=True):
        for place in set(range(ROOM)) - gone:
            received[place] += pairs.read(place)
        pairs.close()
    assert got[0] == got[1]


@needs_ring
def test_few_are_sent_to_one_by_one(pairs: Pairs) -> None:
    ring = Uring(ROOM)
    ring._call = lambda *_: pytest.fail("the ring was used")
    assert FanOut(ring, many=ROOM + 1).send(pairs.sinks, pairs.files, b"x") == []
    assert pairs.read(ROOM - 1) == b"x"


@needs_ring
def test_closed_or_without_a_ring_it_sends_one_by_one(pairs: Pairs) -> None:
    fan_out = FanOut(Uring(ROOM), many=1)
    fan_out.close()
    for way in (fan_out, FanOut()):
        assert way.way == "send"
        assert way.send(pairs.sinks, pairs.files, b"x") == []
    assert pairs.read(0) == b"xx"


@pytest.mark.parametrize("what", ["forbidden", "another system"])
def test_a_system_that_gives_no_ring_is_no_error(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if what == "forbidden":
        monkeypatch.setattr(uring, "Uring", refuse)
    else:
        monkeypatch.setattr(sys, "platform", "darwin")
    assert open_ring() is None


def test_a_system_without_the_call_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def syscall(*_: object) -> int:
        uring.ctypes.set_errno(38)
        return -1

    monkeypatch.setattr(uring.ctypes, "CDLL", lambda *_, **__: SimpleNamespace(syscall=syscall))
    with pytest.raises(OSError, match="not implemented"):
        Uring()


async def _read_on(peer: Peer) -> None:
    with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
        while await peer.frame() is not None:
            pass


async def _bystander(house: House, seen: list[bytes]) -> None:
    """Connects and never subscribes: whatever comes after the greeting was meant for another."""
    peer = await house.visit()
    with trio.move_on_after(0.05), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while (frame := await peer.frame()) is not None:
            seen.append(frame.payload)
    peer.leave()


@pytest.mark.parametrize("interrupted", [False, True], ids=["whole sweeps", "interrupted sweeps"])
async def test_nobody_gets_the_frames_of_one_whose_file_number_it_has_inherited(interrupted: bool) -> None:
    strays: list[bytes] = []
    with sweeps(interrupted=interrupted):
        await _come_and_go(strays)
    assert strays == []


async def _come_and_go(strays: list[bytes]) -> None:
    async with open_house() as house, trio.open_nursery() as nursery:

        async def subscriber(number: int) -> None:
            for _ in range(5):
                peer = await house.visit()
                await peer.subscribe("trade", snapshot=False)
                if number % 3:  # the others stall: they are on their way out of the lineup when they leave
                    nursery.start_soon(_read_on, peer)
                await trio.sleep(0.01 * (1 + number % 5))
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await peer.send(GOODBYES[number % len(GOODBYES)])
                peer.leave()

        async with trio.open_nursery() as crowd:
            for number in range(30):
                crowd.start_soon(subscriber, number)
                crowd.start_soon(_bystander, house, strays)
            for _ in range(60):
                await house.trade(20)
                await trio.sleep(0.005)
                for _ in range(2):
                    crowd.start_soon(_bystander, house, strays)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("interrupted", [False, True], ids=["between sweeps", "in a sweep"])
async def test_a_sealed_outbox_has_no_file_number_in_any_group(interrupted: bool) -> None:
    with sweeps(interrupted=interrupted):
        async with open_house() as house:
            peers = [await house.visit() for _ in range(4)]
            for peer in peers:
                await peer.subscribe("trade", snapshot=False)
            await house.trade(1)
            if not interrupted:
                assert [await peer.trade_ids(1) for peer in peers] == [[1]] * 4
            (channel,) = [
                channel for key, channel in house.market.broadcaster._channels.items() if key.channel == "trade"
            ]
            (group,) = channel.groups.values()
            while interrupted and not group.reached:
                await trio.lowlevel.checkpoint()
            outbox = group.lineup[3].subscriber.outbox
            number = outbox.sink.fileno()
            assert group.files[3] == number >= 0
            assert (group.reached < 3) == interrupted
            outbox.seal()
            assert group.files[3] == -1
            await house.trade(1)
            assert number not in group.files
