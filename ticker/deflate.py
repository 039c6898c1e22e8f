"""permessage-deflate (RFC 7692), without context: what trio-websocket cannot do, on both sides of it.

No message refers to one before it, in either direction. So a message is compressed once and the same bytes go to
everybody (:func:`deflated_frame`), and an idle connection holds no window. What peers send is inflated before
trio-websocket sees it (:class:`Inflater`); :func:`negotiate` answers their offers. All of it is sans-IO.
"""

from __future__ import annotations

import zlib
from typing import Final

from ticker.codec import TEXT, frame
from ticker.errors import ProtocolViolation
from ticker.guard import TOO_BIG, header_size, payload_size

NAME: Final = "permessage-deflate"
INVALID_DATA: Final = 1007
#: Of what we send: 4 KiB, as ``websockets`` servers have it. 32 KiB save nothing more, not even on 1,000 rows.
WINDOW_BITS: Final = 12
#: With that window 32 KiB in all: zlib's own 256 KiB come from fresh pages at times, 45 µs a message instead of 13.
MEM_LEVEL: Final = 5
#: On ticker messages level 6 saves 0.4 % more; on books of 1,000 levels it costs twice as much.
LEVEL: Final = 1

_BITS: Final = frozenset(str(bits) for bits in range(8, 16))
_FLAG: Final = frozenset({None})  # None: without a value
_PARAMETERS: Final[dict[str, frozenset[str | None]]] = {
    "server_no_context_takeover": _FLAG,
    "client_no_context_takeover": _FLAG,
    "server_max_window_bits": _BITS,
    "client_max_window_bits": _FLAG | _BITS,
}

_RSV1: Final = 0x40
_FIN: Final = 0x80
_MASKED: Final = 0x80
_NO_KEY: Final = bytes(4)
#: What senders cut off, and a last block of nothing: only after a whole message does the stream end with it.
_END: Final = b"\x00\x00\xff\xff\x03\x00"
#: A sender may end the stream and begin another (section 7.2.1); each costs 1.3 µs, and has two bytes or more.
_MAX_STREAMS: Final = 8


def negotiate(offers: str) -> str | None:
    """Return the answer to the value of a ``Sec-WebSocket-Extensions`` header, or None to go without.

    The first acceptable offer is taken. Declined are those with a parameter that is unknown, malformed or there
    twice (RFC 7692 section 7.1), or with a smaller window for us than :data:`WINDOW_BITS`.
    """
    return next(filter(None, map(_answer, offers.split(","))), None)


def _answer(offer: str) -> str | None:
    name, *parameters = (part.strip() for part in offer.split(";"))
    if name != NAME:
        return None
    values: dict[str, str | None] = {}
    for parameter in parameters:
        key, value = _parameter(parameter)
        if key in values or value not in _PARAMETERS.get(key, ()):
            return None
        values[key] = value
    answer = f"{NAME}; server_no_context_takeover; client_no_context_takeover"
    bits = values.get("server_max_window_bits")
    if bits is None:
        return answer
    return f"{answer}; server_max_window_bits={WINDOW_BITS}" if int(bits) >= WINDOW_BITS else None


def _parameter(text: str) -> tuple[str, str | None]:
    """Return name and value; a quoted value means the same as a bare one (RFC 6455 section 9.1)."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if len(value) > 2 and value[0] == value[-1] == '"':
        value = value[1:-1]
    return key, value if equals else None


def deflated_frame(payload: bytes) -> bytes:
    """Return a complete server frame of a text message, compressed if that makes it smaller.

    300 bytes cost 13 µs, 300 KB cost 2 ms. A compressor that is used again saves one of the 13 and would be state.
    """
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -WINDOW_BITS, MEM_LEVEL)
    data = (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
    return frame(data, TEXT | _RSV1) if len(data) < len(payload) else frame(payload)


class Inflater:
    """Inflates the compressed messages of one peer, frame by frame, and passes everything else on as it is.

    Fragments stay fragments, so what else may be wrong with a frame or with their order is still trio-websocket's
    to find: an RSV1 on a control frame or on a continuation reaches it and is refused there.

    Args:
        max_message_bytes: Of an inflated message. Compressed ones must be bounded before they come here
            (:class:`ticker.guard.FrameGuard`).
    """

    def __init__(self, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._held = b""  # an incomplete frame header, or an incomplete compressed frame
        self._passing = 0  # payload bytes of an untouched frame still to come
        self._message: _Message | None = None  # the compressed message of which more is to come

    def feed(self, data: bytes) -> bytes:
        """Return what the next bytes from the peer are without compression; possibly nothing yet.

        Raises:
            ProtocolViolation: 1007 for data that cannot be inflated, 1009 for a message that is too big.
        """
        data = self._held + data
        position = min(self._passing, len(data))
        self._passing -= position
        plain = [data[:position]]
        while position < len(data):
            header = data[position : position + 14]
            start = position + header_size(header)
            if start - position > len(header):
                break
            end = start + payload_size(header)
            if not self._compressed(header):
                plain.append(data[position:end])
                self._passing = max(0, end - len(data))
            elif end <= len(data):
                plain.append(self._inflated(header[0], data[start - 4 : start], data[start:end]))
            else:
                break
            position = end
        self._held = data[position:]
        return b"".join(plain)

    def _compressed(self, header: bytes) -> bool:
        opcode, rsv1 = header[0] & 0x0F, bool(header[0] & _RSV1)
        if not header[1] & _MASKED:
            return False
        return rsv1 if opcode in (1, 2) else opcode == 0 and self._message is not None and not rsv1

    def _inflated(self, first_byte: int, key: bytes, payload: bytes) -> bytes:
        """Return the same frame as if it had not been compressed."""
        if self._message is None or first_byte & _RSV1:
            self._message = _Message(self._max_message_bytes)
        last = bool(first_byte & _FIN)
        plain = frame(self._message.inflate(_unmasked(payload, key), last), first_byte & ~_RSV1)
        if last:
            self._message = None
        size = header_size(plain)
        return bytes((plain[0], plain[1] | _MASKED)) + plain[2:size] + _NO_KEY + plain[size:]


class _Message:
    """One compressed message."""

    def __init__(self, room: int) -> None:
        self._stream = zlib.decompressobj(-zlib.MAX_WBITS)
        self._room = room

    def inflate(self, data: bytes, last: bool) -> bytes:
        """Return what a fragment holds; see :meth:`Inflater.feed`."""
        try:
            plain = self._inflate(data + _END if last else data)
        except zlib.error as error:
            raise ProtocolViolation(INVALID_DATA, f"compressed data: {error}") from None
        if last and not self._stream.eof:
            raise ProtocolViolation(INVALID_DATA, "compressed data: incomplete")
        return plain

    def _inflate(self, data: bytes) -> bytes:
        plain = b""
        for _ in range(_MAX_STREAMS):
            more = self._stream.decompress(data, self._room + 1)  # 0 would be no limit
            plain += more
            self._room -= len(more)
            if self._room < 0:
                raise ProtocolViolation(TOO_BIG, "an inflated message has too many bytes")
            data = self._stream.unused_data
            if not data:
                return plain
            self._stream = zlib.decompressobj(-zlib.MAX_WBITS)
        raise ProtocolViolation(INVALID_DATA, f"more than {_MAX_STREAMS} streams of compressed data")


def _unmasked(payload: bytes, key: bytes) -> bytes:
    """Return the payload without its mask, as one operation on two long integers."""
    mask = (key * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload) ^ int.from_bytes(mask)).to_bytes(len(payload))
