"""Processes under measurement: servers on one core, the load on another, CPU time and memory from /proc.

Everything that is started here ends with its ``with`` block, and by itself after a while if we are killed.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

ROOT: Final = Path(__file__).parents[2]
PEERS: Final = Path(__file__).parent / "peers"
SERVER_CORE: Final = 0
LOAD_CORE: Final = 1
#: Every peer ends by itself after this long; no single measurement takes half of it.
LIFETIME_S: Final = 90
START_TIMEOUT_S: Final = 20.0


class NotAvailableError(Exception):
    """A tool or package that a measurement needs is not there; the text becomes its row."""


class Load(msgspec.Struct, frozen=True):
    """What fanload measured while it counted.

    Attributes:
        secs: Length of the counting.
        frames: Data frames, over all subscribers.
        rows: Rows in them.
        bytes: Their payload.
        server_cpu_s: CPU time of the server, user and system.
        p50_ms: Median age of a frame on arrival; -1 if ages were not asked for.
        p99_ms: The 99th percentile of the same.
        max_ms: The greatest.
        least: Frames of the subscriber that got the fewest.
        most: Frames of the one that got the most.
        closed: Subscribers whose connection ended.
    """

    secs: float
    frames: int
    rows: int
    bytes: int
    server_cpu_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    least: int
    most: int
    closed: int

    @property
    def cpu_us(self) -> float:
        """CPU time of the server per delivered frame, in µs."""
        return 1e6 * self.server_cpu_s / self.frames


class Process:
    """A process pinned to a core.

    Attributes:
        popen: The process; ``stdout`` is a pipe.
        port: What it printed on its first line.
    """

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen = popen
        self.port = 0

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
        fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_bytes(self) -> int:
        """Return its resident memory."""
        return int(Path(f"/proc/{self.popen.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def metrics(self) -> dict[str, float]:
        """Return its ``/metrics`` by name with labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=START_TIMEOUT_S) as response:
            lines = response.read().decode().splitlines()
        return {name: float(value) for name, _, value in (s.rpartition(" ") for s in lines if not s.startswith("#"))}


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
        quick: Whether one short run has to do.
        rounds: How often every contender runs.
    """

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self._folder = folder
        self.quick = quick
        self.rounds = 1 if quick else 3

    def seconds(self, full: float, quick: float) -> float:
        """Return how long to measure."""
        return quick if self.quick else full

    def program(self, name: str) -> Path:
        """Return a program of ``peers``, compiled.

        Raises:
            NotAvailableError: There is no C compiler.
        """
        path = self._folder / name
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
        folder = self._folder / "node_modules"
        if not (folder / "ws").exists():
            if shutil.which("node") is None or (npm := shutil.which("npm")) is None:
                raise NotAvailableError("node with npm")
            done = subprocess.run(
                [npm, "install", "--silent", "--no-audit", "--prefix", self._folder, "ws"], capture_output=True
            )
            if done.returncode:
                raise NotAvailableError("node package ws: npm could not install it")
        return folder

    @contextmanager
    def loading(
        self, server: Process, subscribers: int, seconds: float, *messages: str, ages: bool = True
    ) -> Iterator[Process]:
        """Run fanload against a server; the block begins when counting does. See :func:`result_of`."""
        command = [
            *(self.program("fanload"), "-p", server.port, "-n", subscribers, "-s", seconds, "-P", server.popen.pid),
            *(part for message in messages for part in ("-m", message)),
            *(["-l"] if ages else []),
        ]
        with running([str(part) for part in command], LOAD_CORE) as load:
            if load.read_line(LIFETIME_S) != "counting\n":
                raise RuntimeError("fanload did not begin to count")
            yield load

    def load(self, server: Process, subscribers: int, seconds: float, *messages: str, ages: bool = True) -> Load:
        """Run fanload against a server to its end."""
        with self.loading(server, subscribers, seconds, *messages, ages=ages) as load:
            return result_of(load)


def result_of(load: Process) -> Load:
    """Wait for a fanload's end and return what it measured."""
    return msgspec.json.decode(load.read_line(LIFETIME_S), type=Load)


@contextmanager
def opened(*, quick: bool) -> Iterator[Bench]:
    """Provide a bench with a temporary folder for its programs."""
    with tempfile.TemporaryDirectory(prefix="ticker-bench-") as folder:
        yield Bench(Path(folder), quick=quick)
