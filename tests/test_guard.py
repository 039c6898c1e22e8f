from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving import BINARY, CLOSE, CONTINUATION, PING, TEXT, client_frame
from ticker.errors import ProtocolViolation
from ticker.guard import FrameGuard, GuardOptions, TokenBucket, whole_text

reproducible = settings(deadline=None, derandomize=True, database=None)

#: Nothing but the size and the fragments of a message is limited.
PATIENT = GuardOptions(bytes_per_s=1e12, frames_per_s=1e12)
#: Nothing is.
PATIENT_ALL = GuardOptions(bytes_per_s=1e12, frames_per_s=1e12, max_message_bytes=10**9, max_fragments=10**6)


def verdict(options: GuardOptions, chunks: list[bytes], now: float = 0.0) -> int | None:
    """Return the close code that a guard demands, or None."""
    guard = FrameGuard(options, 0.0)
    try:
        for chunk in chunks:
            guard.feed(chunk, now)
    except ProtocolViolation as violation:
        return violation.close_code
    return None


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    return [data[a:b] for a, b in itertools.pairwise([0, *sorted(min(c, len(data)) for c in cuts), len(data)])]


frames = st.builds(
    client_frame,
    st.sampled_from([TEXT, BINARY, CONTINUATION, PING, CLOSE]),
    st.sampled_from([0, 1, 2, 124, 125, 126, 127, 200, 65535, 65536]).map(bytes),
    fin=st.booleans(),
    masked=st.booleans(),
)


@reproducible
@given(st.lists(frames, max_size=12), st.lists(st.integers(0, 2000), max_size=30))
def test_any_cutting_gives_the_verdict_of_the_whole(stream: list[bytes], cuts: list[int]) -> None:
    options = GuardOptions(max_message_bytes=300, max_fragments=4, bytes_per_s=1e12, frames_per_s=1e12)
    data = b"".join(stream)
    assert verdict(options, cut(data, cuts)) == verdict(options, [data])


@reproducible
@given(st.lists(frames, max_size=6))
def test_byte_by_byte_gives_the_verdict_of_the_whole(stream: list[bytes]) -> None:
    options = GuardOptions(max_message_bytes=130, max_fragments=2, bytes_per_s=1e12, frames_per_s=1e12)
    data = b"".join(stream)[:3000]
    assert verdict(options, [data[i : i + 1] for i in range(len(data))]) == verdict(options, [data])


@reproducible
@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=20))
def test_noise_gives_a_verdict_however_it_is_cut(noise: bytes, cuts: list[int]) -> None:
    options = GuardOptions(max_message_bytes=125, max_fragments=2, bytes_per_s=1e12, frames_per_s=1e12)
    assert verdict(options, cut(noise, cuts)) == verdict(options, [noise])


@reproducible
@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.lists(st.integers(0, 400), max_size=20))
def test_floods_are_judged_the_same_however_they_are_cut(sizes: list[int], cuts: list[int]) -> None:
    options = GuardOptions(bytes_per_s=128.0, frames_per_s=8.0, burst_s=1.0)
    data = b"".join(client_frame(PING, bytes(size)) for size in sizes)
    over = len(data) > 128 or len(sizes) > 8
    assert verdict(options, [data]) == (1008 if over else None)
    assert verdict(options, cut(data, cuts)) == (1008 if over else None)


def test_the_size_of_a_message_is_exact_at_the_boundary() -> None:
    limit = GuardOptions().max_message_bytes
    assert limit == 16 * 1024
    assert verdict(PATIENT, [client_frame(TEXT, bytes(limit))]) is None
    assert verdict(PATIENT, [client_frame(TEXT, bytes(limit + 1))]) == 1009


@pytest.mark.parametrize("size", [125, 126, 127, 65535, 65536])
def test_the_boundary_is_exact_in_every_form_of_the_length(size: int) -> None:
    def options(limit: int) -> GuardOptions:
        return GuardOptions(max_message_bytes=limit, bytes_per_s=1e12, frames_per_s=1e12)

    for masked in (True, False):
        data = client_frame(BINARY, bytes(size), masked=masked)
        assert verdict(options(size), [data, data]) is None
        assert verdict(options(size - 1), [data]) == 1009


