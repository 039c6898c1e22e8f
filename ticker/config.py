"""Reads the configuration: a TOML file with one table per part, overridden by command-line flags.

The option structs live beside the classes that they configure; this module only composes them. A key that there is
not, and a value that is of another kind or out of range, becomes a :class:`~ticker.errors.ConfigError` that names the
key and what it may be. What shows only when a part is made of its options, a missing file say, is told by that part.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final

import msgspec

from feeds.market import MarketOptions
from feeds.recorder import RecorderOptions
from feeds.replay import ReplayOptions
from feeds.simulate import SimulationOptions
from ticker.errors import ConfigError
from ticker.guard import GuardOptions
from ticker.head import TrustOptions
from ticker.history import HistoryOptions
from ticker.orders.options import OrdersOptions
from ticker.relay import RelayOptions
from ticker.replays import ReplaysOptions
from ticker.server import ServerOptions
from ticker.session import SessionOptions

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set, by table of the configuration file.

    Attributes:
        server: Address, connection caps, keep-alive.
        session: Throttle and limits of one client.
        guard: What one connection may send.
        trust: Allowed hosts and origins.
        history: How much is kept for those who missed it.
        orders: How orders are kept, and who may trade.
        simulation: Simulated prices; used unless there is one of the next three.
        market: A simulated market of order books.
        replay: A recording to replay.
        replays: What clients may have replayed.
        relay: Another server to relay.
        record: Where to record what is served.
    """

    server: ServerOptions = ServerOptions()
    session: SessionOptions = SessionOptions()
    guard: GuardOptions = GuardOptions()
    trust: TrustOptions = TrustOptions()
    history: HistoryOptions = HistoryOptions()
    orders: OrdersOptions = OrdersOptions()
    simulation: SimulationOptions = SimulationOptions()
    market: MarketOptions | None = None
    replay: ReplayOptions | None = None
    replays: ReplaysOptions = ReplaysOptions()
    relay: RelayOptions | None = None
    record: RecorderOptions | None = None


_TABLES: Final[dict[str, type[msgspec.Struct]]] = {
    "server": ServerOptions,
    "session": SessionOptions,
    "guard": GuardOptions,
    "trust": TrustOptions,
    "history": HistoryOptions,
    "orders": OrdersOptions,
    "simulation": SimulationOptions,
    "market": MarketOptions,
    "replay": ReplayOptions,
    "replays": ReplaysOptions,
    "relay": RelayOptions,
    "record": RecorderOptions,
}


def load(path: str | None, flags: dict[str, dict[str, Any]]) -> Options:
    """Return the options of a file, if one is given, with flags over them.

    Args:
        path: The TOML file, or None.
        flags: Values by table and key; those of ``simulation`` are for ``market`` where that is a table.

    Raises:
        ConfigError: Something in it is not allowed; the text names it.
    """
    tables = _read(path) if path else {}
    origin = f"{path}: " if path else ""
    unknown = sorted(tables.keys() - _TABLES.keys())
    if unknown:
        raise ConfigError(f"{origin}unknown table [{unknown[0]}]; there are {', '.join(_TABLES)}")
    for table, values in tables.items():
        if not isinstance(values, dict):
            raise ConfigError(f"{origin}[{table}] is a table with the keys {_keys(table)}")
    if "market" in tables:
        flags = {"market" if table == "simulation" else table: values for table, values in flags.items()}
    for table, values in flags.items():
        tables[table] = {**tables.get(table, {}), **values}
    sources = [table for table in ("market", "replay", "relay") if table in tables]
    if len(sources) > 1:
        raise ConfigError(f"{origin}a {sources[0]} and a {sources[1]} are two markets; leave one out")
    parts = {table: _convert(origin, table, values) for table, values in tables.items()}
    options = Options(**parts)  # type: ignore[arg-type]  # _TABLES gives each its type
    if options.server.host not in LOOPBACK and not options.server.insecure:
        raise ConfigError(
            f"--host {options.server.host} can be reached from other machines, and nothing is encrypted or "
            "authenticated: keep 127.0.0.1 and put a TLS proxy in front, or give --insecure"
        )
    return options


def _read(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"cannot read --config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _keys(table: str) -> str:
    return ", ".join(_TABLES[table].__struct_encode_fields__)


def _convert(origin: str, table: str, values: dict[str, Any]) -> msgspec.Struct:
    kind = _TABLES[table]
    unknown = sorted(values.keys() - set(kind.__struct_encode_fields__))
    if unknown:
        raise ConfigError(f"{origin}[{table}] has no key {unknown[0]!r}; it has {_keys(table)}")
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        key = text.rpartition(" - at `$.")[2].rstrip("`") if " - at `$." in text else ""
        what = text.partition(" - at `")[0]
        name = f"[{table}] {key}: " if key else f"[{table}] "
        raise ConfigError(f"{origin}{name}{what}") from None
