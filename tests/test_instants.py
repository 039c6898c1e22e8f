"""Instants and durations as people write them."""

import pytest

from feeds.errors import OptionError
from feeds.instants import parse_duration, parse_instant

DAY = 1_723_075_200_000_000_000  # 2024-08-08


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("250ms", 250_000_000),
        ("+250ms", 250_000_000),
        ("-1.5s", -1_500_000_000),
        ("10us", 10_000),
        ("10µs", 10_000),
        ("0.000000001s", 1),
        ("7ns", 7),
        ("90m", 5_400_000_000_000),
        (" 2h ", 7_200_000_000_000),
        ("0s", 0),
    ],
)
def test_durations(text, ns):
    assert parse_duration(text) == ns


@pytest.mark.parametrize("text", ["", "5", "ms", "1.5ns", "1e3s", "5 s", "five", "+-5s", "99999999999h", "nans"])
def test_wrong_durations(text):
    with pytest.raises(OptionError, match="is not a duration like 250ms"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("2024-08-08", DAY),
        ("2024-08-08T00:00", DAY),
        ("2024-08-08 00:00:01", DAY + 10**9),
        ("2024-08-08T00:00:00.000000001Z", DAY + 1),
        ("2024-08-08T02:00:00+02:00", DAY),
        ("2024-08-07T18:30-05:30", DAY),
        ("2024-08-07T23:59:59.999999999z", DAY - 1),
        ("+90s", 1_090_000_000_000),
    ],
)
def test_instants(text, ns):
    assert parse_instant(text, 1_000_000_000_000) == ns


@pytest.mark.parametrize(
    "text", ["", "now", "2024-02-31", "2024-08-08T25:00", "2024-08-08T10", "1600-01-01", "-90s", "+90", "20240808"]
)
def test_wrong_instants(text):
    with pytest.raises(OptionError, match=r"is not an instant like|is not a duration like"):
        parse_instant(text, 0)
