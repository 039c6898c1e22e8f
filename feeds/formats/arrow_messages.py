"""How much the messages of Arrow IPC hold, told before any of it is unpacked: pyarrow unpacks a batch whole.

What a message says of itself is a flatbuffer, whose tables pyarrow reads but does not show; the few fields that are
needed are found here. Source: https://arrow.apache.org/docs/format/Columnar.html and ``format/Message.fbs`` of Arrow,
https://flatbuffers.dev/internals. This module must not know what the columns are.
"""

from __future__ import annotations

import struct
from typing import Final

import pyarrow as pa

# Fields by their numbers.
_MESSAGE_HEADER: Final = 2
_DICTIONARY_DATA: Final = 1
_BATCH_BUFFERS, _BATCH_COMPRESSION = 2, 3


def unpacked_bytes(message: pa.ipc.Message) -> int:
    """Return how many bytes a batch or a dictionary has once it is unpacked; 0 for any other message.

    Raises:
        struct.error: The message is damaged.
    """
    if message.type not in ("record batch", "dictionary"):
        return 0
    data, body = message.metadata.to_pybytes(), memoryview(message.body)
    batch = _followed(data, _field(data, _followed(data, 0), _MESSAGE_HEADER))
    if message.type == "dictionary":
        batch = _followed(data, _field(data, batch, _DICTIONARY_DATA))
    buffers = _followed(data, _field(data, batch, _BATCH_BUFFERS))
    (count,) = struct.unpack_from("<I", data, buffers)
    packed = _field(data, batch, _BATCH_COMPRESSION) != 0
    places = (struct.unpack_from("<qq", data, buffers + 4 + 16 * i) for i in range(count))
    return sum(_unpacked(body, offset, length) if packed else length for offset, length in places)


def _unpacked(body: memoryview, offset: int, length: int) -> int:
    """Return the size of a buffer, which is written before it; what is there says if packing would not have paid."""
    if length == 0:
        return 0
    (size,) = struct.unpack_from("<q", body, offset)
    return int(size) if size >= 0 else length


def _field(data: bytes, table: int, number: int) -> int:
    """Return where a field of a table is, 0 if the table has none such."""
    (back,) = struct.unpack_from("<i", data, table)
    (size,) = struct.unpack_from("<H", data, table - back)
    entry = 4 + 2 * number
    if entry >= size:
        return 0
    (offset,) = struct.unpack_from("<H", data, table - back + entry)
    return table + int(offset) if offset else 0


def _followed(data: bytes, at: int) -> int:
    """Return where the offset at a place leads to."""
    (offset,) = struct.unpack_from("<I", data, at)
    return at + int(offset)
