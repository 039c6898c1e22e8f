from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving import CLOSE, PING, PONG, TEXT, Frame, FrameParser
from ticker.codec import close_frame, frame
from ticker.outbox import Outbox
from ticker.transport import Transport

reproducible = settings(deadline=None, derandomize=True, database=None)
FIN = 0x80


class FakeWire:
    """A wire that takes as many bytes as there is room, and never more than ``most`` at once.

    Attributes:
        room: Bytes that it takes until more room is made.
        written: Everything that it took.
        waits: How often somebody has waited for room.
        reserved: What it was asked to make room for.
    """

    def __init__(self, room: int = 0, most: Callable[[], int] = lambda: 1 << 30) -> None:
        self.room = room
        self.sink = self
        self.written = b""
        self.waits = 0
        self.reserved: list[int] = []
        self._most = most
        self._gone = self._closed = False
        self._changed = trio.Event()

    def send(self, data: bytes | memoryview, /) -> int:
        if self._gone:
            raise BrokenPipeError
        if not self.room:
            raise BlockingIOError
        taken = bytes(data[: min(self.room, self._most())])
        self.room -= len(taken)
        self.written += taken
        return len(taken)

    def reserve(self, size: int) -> None:
        self.reserved.append(size)

    async def wait_writable(self) -> None:
        self.waits += 1
        await trio.lowlevel.checkpoint()
        while not self.room and not self._gone:
            if self._closed:
                raise trio.ClosedResourceError
            await self._changed.wait()

    def make_room(self, room: int) -> None:
        self.room += room
        self._wake()

    def break_(self) -> None:
        self._gone = True
        self._wake()

    def close(self) -> None:
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@asynccontextmanager
async def running(outbox: Outbox) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        await trio.testing.wait_all_tasks_blocked()
        yield
        nursery.cancel_scope.cancel()


# The fake


async def test_fake_wire_takes_what_there_is_room_for() -> None:
    wire = FakeWire(5)
    assert [wire.send(b"abc"), wire.send(memoryview(b"def"))] == [3, 2]
    with pytest.raises(BlockingIOError):
        wire.send(b"f")
    assert wire.written == b"abcde"


async def test_fake_wire_wakes_who_waits_for_room() -> None:
    wire = FakeWire()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.wait_writable)
        await trio.testing.wait_all_tasks_blocked()
        wire.make_room(1)
    assert (wire.waits, wire.send(b"ab")) == (1, 1)


async def test_fake_wire_breaks_as_a_socket_does() -> None:
    wire = FakeWire()
    wire.break_()
    await wire.wait_writable()  # a broken socket is writable
    with pytest.raises(BrokenPipeError):
        wire.send(b"a")
    closed = FakeWire()
    closed.close()
    with pytest.raises(trio.ClosedResourceError):
        await closed.wait_writable()


# One thing at a time


async def test_what_fits_goes_out_at_once() -> None:
    wire = FakeWire(100)
    outbox = Outbox(wire)
    assert outbox.offer(b"one") is True
    outbox.push(b"two")
    assert wire.written == b"onetwo"
    assert (outbox.frames, outbox.behind, wire.waits) == (2, False, 0)


async def test_an_offer_that_does_not_fit_at_all_leaves_nothing_behind() -> None:
    wire = FakeWire(0)
    outbox = Outbox(wire)
    assert outbox.offer(b"old") is False
    assert (outbox.behind, outbox.backlog_bytes, outbox.frames) == (True, 0, 0)
    async with running(outbox):
        wire.make_room(10)
        await trio.testing.wait_all_tasks_blocked()
        assert outbox.offer(b"new") is True
    assert wire.written == b"new"