def test_an_over_size_message_is_refused_by_its_header_alone() -> None:
    assert verdict(PATIENT, [client_frame(TEXT, bytes(65536))[:10]]) is None  # the masking key is part of the header
    assert verdict(PATIENT, [client_frame(TEXT, bytes(65536))[:14]]) == 1009
    assert verdict(PATIENT, [b"\x81\xff" + b"\xff" * 8 + bytes(4)]) == 1009


def test_the_size_is_that_of_all_fragments() -> None:
    half = 8 * 1024
    first, rest = client_frame(TEXT, bytes(half), fin=False), client_frame(CONTINUATION, bytes(half), fin=False)
    assert verdict(PATIENT, [first, rest, client_frame(CONTINUATION, b"")]) is None
    assert verdict(PATIENT, [first, rest, client_frame(CONTINUATION, b"x")]) == 1009


def test_a_message_has_64_fragments_and_not_65() -> None:
    first, last = client_frame(TEXT, fin=False), client_frame(CONTINUATION)
    middle = client_frame(CONTINUATION, fin=False)
    message = [first, *[middle] * 62, last]
    assert verdict(PATIENT, message * 3) is None  # each message is counted anew
    assert verdict(PATIENT, [first, *[middle] * 63, last]) == 1008
    assert verdict(PATIENT, [first, *[middle] * 63]) is None
    assert verdict(PATIENT, [first, *[middle] * 64]) == 1008


def test_control_frames_between_fragments_are_no_fragments() -> None:
    ping = client_frame(PING, bytes(125))
    message = [client_frame(TEXT, fin=False), *[ping, client_frame(CONTINUATION, fin=False)] * 63]
    assert verdict(PATIENT, message) is None


def test_the_payload_is_never_taken_for_a_header() -> None:
    header_like = b"\x81\xff" + b"\xff" * 20
    data = client_frame(TEXT, header_like, masked=False)
    for size in (1, 2, 3, 7, len(data)):
        assert verdict(PATIENT, [data[i : i + size] for i in range(0, len(data), size)]) is None


def test_bytes_beyond_the_burst_are_a_flood_until_time_has_passed() -> None:
    options = GuardOptions(bytes_per_s=1000.0, frames_per_s=1e12, burst_s=2.0)
    guard = FrameGuard(options, 10.0)
    guard.feed(client_frame(BINARY, bytes(1992)), 10.0)  # 8 bytes of header
    guard.feed(client_frame(PING), 10.006)
    with pytest.raises(ProtocolViolation, match="1008 more than 1000 bytes/s"):
        guard.feed(b"x", 10.0061)


def test_what_inflating_adds_counts_as_bytes_that_came() -> None:
    guard = FrameGuard(GuardOptions(bytes_per_s=1000.0, frames_per_s=1e12, burst_s=1.0), 0.0)
    guard.feed(client_frame(BINARY, bytes(94)), 0.0)  # 6 bytes of header
    guard.charge(900, 0.0)
    with pytest.raises(ProtocolViolation, match="1008 more than 1000 bytes/s"):
        guard.charge(1, 0.0)
    guard.charge(1000, 1.0)


def test_frames_beyond_the_burst_are_a_flood_until_time_has_passed() -> None:
    guard = FrameGuard(GuardOptions(bytes_per_s=1e12, frames_per_s=10.0, burst_s=2.0), 0.0)
    for _ in range(20):
        guard.feed(client_frame(PING), 0.0)
    guard.feed(client_frame(PING), 0.125)
    with pytest.raises(ProtocolViolation, match="1008 more than 10 frames/s"):
        guard.feed(client_frame(PING), 0.125)


def test_a_frame_counts_once_its_header_is_there() -> None:
    guard = FrameGuard(GuardOptions(bytes_per_s=1e12, frames_per_s=1.0, burst_s=1.0), 0.0)
    first, second = client_frame(TEXT, bytes(300)), client_frame(TEXT, bytes(300))
    for chunk in (first[:1], first[1:7], first[7:9], first[9:], second[:7]):
        guard.feed(chunk, 0.0)
    with pytest.raises(ProtocolViolation, match="frames/s"):
        guard.feed(second[7:8], 0.0)


