"""The ``ticker`` command. Heavy modules are imported by the subcommand that needs them, so ``--help`` is quick."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from typing import Any

_EXAMPLES = """\
examples:
  ticker serve                                     a simulated market on ws://127.0.0.1:8765/v2
  ticker serve --symbols BTC/USD,ETH/USD --rate 2000 --seed 7
  ticker serve --market --rate 600                 order books in which simulated agents trade
  ticker serve --replay recordings/day1 --speed 20 --gap cap:5
  ticker serve --replay binance/day1 --replay cme/day2 --offset day2=+5ms
  ticker watch ws://127.0.0.1:8765/v2 BTC/USD      what it sends, live in the terminal
  ticker info recordings/day1                      what a recording holds
  ticker convert BTCUSDT-trades-2024-08-08.zip -o day1     vendors' files made into a recording
  ticker serve --record recordings/day2            record what is served, side by side with serving
  ticker record ws://127.0.0.1:8765/v2 -o day3     record what another server sends
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="ticker",
        description="A market you can run on your desk: simulated or replayed price feeds over the Kraken v2 "
        "WebSocket protocol.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_serve(commands)
    watch = commands.add_parser("watch", help="live table of a server's tickers in the terminal")
    watch.add_argument("url", nargs="?", default="ws://127.0.0.1:8765/v2", metavar="URL", help="default: %(default)s")
    watch.add_argument("symbols", nargs="*", metavar="SYMBOL", help="default: every symbol of the server")
    commands.add_parser("token", help="make a token for an account, and the digest of it for the file of accounts")
    info = commands.add_parser("info", help="what a recording holds: tables, symbols, rows, time span, gaps")
    info.add_argument("path", metavar="PATH", help="a folder with one recording, its prefix, or one of its files")
    info.add_argument("--digest", action="store_true", help="only the SHA-256 of all that a replay of it emits")
    _add_convert(commands)
    _add_recording(commands)
    return parser


