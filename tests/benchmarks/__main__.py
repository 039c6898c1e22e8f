"""``python -m tests.benchmarks [NAME...] [--quick] [--plot FILE]`` prints tables; on Linux, from the project's root."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path

from tests.benchmarks.processes import Bench, NotAvailableError, opened
from tests.benchmarks.report import Row, print_table


def in_process(module: str) -> Callable[[Bench], Iterable[Row]]:
    """Return the measurement of a module whose ``rows`` needs no other processes."""
    return lambda bench: import_module(f"tests.benchmarks.{module}").rows()


def with_processes(module: str) -> Callable[[Bench], Iterable[Row]]:
    """Return the measurement of a module whose ``rows`` starts servers and loads."""
    return lambda bench: import_module(f"tests.benchmarks.{module}").rows(bench)


#: Title and measurement by name.
TABLES = {
    "fanout": ("fan-out: one frame to many subscribers", with_processes("bench_fanout")),
    "conflated": ("conflation: a busy market, ten times a second", with_processes("bench_conflated")),
    "sets": ("conflation: a thousand subscribers, no two alike", with_processes("bench_sets")),
    "curve": ("conflation: cost by subscribers and by symbols", with_processes("bench_curve")),
    "orders": ("orders: durable before acknowledged", with_processes("bench_orders")),
    "slow": ("slow consumers", with_processes("bench_slow")),
    "simulate": ("simulated feed", in_process("bench_simulate")),
    "market": ("order-book market", in_process("bench_market")),
    "replay": ("replayed feed", in_process("bench_replay")),
    "convert": ("vendors' files made into recordings", in_process("bench_convert")),
    "lossless": ("lossless replay to a client", with_processes("bench_lossless")),
    "seek": ("seeking in a recording", in_process("bench_seek")),
    "journal": ("journal of orders", in_process("bench_journal")),
    "record": ("recorder", in_process("bench_record")),
    "tape": ("orders against a tape", in_process("bench_tape")),
}


def main() -> None:
    """Run the tables that were named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Print every table of figures.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TABLES)}; all if none is given")
    parser.add_argument("--quick", action="store_true", help="one short run each instead of medians of three")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the curve as SVG or PNG")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in TABLES]:
        parser.error(f"no table {unknown[0]!r}; there are {', '.join(TABLES)}")
    with opened(quick=args.quick, plot=args.plot) as bench:
        for name in args.names or TABLES:
            title, measurement = TABLES[name]
            began = time.perf_counter()
            try:
                rows = list(measurement(bench))
            except NotAvailableError as error:
                rows = [Row(what=title, figure="not available", compared_with=f"needs {error}")]
            print_table(f"{title} ({time.perf_counter() - began:.0f} s)", rows)


if __name__ == "__main__":
    main()
