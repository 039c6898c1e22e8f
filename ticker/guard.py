"""Limits on what a peer may send, checked before trio-websocket sees a byte of it.

trio-websocket and wsproto parse what they are given and buffer it without bound; empty fragments and pings are free
to send and costly to receive. :class:`FrameGuard` reads only the frame headers that pass by (RFC 6455 section 5.2)
and raises when a limit is crossed. It is sans-IO: bytes and the time go in, nothing comes out.

:func:`whole_text` reads what nearly every request is, a single text frame that came in one piece. That takes 2 µs;
through trio-websocket it takes 35, for its parser and two more turns of tasks.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from ticker.errors import ProtocolViolation

POLICY_VIOLATION = 1008
TOO_BIG = 1009


class GuardOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much one connection may send.

    Attributes:
        max_message_bytes: Payload of one message, over all its fragments.
        max_fragments: Frames of one message.
        bytes_per_s: Sustained inbound bytes per second, as received or as inflated, whichever are more.
        frames_per_s: Sustained inbound frames per second; control frames count.
        control_frames_per_s: Sustained inbound pings, pongs and closes per second: each ping costs an answer.
        burst_s: How many seconds' worth of each may come at once.
    """

    max_message_bytes: Annotated[int, msgspec.Meta(ge=125)] = 16 * 1024
    max_fragments: Annotated[int, msgspec.Meta(ge=1)] = 64
    bytes_per_s: Annotated[float, msgspec.Meta(gt=0)] = 8e6
    frames_per_s: Annotated[float, msgspec.Meta(gt=0)] = 20_000.0
    control_frames_per_s: Annotated[float, msgspec.Meta(gt=0)] = 100.0
    burst_s: Annotated[float, msgspec.Meta(gt=0)] = 2.0


class TokenBucket:
    """Allows ``rate`` units per second with a burst of ``capacity`` units. Time is the caller's."""

    def __init__(self, rate: float, capacity: float, now: float) -> None:
        self._rate, self._capacity = rate, capacity
        self._tokens = capacity
        self._at = now

    def take(self, amount: float, now: float) -> float:
        """Take ``amount`` units.

        Returns:
            0.0 if they were there; else the seconds until they will be, and nothing is taken.
        """
        self._tokens = min(self._capacity, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if amount <= self._tokens:
            self._tokens -= amount
            return 0.0
        return (amount - self._tokens) / self._rate


class FrameGuard:
    """Watches one peer's frames.

    Attributes:
        messages: Text and binary messages so far whose last frame has begun.
    """

    def __init__(self, options: GuardOptions, now: float) -> None:
        self._options = options
        self._bytes = TokenBucket(options.bytes_per_s, options.bytes_per_s * options.burst_s, now)
        self._frames = TokenBucket(options.frames_per_s, options.frames_per_s * options.burst_s, now)
        rate = options.control_frames_per_s
        self._control_frames = TokenBucket(rate, max(1.0, rate * options.burst_s), now)
        self._header = b""  # an incomplete frame header
        self._skip = 0  # payload bytes of the current frame still to come
        self._message_bytes = 0
        self._fragments = 0
        self.messages = 0

    @property
    def between(self) -> bool:
        """Whether the next byte begins a frame, and no message has begun."""
        return not (self._skip or self._header or self._fragments)

    def feed(self, data: bytes, now: float) -> None:
        """Look at the next bytes from the peer.

        Raises:
            ProtocolViolation: 1008 for floods, 1009 for a message that is too big. The bytes must not be used.
        """
        self.charge(len(data), now)
        position = min(self._skip, len(data))
        self._skip -= position
        frames = 0
        while position < len(data):
            header = self._header + data[position : position + 14]
            size = header_size(header)
            if size > len(header):
                self._header = header
                break
            position += size - len(self._header)
            self._header = b""
            frames += 1
            payload = payload_size(header)
            self._count(header[0], payload, now)
            taken = min(payload, len(data) - position)
            position += taken
            self._skip = payload - taken
        if frames and self._frames.take(frames, now):
            raise ProtocolViolation(POLICY_VIOLATION, f"more than {self._options.frames_per_s:.0f} frames/s")

    def charge(self, size: int, now: float) -> None:
        """Count bytes: those that came, and those that inflating them added, because they cost as much to parse.

        Raises:
            ProtocolViolation: 1008; there were too many.
        """
        if self._bytes.take(size, now):
            raise ProtocolViolation(POLICY_VIOLATION, f"more than {self._options.bytes_per_s:.0f} bytes/s")

    def _count(self, first_byte: int, payload: int, now: float) -> None:
        if first_byte & 0x08:  # a control frame; its size is wsproto's to check
            if self._control_frames.take(1, now):
                limit = f"more than {self._options.control_frames_per_s:.0f} control frames/s"
                raise ProtocolViolation(POLICY_VIOLATION, limit)
            return
        self._message_bytes += payload
        self._fragments += 1
        if self._message_bytes > self._options.max_message_bytes:
            raise ProtocolViolation(TOO_BIG, f"a message may have {self._options.max_message_bytes} bytes")
        if self._fragments > self._options.max_fragments:
            raise ProtocolViolation(POLICY_VIOLATION, f"a message may have {self._options.max_fragments} fragments")
        if first_byte & 0x80:
            self._message_bytes = self._fragments = 0
            self.messages += 1


def header_size(header: bytes) -> int:
    """Return the bytes of a frame's header, masking key included; 2 while too little of it is there to tell."""
    if len(header) < 2:
        return 2
    short = header[1] & 0x7F
    extended = 0 if short < 126 else 2 if short == 126 else 8
    return 2 + extended + (4 if header[1] & 0x80 else 0)


def payload_size(header: bytes) -> int:
    """Return the bytes of payload that a complete frame header announces."""
    short = header[1] & 0x7F
    if short == 126:
        return int.from_bytes(header[2:4])
    if short == 127:
        return int.from_bytes(header[2:10])
    return short


def whole_text(data: bytes) -> str | None:
    """Return the message, if bytes that begin between messages are one valid text frame of a client and nothing else.

    Whatever is not, and every breach of the protocol with it, is None.
    """
    size = header_size(data)
    length = len(data) - size
    if length < 0 or data[0] != 0x81 or payload_size(data) != length:
        return None
    if size != (6 if length < 126 else 8):  # unmasked, longer than it need be, or huge
        return None
    mask = (data[size - 4 : size] * (length // 4 + 1))[:length]
    try:
        return (int.from_bytes(data[size:]) ^ int.from_bytes(mask)).to_bytes(length).decode()
    except UnicodeDecodeError:
        return None
