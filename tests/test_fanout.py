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
from tests.serving import House, Peer, open_house
from ticker import ring as rings
from ticker.fanout import FanOut, Short
from ticker.outbox import REFUSING, Sink
from ticker.ring import Ring, open_ring

needs_ring = pytest.mark.skipif(open_ring() is None, reason="the system gives no io_uring")
ROOM = 16


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
    ring, sent = Ring(ROOM), [b""] * ROOM
    rng = random.Random(1)
    for turn in range(300):
        number, data = rng.randint(1, ROOM), b"%d " % turn
        assert ring.send(pairs.files[:number], data).tolist() == [len(data)] * number
        sent[:number] = [before + data for before in sent[:number]]
        if turn % 5 == 4:
            assert [pairs.read(place) for place in range(ROOM)] == sent
            sent = [b""] * ROOM


@needs_ring
def test_what_the_kernel_does_not_begin_is_taken_back(pairs: Pairs) -> None:
    ring = Ring(ROOM)
    call, ring._call = ring._call, lambda *_: -1
    assert ring.send(pairs.files, b"lost").tolist() == [0] * ROOM
    ring._call = call
    assert ring.send(pairs.files[:3], b"sent").tolist() == [4] * 3
    assert [pairs.read(place) for place in range(4)] == [b"sent"] * 3 + [b""]


@needs_ring
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_ring_and_a_loop_do_the_same(seed: int) -> None:
    looped, ringed = Pairs(ROOM), Pairs(ROOM)
    ways = ((looped, FanOut()), (ringed, FanOut(Ring(4), many=1)))  # a ring that has to be filled several times
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
    ring = Ring(ROOM)
    ring._call = lambda *_: pytest.fail("the ring was used")
    assert FanOut(ring, many=ROOM + 1).send(pairs.sinks, pairs.files, b"x") == []
    assert pairs.read(ROOM - 1) == b"x"


def test_without_a_ring_it_says_so() -> None:
    assert FanOut().way == "send"


@pytest.mark.parametrize("what", ["forbidden", "another system"])
def test_a_system_that_gives_no_ring_is_no_error(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if what == "forbidden":
        monkeypatch.setattr(rings, "Ring", refuse)
    else:
        monkeypatch.setattr(sys, "platform", "darwin")
    assert open_ring() is None


def test_a_system_without_the_call_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def syscall(*_: object) -> int:
        rings.ctypes.set_errno(38)
        return -1

    monkeypatch.setattr(rings.ctypes, "CDLL", lambda *_, **__: SimpleNamespace(syscall=syscall))
    with pytest.raises(OSError, match="not implemented"):
        Ring()


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
                peer.leave()  # without a word

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
