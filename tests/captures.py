"""Captures for the tests: lines as programs write them, and the tables that they are read as."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa

from feeds.formats import detect
from feeds.formats.format import ReadOptions
from feeds.formats.source import Source

T = 1_723_161_254_000_000_000


def line(message, ts=T):
    """One line as hftbacktest's collector writes it; a message may be text already."""
    return f"{ts} {message if isinstance(message, str) else json.dumps(message, separators=(',', ':'))}\n"


def capture(tmp_path, messages, *, step=1_000_000):
    """A file of messages, a millisecond apart."""
    path = tmp_path / "capture.txt"
    path.write_text("".join(line(message, T + i * step) for i, message in enumerate(messages)))
    return path


def read(path, *, skip_bad=False, **options):
    """The tables of a file, whose format is told by its content, and its source."""
    source = Source(path, skip_bad=skip_bad)
    tables, last_seq, last_ts = {}, -1, 0
    for chunk in detect(source).read(source, ReadOptions(**options)):
        seqs, times = [], []
        for table, batch in chunk.items():
            batch.validate(full=True)
            tables.setdefault(table, []).append(batch)
            seqs.append(batch["seq"].to_numpy())
            times.append(batch["ts_recv"].cast(pa.int64()).to_numpy())
        order = np.argsort(np.concatenate(seqs))
        seq, ts = np.concatenate(seqs)[order], np.concatenate(times)[order]
        assert seq[0] > last_seq
        assert (np.diff(seq) > 0).all()
        assert ts[0] >= last_ts
        assert (np.diff(ts) >= 0).all()
        last_seq, last_ts = seq[-1], ts[-1]
    return {table: pa.Table.from_batches(batches) for table, batches in tables.items()}, source


def rows(table, *names):
    """Rows as tuples; times as int ns."""
    columns = [table[name].combine_chunks() for name in names]
    plain = [c.cast(pa.int64()) if pa.types.is_timestamp(c.type) else c for c in columns]
    return list(zip(*(column.to_pylist() for column in plain), strict=True))
