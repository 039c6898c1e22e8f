"""Processes under measurement: servers on one core, the load on another, CPU time and memory from /proc.

Everything that is started here ends with its ``with`` block, and by itself after a while if we are killed.
"""

from __future__ import annotations

import math
import os
import select
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from tests.benchmarks.audience import Audience, Load

ROOT: Final = Path(__file__).parents[2]
PEERS: Final = Path(__file__).parent / "peers"
SERVER_CORE: Final = 0
LOAD_CORE: Final = 1
#: Every peer ends by itself after this long; no single measurement takes half of it.
LIFETIME_S: Final = 170
START_TIMEOUT_S: Final = 20.0


class NotAvailableError(Exception):
    """A tool or package that a measurement needs is not there; the text becomes its row."""


class Process:
    """A process pinned to a core.

    Attributes:
        popen: The process; ``stdout`` is a pipe.
        port: What it printed on its first line.
        pids: The processes that are measured: itself, unless it only started them.
    """

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen = popen
        self.port = 0
        self.pids = [popen.pid]

    def read_line(self, timeout_s: float) -> str:
        """Return the next line of its output.

        Raises:
            RuntimeError: It ended, or said nothing in time.
        """
        stdout = self.popen.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], timeout_s)[0] or not (line := stdout.readline()):
            raise RuntimeError(f"{self.popen.args} said nothing for {timeout_s:.0f} s, or ended")
        return line

    def cpu_s(self) -> float:
        """Return user and system time so far (s)."""
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.pids]
        return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")

    def system_s(self) -> float:
        """Return the part of :meth:`cpu_s` that the kernel took (s)."""
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.pids]
        return sum(int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")

    def rss_bytes(self) -> int:
        """Return the resident memory."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids)
        return pages * os.sysconf("SC_PAGE_SIZE")

    def metrics(self) -> dict[str, float]:
        """Return its ``/metrics`` by name with labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=START_TIMEOUT_S) as response:
            lines = response.read().decode().splitlines()
        return {name: float(value) for name, _, value in (s.rpartition(" ") for s in lines if not s.startswith("#"))}


def histogram_quantile(before: dict[str, float], after: dict[str, float], name: str, q: float) -> float:
    """Return a quantile of what a Prometheus histogram took in between two looks at ``/metrics``.

    Linear within a bucket, as Prometheus has it; in the last bucket, which has no end, it is infinite.

    Args:
        before: The metrics at the beginning.
        after: At the end.
        name: The histogram, without ``_bucket``.
        q: 0 to 1.

    Returns:
        In the unit of the histogram; NaN if it took in nothing.

    Raises:
        KeyError: There is no such histogram.
    """
    prefix = f'{name}_bucket{{le="'
    taken = sorted((float(key[len(prefix) : -2]), after[key] - before[key]) for key in after if key.startswith(prefix))
    if not taken:
        raise KeyError(name)
    wanted = q * taken[-1][1]
    low, below = 0.0, 0.0
    for bound, upto in taken:
        if upto >= wanted and upto > below:
            return low + (bound - low) * (wanted - below) / (upto - below)
        low, below = bound, upto
    return math.nan


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [one for child in children for one in descendants(child)]


def softirq_threads(core: int) -> list[int]:
    """Return the kernel's thread to which a core leaves network work that it does not do in the system call itself.

    What it does for a server is the server's cost; without it a long system call would look cheaper than it is. Empty
    where kernel threads are not shown.
    """
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):  # it has ended
            found += [int(path.parent.name)] if path.read_text() == f"ksoftirqd/{core}\n" else []
    return found


@contextmanager
def running(command: Sequence[str | Path], core: int, **environment: str) -> Iterator[Process]:
    """Run a command on a core, from the project's root; it is ended with the block."""
    with subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=partial(os.sched_setaffinity, 0, {min(core, (os.cpu_count() or 1) - 1)}),
    ) as popen:
        try:
            yield Process(popen)
        finally:
            popen.kill()


@contextmanager
def serving(command: Sequence[str | Path], **environment: str) -> Iterator[Process]:
    """Run a server whose first line ends with its port."""
    with running(command, SERVER_CORE, **environment) as process:
        process.port = int(process.read_line(START_TIMEOUT_S).split("://")[-1].split(":")[-1].split("/")[0])
        yield process


def peer(name: str, *arguments: object) -> list[str]:
    """Return the command that runs a module of ``peers``."""
    return [sys.executable, "-m", f"tests.benchmarks.peers.{name}", *map(str, arguments)]


class Bench:
    """What all benchmarks share: compiled programs, and how long they measure.

    Attributes:
        folder: Gone at the end.
        quick: Whether one short run has to do.
        plot: Where a curve is drawn, if anywhere.
        rounds: How often every contender runs.
    """

    def __init__(self, folder: Path, *, quick: bool, plot: Path | None) -> None:
        self.folder = folder
        self.quick = quick
        self.plot = plot
        self.rounds = 1 if quick else 3

    def seconds(self, full: float, quick: float) -> float:
        """Return how long to measure."""
        return quick if self.quick else full

    def program(self, name: str) -> Path:
        """Return a program of ``peers``, compiled.

        Raises:
            NotAvailableError: There is no C compiler.
        """
        path = self.folder / name
        if not path.exists():
            if (compiler := shutil.which("gcc") or shutil.which("cc")) is None:
                raise NotAvailableError("gcc")
            subprocess.run([compiler, "-O2", "-Wall", "-o", path, PEERS / f"{name}.c"], check=True)
        return path

    def node_modules(self) -> Path:
        """Return a folder with the node package ``ws``, installed on the first call.

        Raises:
            NotAvailableError: No node or npm, or npm could not install.
        """
        folder = self.folder / "node_modules"
        if not (folder / "ws").exists():
            if shutil.which("node") is None or (npm := shutil.which("npm")) is None:
                raise NotAvailableError("node with npm")
            done = subprocess.run(
                [npm, "install", "--silent", "--no-audit", "--prefix", self.folder, "ws"], capture_output=True
            )
            if done.returncode:
                raise NotAvailableError("node package ws: npm could not install it")
        return folder

    @contextmanager
    def loading(self, server: Process, audience: Audience, seconds: float) -> Iterator[Process]:
        """Run fanload against a server; the block begins when counting does. See :func:`result_of`."""
        measured = [part for pid in (*server.pids, *softirq_threads(SERVER_CORE)) for part in ("-P", pid)]
        command = [self.program("fanload"), "-p", server.port, "-s", seconds, *measured, *audience.arguments()]
        with running([str(part) for part in command], LOAD_CORE) as load:
            if load.read_line(LIFETIME_S) != "counting\n":
                raise RuntimeError("fanload did not begin to count")
            yield load

    def load(self, server: Process, audience: Audience, seconds: float) -> Load:
        """Run fanload against a server to its end."""
        with self.loading(server, audience, seconds) as load:
            return result_of(load)


def result_of(load: Process) -> Load:
    """Wait for a fanload's end and return what it measured."""
    return msgspec.json.decode(load.read_line(LIFETIME_S), type=Load)


@contextmanager
def opened(*, quick: bool, plot: Path | None) -> Iterator[Bench]:
    """Provide a bench with a temporary folder for its programs."""
    with tempfile.TemporaryDirectory(prefix="ticker-bench-") as folder:
        yield Bench(Path(folder), quick=quick, plot=plot)