def test_the_reason_fits_a_close_frame() -> None:
    for data in (client_frame(TEXT, bytes(65536)), client_frame(TEXT, fin=False) * 65, client_frame(PING) * 50_000):
        with pytest.raises(ProtocolViolation) as caught:
            FrameGuard(GuardOptions(), 0.0).feed(data, 0.0)
        assert 0 < len(caught.value.reason.encode()) <= 123


def test_bucket_gives_its_capacity_at_once_and_then_its_rate() -> None:
    bucket = TokenBucket(rate=2.0, capacity=3.0, now=0.0)
    assert [bucket.take(1, 0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert bucket.take(1, 0.25) == 0.25  # what is refused costs nothing
    assert bucket.take(1, 0.5) == 0.0
    assert bucket.take(3, 100.0) == 0.0  # never more than the capacity
    assert bucket.take(1, 100.0) == 0.5


@reproducible
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 6)), max_size=60))
def test_bucket_never_gives_more_than_rate_and_capacity_allow(steps: list[tuple[int, int]]) -> None:
    bucket, now, given_out = TokenBucket(rate=2.0, capacity=5.0, now=0.0), 0.0, 0
    for wait, amount in steps:
        now += wait / 4
        if bucket.take(amount, now) == 0.0:
            given_out += amount
        assert given_out <= 5.0 + 2.0 * now


@reproducible
@given(st.integers(1, 5), st.integers(1, 5))
def test_bucket_says_exactly_when_to_come_back(spent: int, amount: int) -> None:
    bucket = TokenBucket(rate=4.0, capacity=5.0, now=0.0)
    bucket.take(spent, 0.0)
    wait = bucket.take(amount, 0.0)
    assert (wait == 0.0) == (spent + amount <= 5)
    if wait:
        assert bucket.take(amount, wait) == 0.0


sizes = st.sampled_from([0, 1, 3, 4, 123, 124, 125, 126, 127, 128, 65535])


@reproducible
@given(text=st.text() | sizes.map("é".__mul__) | sizes.map("x".__mul__))
def test_a_text_frame_that_came_in_one_piece_is_its_message(text: str) -> None:
    payload = text.encode()
    assert whole_text(client_frame(TEXT, payload)) == (text if len(payload) < 65536 else None)


@reproducible
@given(frame=frames, more=st.sampled_from([b"", b"\x81", client_frame(TEXT, b"{}")]), end=st.integers(0, 20))
def test_nothing_else_is_a_message_that_came_in_one_piece(frame: bytes, more: bytes, end: int) -> None:
    data = (frame + more)[: len(frame) + len(more) - end]
    whole = [client_frame(TEXT, bytes(size)) for size in (0, 1, 2, 124, 125, 126, 127, 200, 65535)]
    assert (whole_text(data) is not None) == (data in whole or data == client_frame(TEXT, b"{}"))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(client_frame(TEXT, b"\xff"), id="not UTF-8"),
        pytest.param(client_frame(TEXT, b"{}", rsv=4), id="a reserved bit"),
        pytest.param(b"\x81\xfe\x00\x7d" + bytes(4 + 125), id="a length of two bytes for what fits in one"),
        pytest.param(b"\x81\xff" + (125).to_bytes(8) + bytes(4 + 125), id="a length of eight"),
        pytest.param(b"\x81\xfe\x00\x7e", id="a header without its key"),
    ],
)
def test_what_breaks_the_protocol_is_left_to_who_says_so(data: bytes) -> None:
    assert whole_text(data) is None


@reproducible
@given(chunks=st.lists(st.tuples(frames, st.lists(st.integers(0, 300), max_size=3)), max_size=6))
def test_a_guard_knows_when_it_is_between_messages(chunks: list[tuple[bytes, list[int]]]) -> None:
    guard, seen, open_message = FrameGuard(PATIENT_ALL, 0.0), 0, False
    for frame, cuts in chunks:
        for part in cut(frame, cuts):
            guard.feed(part, 0.0)
        if not frame[0] & 0x08:
            open_message = not frame[0] & 0x80
            seen += not open_message
        assert (guard.between, guard.messages) == (not open_message, seen)