async def test_an_offer_that_fits_in_part_is_finished_before_anything_else() -> None:
    wire = FakeWire(4)
    outbox = Outbox(wire)
    assert outbox.offer(b"begun-") is True
    assert outbox.offer(b"refused-") is False
    outbox.push(b"pushed-")
    assert wire.written == b"begu"
    async with running(outbox):
        wire.make_room(100)
        await trio.testing.wait_all_tasks_blocked()
        assert outbox.offer(b"after") is True
    assert wire.written == b"begun-pushed-after"


async def test_offers_are_refused_while_behind_even_if_the_wire_has_room_again() -> None:
    wire = FakeWire(0)
    outbox = Outbox(wire)
    outbox.push(b"first-")
    wire.make_room(100)
    assert outbox.behind
    assert outbox.offer(b"too early") is False
    outbox.push(b"second")
    assert wire.written == b""
    async with running(outbox):
        await trio.testing.wait_all_tasks_blocked()
    assert wire.written == b"first-second"
    assert not outbox.behind


async def test_room_is_asked_for_where_a_buffer_did_not_fit() -> None:
    wire = FakeWire(10)
    outbox = Outbox(wire)
    outbox.offer(bytes(10))
    assert wire.reserved == []
    wire.make_room(1)
    outbox.offer(bytes(300))
    assert wire.reserved == [300]


async def test_whoever_was_refused_is_called_once_when_the_wire_has_caught_up() -> None:
    wire, calls = FakeWire(3), []
    outbox = Outbox(wire)
    outbox.on_writable.append(lambda: calls.append((wire.written, outbox.behind)))
    async with running(outbox):
        outbox.offer(b"abcdef")
        outbox.offer(b"x")
        outbox.offer(b"y")
        for room, expected in ((1, []), (1, []), (1, [(b"abcdef", False)]), (9, [(b"abcdef", False)])):
            wire.make_room(room)
            await trio.testing.wait_all_tasks_blocked()
            assert calls == expected


async def test_offers_made_from_the_call_count_again() -> None:
    wire, rest = FakeWire(0), [b"one", b"two", b"three"]
    outbox = Outbox(wire)

    def tell() -> None:
        while rest and outbox.offer(rest[0]):
            rest.pop(0)

    outbox.on_writable.append(tell)
    tell()
    async with running(outbox):
        while rest or outbox.behind:
            wire.make_room(2)
            await trio.testing.wait_all_tasks_blocked()
    assert wire.written == b"onetwothree"


async def test_the_task_sleeps_unless_there_is_room() -> None:
    wire = FakeWire(0)
    outbox = Outbox(wire)
    async with running(outbox):
        assert wire.waits == 0
        outbox.push(bytes(10))
        await trio.testing.wait_all_tasks_blocked()
        assert wire.waits == 1
        for _ in range(10):
            wire.make_room(1)
            await trio.testing.wait_all_tasks_blocked()
        assert wire.waits == 10  # one wait for each piece, and none once everything is out
        assert not outbox.behind


async def test_an_overflow_ends_the_connection() -> None:
    wire = FakeWire(0)
    outbox = Outbox(wire, max_backlog_bytes=100)
    for _ in range(10):
        outbox.push(bytes(10))
    assert not outbox.failed
    outbox.push(b"x")
    assert outbox.failed
    assert outbox.backlog_bytes == 0
    wire.make_room(1000)
    outbox.push(b"y")
    assert outbox.offer(b"z") is False
    with trio.fail_after(5):
        await outbox.run()
        await outbox.wait_flushed()
    assert wire.written == b""


async def test_an_offer_of_any_size_is_no_overflow() -> None:
    wire = FakeWire(1)
    outbox = Outbox(wire, max_backlog_bytes=100)
    assert outbox.offer(bytes(5000)) is True
    assert not outbox.failed
    outbox.push(bytes(100))  # a reply behind a large message is none either
    assert not outbox.failed
    outbox.push(b"x")  # and now too much waits
    assert outbox.failed


