"""Where a venue's events end in rows that do not say it: where the row after is of another instant or instrument.

This module must not know any vendor.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feeds.formats.delimited import Rows

Mask = npt.NDArray[np.bool_]


def with_next(parts: Iterator[Rows]) -> Iterator[tuple[Rows, Rows | None]]:
    """Yield each part that has rows, and the one after it, None after the last."""
    filled = (part for part in parts if len(part))
    current = next(filled, None)
    while current is not None:
        following = next(filled, None)
        yield current, following
        current = following


def ends(part: Rows, following: Rows | None, *names: str) -> Mask:
    """Return which rows differ from the row after them in any of the columns ``names``; the very last always does."""
    differs = np.zeros(len(part), np.bool_)
    differs[-1] = following is None
    for name in names:
        column = part.array(name)
        codes = (column.indices if pa.types.is_dictionary(column.type) else column).to_numpy()
        differs[:-1] |= codes[1:] != codes[:-1]
        differs[-1] |= following is not None and following.array(name)[0].as_py() != column[-1].as_py()
    return differs
