"""Comma-separated text as columns: fast where all is well, and to the line where it is not.

A block of lines is parsed whole, with types. Only if that fails is each line looked at, the bad ones are refused by
their numbers, and the rest is parsed again. This module must not know what any column means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from feeds.errors import RecordingError
from feeds.formats.lines import Lines, blocks
from feeds.formats.numbers import F64, UNFIT, Mask, fits
from feeds.formats.source import Source

INT: Final = pa.int64()
FLOAT: Final = pa.float64()
TEXT: Final = pa.string()
WORD: Final = pa.dictionary(pa.int32(), pa.string())  #: text with few different values

#: What arrow parses as a type, for finding the value that it does not; 18 digits always fit into int64.
_PATTERNS: Final = {
    INT: r"^[ \t]*-?[0-9]{1,18}[ \t]*$",
    FLOAT: r"^[ \t]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?[ \t]*$",
}
_MAX_TIME: Final = 2**63 - 1
_UNKNOWN: Final = -128


class Rows:
    """The rows of a block, by column.

    Attributes:
        lines: int64, the number of the line that each row came from.
    """

    def __init__(self, source: Source, table: pa.Table, lines: npt.NDArray[np.int64]) -> None:
        self._source, self._table, self.lines = source, table, lines

    def __len__(self) -> int:
        return len(self.lines)

    def array(self, name: str) -> pa.Array:
        """Return a column; empty text is null."""
        column = self._table.column(name)
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

    def ints(self, name: str) -> npt.NDArray[np.int64]:
        """Return a column of :data:`INT` that :meth:`present` has seen to."""
        values: npt.NDArray[np.int64] = self.array(name).to_numpy(zero_copy_only=False)
        return values

    def floats(self, name: str) -> F64:
        """Return a column of :data:`FLOAT`, NaN where it is empty."""
        column = self.array(name)
        values: F64 = (pc.fill_null(column, np.nan) if column.null_count else column).to_numpy(zero_copy_only=False)
        return values

    def keep(self, good: Mask, why: str, name: str) -> Rows:
        """Return the rows where ``good``; the others are refused with ``why`` and their value of ``name``."""
        if good.all():
            return self
        column = self._table.column(name)
        for at in np.flatnonzero(~good).tolist():
            self._source.refuse(int(self.lines[at]), f"{name} {why} ({column[at].as_py()!r})")
        return self.where(good)

    def where(self, picked: Mask) -> Rows:
        """Return the rows that are picked."""
        return self if picked.all() else Rows(self._source, self._table.filter(pa.array(picked)), self.lines[picked])

    def present(self, *names: str) -> Rows:
        """Return the rows that have a value in each of these columns."""
        rows = self
        for name in names:
            if (column := rows._table.column(name)).null_count:
                rows = rows.keep(column.is_valid().to_numpy(), "is empty", name)
        return rows

    def touch(self, price: str, qty: str) -> tuple[F64, F64]:
        """Return price and quantity of one side of a quote, NaN where there is no price, or neither price nor size."""
        prices, quantities = self.floats(price), self.floats(qty)
        absent = np.isnan(prices) | ((prices == 0.0) & ~(quantities > 0.0))
        return np.where(absent, np.nan, prices), np.where(absent, np.nan, quantities)

    def known(self, name: str, words: Mapping[str, int]) -> Rows:
        """Return the rows whose :data:`WORD` in ``name`` is one of ``words``."""
        codes = self.codes(name, words)
        return self.keep(codes != _UNKNOWN, f"is none of {', '.join(words)}", name)

    def codes(self, name: str, words: Mapping[str, int]) -> npt.NDArray[np.int8]:
        """Return what ``words`` says for each :data:`WORD` in ``name``, as int8."""
        column = self.array(name)
        lookup = [words.get(word, _UNKNOWN) for word in column.dictionary.to_pylist()]
        indices = pc.fill_null(column.indices, len(lookup)) if column.null_count else column.indices
        codes: npt.NDArray[np.int8] = np.array([*lookup, words.get("", _UNKNOWN)], np.int8)[indices.to_numpy()]
        return codes

    def stamped(self, unit_ns: int, *names: str) -> Rows:
        """Return the rows that have an instant after 1970 that nanoseconds can hold, in units of ``unit_ns``."""
        rows = self.present(*names)
        for name in names:
            stamps = rows.ints(name)
            rows = rows.keep((stamps > 0) & (stamps <= _MAX_TIME // unit_ns), "is no time of this age", name)
        return rows

    def sound(self, prices: Sequence[str], quantities: Sequence[str] = ()) -> Rows:
        """Return the rows whose prices and quantities a recording can hold; they may be empty (NaN).

        Prices may be negative, as spreads and rates are; quantities may not.
        """
        rows = self
        for name in (*prices, *quantities):
            rows = rows.keep(fits(rows.floats(name)), UNFIT, name)
        for name in quantities:
            rows = rows.keep(~(rows.floats(name) < 0.0), "is negative", name)
        return rows


def rows(source: Source, names: Sequence[str], types: Mapping[str, pa.DataType], *, header: bool) -> Iterator[Rows]:
    """Yield all rows of a source, block by block.

    Args:
        source: What to read.
        names: All columns, in the file's order.
        types: The columns wanted, each as INT, FLOAT, TEXT or WORD; the others are not looked at.
        header: The first line holds names, not values.

    Raises:
        RecordingError: A line is bad and bad rows are not skipped, or the source cannot be unpacked.
    """
    for block in blocks(source):
        if header and block.first == 1:
            block = Lines(2, block.lines - 1, block.data.partition(b"\n")[2])
        if block.data:
            part = _parse(source, block, tuple(names), types)
            if len(part):
                yield part


def _parse(source: Source, block: Lines, names: tuple[str, ...], types: Mapping[str, pa.DataType]) -> Rows:
    try:
        table = _read(block.data, names, types)
        if table.num_rows == block.lines and not _has_nan(table):
            return Rows(source, table, np.arange(block.first, block.first + table.num_rows, dtype=np.int64))
    except pa.ArrowInvalid:
        pass  # which line it is, arrow does not say in every case
    lines, numbers = _whole_lines(source, block, len(names))
    lines, numbers = _readable_lines(source, lines, numbers, names, types)
    try:
        table = _read(b"\n".join(lines), names, types) if lines else _empty(names, types)
    except pa.ArrowInvalid as error:  # left as a last resort: no input is known that comes here
        raise RecordingError(f"{source.name}:{block.first}: cannot be read as CSV ({error})") from error
    return Rows(source, table, np.array(numbers, np.int64))


def _has_nan(table: pa.Table) -> bool:
    """Return whether a value is the text "nan", which arrow takes for a number and which no market can have."""
    return any(pc.any(pc.is_nan(column)).as_py() for column in table.columns if column.type == FLOAT)


def _read(data: bytes, names: tuple[str, ...], types: Mapping[str, pa.DataType]) -> pa.Table:
    return pcsv.read_csv(
        pa.BufferReader(data),
        read_options=pcsv.ReadOptions(use_threads=False, column_names=list(names), block_size=len(data) + 1),
        parse_options=pcsv.ParseOptions(quote_char=False),
        convert_options=pcsv.ConvertOptions(
            column_types=dict(types), include_columns=list(types), null_values=[""], strings_can_be_null=True
        ),
    )


def _empty(names: tuple[str, ...], types: Mapping[str, pa.DataType]) -> pa.Table:
    return pa.table({name: pa.array([], kind) for name, kind in types.items()})


def _whole_lines(source: Source, block: Lines, columns: int) -> tuple[list[bytes], list[int]]:
    """Return the lines with the right number of columns and their numbers; empty lines mean nothing."""
    # Line i begins at bounds[i] and ends before bounds[i + 1] - 1.
    bounds = np.flatnonzero(np.frombuffer(b"\n" + block.data, np.uint8) == ord("\n"))
    bounds = np.append(bounds, len(block.data) + 1)
    lines, numbers = [], []
    for at in np.flatnonzero(np.diff(bounds) > 1).tolist():
        line, number = block.data[bounds[at] : bounds[at + 1] - 1].removesuffix(b"\r"), block.first + at
        if line and line.count(b",") + 1 == columns and b"\r" not in line:
            lines.append(line)
            numbers.append(number)
        elif line:
            source.refuse(number, f"has {line.count(b',') + 1} columns, not {columns}")
    return lines, numbers


def _readable_lines(
    source: Source, lines: list[bytes], numbers: list[int], names: tuple[str, ...], types: Mapping[str, pa.DataType]
) -> tuple[list[bytes], list[int]]:
    """Return the lines whose every wanted value can be parsed."""
    fields = [line.split(b",") for line in lines]
    good = np.ones(len(lines), np.bool_)
    for name, kind in types.items():
        at = names.index(name)
        values = [field[at] for field in fields]
        for i in np.flatnonzero(good & ~_parsable(values, kind)).tolist():
            wanted = {INT: "an integer", FLOAT: "a number"}.get(kind, "text in UTF-8")
            source.refuse(numbers[i], f"{name} is not {wanted} ({values[i][:40].decode('ascii', 'replace')!r})")
            good[i] = False
    keep = np.flatnonzero(good).tolist()
    return [lines[i] for i in keep], [numbers[i] for i in keep]


def _parsable(values: Sequence[bytes], kind: pa.DataType) -> Mask:
    if kind in _PATTERNS:
        column = pa.array(values, pa.binary())
        empty = pc.equal(pc.binary_length(column), 0)
        matches: Any = pc.or_(empty, pc.match_substring_regex(column, _PATTERNS[kind]))
        mask: Mask = matches.to_numpy(zero_copy_only=False)
        return mask
    return np.array([_is_utf8(value) for value in values], np.bool_)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