def _add_recording(commands: Any) -> None:  # noqa: ANN401
    record = commands.add_parser(
        "record",
        help="record what another server sends",
        description="Record the market of another ticker server, or of any Kraken v2 server, until SIGINT or SIGTERM.",
    )
    record.add_argument("url", metavar="URL", help="ws://HOST:PORT/v2")
    record.add_argument("symbols", nargs="*", metavar="SYMBOL", help="default: every symbol of the server")
    record.add_argument("-o", "--output", required=True, metavar="NAME", help="folder and name of the recording")
    record.add_argument("--seconds", type=float, default=math.inf, metavar="N", help="end after so many seconds")
    compact = commands.add_parser("compact", help="make a recording of a log that was left, after a crash for instance")
    compact.add_argument("name", metavar="NAME", help="folder and name of the recording")
    compact.add_argument(
        "--keyframes", type=_count, default=50_000, metavar="ROWS", help="rows of books between two; 0: none"
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows")
    return int(text)


def _add_serve(commands: Any) -> None:  # noqa: ANN401 - argparse has no public type for it
    serve = commands.add_parser(
        "serve",
        help="serve a simulated or replayed market",
        description="Serve a market on one port: WebSocket at /v2, status page at /, /healthz, /metrics. Without "
        "--market or --replay prices are simulated. SIGINT or SIGTERM drains and exits.",
    )
    server = serve.add_argument_group("server")
    server.add_argument("--host", metavar="ADDR", help="address to listen on (default 127.0.0.1)")
    server.add_argument("--port", type=int, metavar="N", help="port; 0 picks a free one (default 8765)")
    server.add_argument("--config", metavar="FILE.toml", help="configuration file; flags go before it")
    server.add_argument(
        "--interval-ms", type=int, metavar="N", help="throttle of the ticker channel (default 100; 0 = every event)"
    )
    server.add_argument(
        "--insecure", action="store_true", default=None, help="allow an address that other machines can reach"
    )
    server.add_argument("--record", metavar="NAME", help="record what is served; folder and name of the recording")
    server.add_argument("--relay", metavar="URL", help="serve the market of another server: ws://HOST:PORT/v2")
    orders = serve.add_argument_group("orders")
    orders.add_argument(
        "--journal",
        metavar="PATH",
        help="where orders are kept, or :memory: (default: in the user's data folder, by market and port; "
        ":memory: with --port 0)",
    )
    orders.add_argument("--accounts", metavar="FILE.toml", help="who may trade (default: one demo account, no tokens)")
    simulated = serve.add_argument_group("simulated market")
    simulated.add_argument(
        "--market", action="store_true", help="order books in which agents trade with each other; prices follow"
    )
    simulated.add_argument("--symbols", metavar="A/B,C/D", help="pairs (default BTC/USD,ETH/USD and a few more)")
    simulated.add_argument(
        "--rate", type=float, metavar="TICKS_PER_SECOND", help="quotes and trades; --market: order events; all symbols"
    )
    simulated.add_argument("--seed", type=int, metavar="N", help="the same seed is the same market (default 1)")
    simulated.add_argument("--model", metavar="NAME", help="price model: gbm or jump (default gbm)")
    replay = serve.add_argument_group("replay of a recording (begins with the first subscription)")
    replay.add_argument(
        "--replay",
        metavar="PATH",
        action="append",
        help="a folder with one recording, its prefix, or a file of it; several are merged on one clock",
    )
    replay.add_argument(
        "--offset",
        metavar="NAME=+250ms",
        action="append",
        help="move the receive times of the recording NAME: its clock was wrong, or its venue is far",
    )
    replay.add_argument("--from", dest="from_", metavar="TIME", help="begin at 2024-08-08T23:56:00Z, or at +90s")
    replay.add_argument("--to", metavar="TIME", help="end before it")
    replay.add_argument("--start-paused", action="store_true", default=None, help="stand still before the first row")
    replay.add_argument("--speed", metavar="X|max", help="tape seconds per second, 0.01 to 10000, or max (default 1)")
    replay.add_argument("--replays", metavar="DIR", help="a folder of recordings that clients may have replayed")
    replay.add_argument("--loop", action="store_true", default=None, help="begin again at the end")
    replay.add_argument(
        "--gap", metavar="POLICY", help="silences: keep, cap:SECONDS or skip (those over 1 s; default keep)"
    )


def _add_convert(commands: Any) -> None:  # noqa: ANN401
    convert = commands.add_parser(
        "convert",
        help="make a recording of vendors' files",
        description="Make one recording of files in any known format, told by their content: plain, .gz, .zst or .zip. "
        "Their rows are put in the order in which they were received.",
    )
    convert.add_argument("sources", nargs="+", metavar="SRC", help="a file, an archive, or the prefix of a recording")
    result = convert.add_mutually_exclusive_group(required=True)
    result.add_argument("-o", "--output", metavar="NAME", help="the recording's folder and name")
    result.add_argument("--check", action="store_true", help="only report, write nothing; keeps the books to do so")
    convert.add_argument("--format", metavar="NAME", help="read all sources as this format")
    convert.add_argument("--symbol", metavar="S", help="the instrument, where neither a file nor its name says it")
    convert.add_argument("--venue", metavar="V", help="the venue, instead of what the files say")
    convert.add_argument("--skip-bad", action="store_true", help="leave bad rows out and count them")
    convert.add_argument("--force", action="store_true", help="write over a recording of that name")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 something to be put right, 2 wrong usage."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.version:
        from ticker import __version__

        print(f"ticker {__version__}")
        return 0
    if args.command is None:
        parser.print_help()
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    handlers = {
        "serve": _serve,
        "watch": _watch,
        "info": _info,
        "convert": _convert,
        "token": _token,
        "record": _record,
        "compact": _compact,
    }
    return _guarded(handlers[args.command], args)


def _guarded(command: Any, args: argparse.Namespace) -> int:  # noqa: ANN401
    """Run a command; a mistake of the user's becomes one line, everything else a traceback."""
    from feeds.errors import FeedError, OptionError
    from ticker.errors import ConfigError, JournalError

    code = 0
    try:
        command(args)
    except* (ConfigError, JournalError, FeedError, OptionError) as errors:
        code = 1
        for error in _leaves(errors):
            print(f"ticker {args.command}: {error}", file=sys.stderr)
    except* KeyboardInterrupt:
        code = 130
    except* BrokenPipeError:
        code = 0
    return code


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves


def _flags(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the given flags as configuration tables.

    Raises:
        ConfigError: Flags of a simulated and of a replayed market were mixed.
        OptionError: A value has the wrong form.
    """
    from feeds.playback import parse_speed
    from ticker.errors import ConfigError

    tables: dict[str, dict[str, Any]] = {
        "server": {"host": args.host, "port": args.port, "insecure": args.insecure},
        "session": {"ticker_interval_ms": args.interval_ms},
        "orders": {"journal": args.journal, "accounts": args.accounts},
        "market" if args.market else "simulation": {
            "symbols": None if args.symbols is None else [s.strip() for s in args.symbols.split(",") if s.strip()],
            "rate": args.rate,
            "seed": args.seed,
            "model": args.model,
        },
        "replay": {
            "path": args.replay,
            "offset": None if args.offset is None else dict(map(_named, args.offset)),
            "from": args.from_,
            "to": args.to,
            "start_paused": args.start_paused,
            "speed": None if args.speed is None else parse_speed(args.speed),
            "loop": args.loop,
            "gap": args.gap,
        },
        "replays": {"directory": args.replays},
        "relay": {"url": args.relay},
        "record": {"path": args.record},
    }
    given = {table: {k: v for k, v in values.items() if v is not None} for table, values in tables.items()}
    for other in ("replay", "relay"):
        if getattr(args, other) is not None and given.get("simulation"):
            option = next(iter(given["simulation"]))
            raise ConfigError(f"--{option} is for the simulated market; leave it or --{other} out")
    if given["replay"] and args.replay is None and args.config is None:
        flag = next(iter(given["replay"])).replace("_", "-")
        raise ConfigError(f"--{flag} is for a replay; name a recording with --replay PATH")
    return {table: values for table, values in given.items() if values or table == "market"}


def _named(text: str) -> tuple[str, str]:
    """Return the two sides of NAME=VALUE.

    Raises:
        ConfigError: There is no name or no value.
    """
    from ticker.errors import ConfigError

    name, _, value = text.rpartition("=")
    if not name or not value:
        raise ConfigError(f"--offset {text} is not NAME=+250ms")
    return name, value


def _serve(args: argparse.Namespace) -> None:
    import trio

    from ticker import app, config, record

    options = config.load(args.config, _flags(args))
    trio.run(app.serve, options, lambda line: print(line, flush=True))
    if options.record is not None:
        record.finish(options.record.path, options.record.keyframe_rows)


def _watch(args: argparse.Namespace) -> None:
    import trio

    from ticker import watch

    url, symbols = args.url, args.symbols
    if "://" not in url:  # `ticker watch BTC/USD` means the default server
        url, symbols = "ws://127.0.0.1:8765/v2", [url, *symbols]
    trio.run(watch.watch, url, symbols)


def _record(args: argparse.Namespace) -> None:
    import trio

    from feeds.recorder import RecorderOptions
    from ticker import record, relay

    async def run() -> None:
        feed = await relay.open_relay(relay.RelayOptions(url=args.url, symbols=tuple(args.symbols)))
        await record.record(feed, options, args.seconds)

    options = RecorderOptions(path=args.output)
    trio.run(run)
    record.finish(options.path, options.keyframe_rows)


def _compact(args: argparse.Namespace) -> None:
    from ticker import record

    record.finish(args.name, args.keyframes)


def _info(args: argparse.Namespace) -> None:
    from ticker import info

    if args.digest:
        print(info.digest(args.path))
    else:
        info.print_info(args.path)


def _convert(args: argparse.Namespace) -> None:
    from feeds.convert import ConvertOptions
    from ticker import convert

    options = ConvertOptions(
        format=args.format, symbol=args.symbol, venue=args.venue, skip_bad=args.skip_bad, force=args.force
    )
    convert.convert(args.sources, args.output, options)


def _token(args: argparse.Namespace) -> None:
    from ticker.orders.accounts import new_token

    token, digest = new_token()
    print(f'token   {token}\naccounts file: tokens = [{{ sha256 = "{digest}", scopes = ["read", "trade"] }}]')