async def test_after_the_seal_nothing_is_taken_and_what_was_queued_goes_out() -> None:
    wire, calls = FakeWire(2), []
    outbox = Outbox(wire)
    outbox.on_writable.append(lambda: calls.append(1))
    outbox.push(b"last words")
    outbox.seal()
    outbox.push(b"late")
    assert outbox.offer(b"later") is False
    async with running(outbox):
        wire.make_room(100)
        with trio.fail_after(5):
            await outbox.wait_flushed()
    assert wire.written == b"last words"
    assert calls == []


async def test_flushed_is_when_everything_is_with_the_kernel(autojump_clock: trio.abc.Clock) -> None:
    wire = FakeWire(1)
    outbox = Outbox(wire)
    outbox.push(b"abc")
    async with running(outbox):
        wire.make_room(1)
        with trio.move_on_after(1) as waited:
            await outbox.wait_flushed()
        assert waited.cancelled_caught
        wire.make_room(1)
        with trio.fail_after(1):
            await outbox.wait_flushed()


@pytest.mark.parametrize("how", ["break_", "close"])
async def test_the_task_ends_with_the_wire(how: str, autojump_clock: trio.abc.Clock) -> None:
    wire = FakeWire(0)
    outbox = Outbox(wire)
    outbox.push(b"never")
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.run)
            nursery.start_soon(outbox.wait_flushed)
            await trio.testing.wait_all_tasks_blocked()
            getattr(wire, how)()
    assert outbox.failed


async def test_a_broken_wire_is_noticed_by_whoever_writes_first() -> None:
    for write in (lambda o: o.offer(b"x"), lambda o: o.push(b"x")):
        wire = FakeWire(100)
        outbox = Outbox(wire)
        wire.break_()
        write(outbox)
        assert outbox.failed
        with trio.fail_after(5):
            await outbox.run()


# Everything at once

steps = st.one_of(
    st.tuples(st.just("offer"), st.integers(1, 300)),
    st.tuples(st.just("push"), st.integers(0, 125)),
    st.tuples(st.just("room"), st.integers(1, 400)),
    st.tuples(st.just("run"), st.just(0)),
)


class Story:
    """Does steps to an outbox and keeps what must come out of it."""

    def __init__(self, most: Callable[[], int]) -> None:
        self.wire = FakeWire(0, most)
        self.outbox = Outbox(self.wire)
        self.outbox.on_writable.append(self._writable)
        self.expected = b""
        self.frames: list[Frame] = []
        self.calls = 0

    def _writable(self) -> None:
        self.calls += 1
        assert self.wire.written == self.expected, "called before it had caught up"

    async def do(self, step: str, size: int) -> None:
        payload = bytes((65 + len(self.frames) % 26,)) * size
        behind = self.outbox.behind
        if step == "offer":
            if self.outbox.offer(frame(payload)):
                assert not behind
                self.frames.append(Frame(TEXT, payload))
                self.expected += frame(payload)
        elif step == "push":
            self.outbox.push(frame(payload, FIN | PONG))
            self.frames.append(Frame(PONG, payload))
            self.expected += frame(payload, FIN | PONG)
        elif step == "room":
            self.wire.make_room(size)
        else:
            calls = self.calls
            await trio.testing.wait_all_tasks_blocked()
            assert self.calls == calls + (behind and not self.outbox.behind)


@reproducible
@given(st.lists(steps, max_size=60), st.randoms(use_true_random=False))
def test_frames_come_out_whole_and_in_order_whatever_the_wire_takes(
    story_steps: list[tuple[str, int]], chance: random.Random
) -> None:
    async def main() -> None:
        story = Story(lambda: chance.randint(1, 200))
        async with running(story.outbox):
            for step in story_steps:
                await story.do(*step)
                assert story.expected.startswith(story.wire.written)
            story.wire.make_room(1 << 20)
            await trio.testing.wait_all_tasks_blocked()
        assert story.wire.written == story.expected
        assert FrameParser().feed(story.wire.written) == story.frames
        assert story.outbox.frames == len(story.frames)

    trio.run(main)


