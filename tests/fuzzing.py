"""Feeds damaged files to every format, in a process of its own: ``python -m tests.fuzzing MUTATIONS SEED BOMBS...``.

Prints one line of JSON. A process of its own is what makes its memory measurable, and what a crash of a library would
end.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import resource
import signal
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from feeds.convert import Conversion, ConvertOptions
from feeds.errors import RecordingError
from feeds.store import open_recording
from tests.format_samples import samples

#: Seconds of processor time that one file may take.
CPU_SECONDS = 2.0
JUNK = (
    b"\x00",
    b"\xff\xfe",
    b",",
    b"\n\n\n",
    b"\r",
    b'"',
    b"nan",
    b"-1",
    b"1e999",
    b"9" * 400,
    b"\xf0\x9f\x92\xa5",
    b"true",
)


def mutated(data: bytes, random_: random.Random) -> bytes:
    """Return data with a few things wrong."""
    for _ in range(random_.choice((1, 1, 1, 2, 5))):
        data = random_.choice((_cut, _flip, _insert, _remove, _repeat, _swap, _number))(data, random_)
    return data


def _cut(data: bytes, random_: random.Random) -> bytes:
    return data[: random_.randrange(len(data) + 1)]


def _flip(data: bytes, random_: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random_.randint(1, 8)):
        if changed:
            changed[random_.randrange(len(changed))] ^= 1 << random_.randrange(8)
    return bytes(changed)


def _insert(data: bytes, random_: random.Random) -> bytes:
    at = random_.randrange(len(data) + 1)
    return data[:at] + random_.choice(JUNK) + data[at:]


def _remove(data: bytes, random_: random.Random) -> bytes:
    at = random_.randrange(len(data) + 1)
    return data[:at] + data[at + random_.randint(1, 64) :]


def _repeat(data: bytes, random_: random.Random) -> bytes:
    at, size = random_.randrange(len(data) + 1), random_.randint(1, 400)
    return data[: at + size] + data[at:]


def _swap(data: bytes, random_: random.Random) -> bytes:
    lines = data.split(b"\n")
    a, b = random_.randrange(len(lines)), random_.randrange(len(lines))
    lines[a], lines[b] = lines[b], lines[a]
    return b"\n".join(lines)


def _number(data: bytes, random_: random.Random) -> bytes:
    fields = data.split(b",")
    huge = (b"0", b"-5", b"1e308", b"99999999999999999999999", b"0.0000000000001", b"9223372036854775807", b"", b"x")
    fields[random_.randrange(len(fields))] = random_.choice(huge)
    return b",".join(fields)


def bombs(name: str, data: bytes, folder: Path) -> Iterator[Path]:
    """Yield packed files that are small and unpack to 36 MiB, of which no more than a piece is ever in memory here."""
    for filling in (b"\x00", b"\n", data[-60:], data[:20]):
        piece = filling * ((1 << 20) // len(filling))
        for packed in (folder / f"{name}.gz", folder / f"{name}.zst"):
            with gzip.open(packed, "wb") if packed.suffix == ".gz" else pa.output_stream(packed, "zstd") as file:
                file.write(data)
                for _ in range(36):
                    file.write(piece)
            yield packed


def _read(path: Path, *, skip_bad: bool, write: bool) -> str:
    """Convert a file and return how that ended; anything but a result or a clear error is raised."""
    options = ConvertOptions(symbol="A/B", skip_bad=skip_bad, force=True)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        if not write:
            Conversion([path], options).check()
            return "clean"
        prefix = path.parent / "out"
        summary = Conversion([path], options).write(prefix)
        assert open_recording(prefix).rows == summary.rows
        streams = (open_recording(prefix).trades, open_recording(prefix).quotes, open_recording(prefix).levels)
        assert sum(len(table) for stream in streams for table in stream()) == summary.rows
    except RecordingError as error:
        return "error" if len(str(error)) > 20 else "unclear"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return "clean"


def _too_long(signum: int, frame: object) -> None:
    raise TimeoutError(f"over {CPU_SECONDS} s of processor time")


def _attempts(name: str, data: bytes, mutations: int, seed: int, folder: Path) -> Iterator[Callable[[], str]]:
    """Yield what is to be tried, each when its file has been written."""
    random_ = random.Random(f"{name} {seed}")
    path = folder / name
    for i in range(mutations - len(_PACKED) * (mutations // 10)):
        path.write_bytes(mutated(data, random_))
        yield partial(_read, path, skip_bad=i % 3 > 0, write=i % 10 == 0)
        path.unlink()
    for suffix, pack in _PACKED.items():
        path = folder / f"{name}{suffix}"
        for _ in range(mutations // 10):
            path.write_bytes(mutated(pack(data), random_))
            yield partial(_read, path, skip_bad=True, write=False)
        path.unlink(missing_ok=True)


def _zip(data: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.csv", data)
    return packed.getvalue()


_PACKED = {".gz": gzip.compress, ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True), ".zip": _zip}


class Report:
    """How the attempts on one format ended: "clean" or "error", and every failure in words."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()
        self.failures: list[str] = []

    def take(self, name: str, attempt: Callable[[], str]) -> None:
        """Make an attempt and note how it ends."""
        try:
            self.ended[attempt()] += 1
        except Exception as error:
            self.failures.append(f"{name}: {type(error).__name__}: {error}")


def fuzz(mutations: int, seed: int) -> dict[str, Report]:
    """Return by format how at least so many mutations ended."""
    reports: dict[str, Report] = {}
    tables = Counter(known for known, _, _ in samples())
    with tempfile.TemporaryDirectory() as folder:
        for known, name, data in samples():
            report = reports.setdefault(known, Report())
            for attempt in _attempts(name, data, -(-mutations // tables[known]), seed, Path(folder)):
                report.take(name, attempt)
    return reports


def explode(names: Sequence[str]) -> Report:
    """Return how bombs of these samples ended."""
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        for _, name, data in samples():
            for path in bombs(name, data, Path(folder)) if name in names else ():
                report.take(path.name, partial(_read, path, skip_bad=True, write=False))
    return report


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Try everything and print how it ended."""
    signal.signal(signal.SIGVTALRM, _too_long)
    fuzz(5, 0)  # loads what all attempts need
    before = _peak_mib()
    reports = fuzz(int(sys.argv[1]), int(sys.argv[2]))
    reports["bombs"] = explode(sys.argv[3:])
    ended = {known: {"ended": report.ended, "failures": report.failures} for known, report in reports.items()}
    print(json.dumps({"formats": ended, "peak_mib": _peak_mib() - before}))


if __name__ == "__main__":
    main()