async def test_a_frame_can_be_cut_at_every_offset() -> None:
    data, control = frame(b"d" * 200), frame(b"c", FIN | PING)
    for offset in range(1, len(data)):
        wire = FakeWire(offset)
        outbox = Outbox(wire)
        assert outbox.offer(data)
        outbox.push(control)
        async with running(outbox):
            wire.make_room(1000)
            await trio.testing.wait_all_tasks_blocked()
        assert [f.opcode for f in FrameParser().feed(wire.written)] == [TEXT, PING]


class CountingSocket(socket.socket):
    """Counts how often the kernel takes a part."""

    parts = 0

    def send(self, data: bytes | memoryview, flags: int = 0, /) -> int:
        sent = super().send(data, flags)
        self.parts += sent != len(data)
        return sent


class Reader:
    """Reads one end of a socket pair, strictly, as much or little as it is told to."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.parser = FrameParser()
        self.frames: list[Frame] = []

    def read(self, size: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self.frames += self.parser.feed(self._sock.recv(size))


async def test_10_000_frames_over_a_real_socket_arrive_whole_and_in_order() -> None:
    """The kernel cuts where it likes; a strict parser reads the other end."""
    chance = random.Random(6455)
    theirs, ours = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    counting = CountingSocket(fileno=theirs.detach())
    transport, reader = Transport(counting), Reader(ours)
    outbox, expected, refused = Outbox(transport, max_backlog_bytes=1 << 30), [], 0
    async with running(outbox):
        while len(expected) < 10_000:
            opcode, payload = chance.choice((TEXT, PING, PONG)), b"%d" % len(expected)
            if opcode == TEXT:
                payload = payload.ljust(chance.choice((5, 50, 130, 700, 20_000)), b".")
                if outbox.offer(frame(payload)):
                    expected.append(Frame(TEXT, payload))
                else:
                    refused += 1
            else:
                outbox.push(frame(payload, FIN | opcode))
                expected.append(Frame(opcode, payload))
            reader.read(chance.randint(1, 9000))
            await trio.lowlevel.checkpoint()
        outbox.push(close_frame(1000))
        outbox.seal()
        while not reader.parser.closed:
            reader.read(1 << 16)
            await trio.lowlevel.checkpoint()
    transport.close()
    ours.close()
    assert reader.frames == [*expected, Frame(CLOSE, b"\x03\xe8")]
    assert counting.parts > 500
    assert refused > 500


async def test_a_broadcast_that_goes_past_the_queue_keeps_the_order() -> None:
    wire, turns = FakeWire(4), []
    outbox = Outbox(wire)
    outbox.on_turn.append(lambda: turns.append(outbox.behind))
    assert outbox.sink.send(b"abcdef") == 4
    outbox.keep(b"abcdef", 4)
    with pytest.raises(BlockingIOError):
        outbox.sink.send(b"too early")
    async with running(outbox):
        wire.make_room(100)
        await trio.testing.wait_all_tasks_blocked()
        assert outbox.sink.send(b"gh") == 2
    assert (wire.written, turns) == (b"abcdefgh", [True, False])


async def test_a_refused_broadcast_waits_for_room_and_a_broken_one_ends_the_connection() -> None:
    wire, calls = FakeWire(0), []
    outbox = Outbox(wire)
    outbox.on_writable.append(lambda: calls.append("writable"))
    outbox.refused(BlockingIOError())
    async with running(outbox):
        assert calls == []
        wire.make_room(1)
        await trio.testing.wait_all_tasks_blocked()
        assert calls == ["writable"]
        outbox.refused(BrokenPipeError())
        assert outbox.failed
    with pytest.raises(BlockingIOError):
        outbox.sink.send(b"late")
    outbox.refused(BlockingIOError())
    assert not outbox.behind
