from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.units import (
    ParameterLimit,
    parse_bytes,
    parse_parameter_limit,
    parse_seconds,
    show_bytes,
    show_count,
    show_percent,
    show_seconds,
)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("0.5%", ParameterLimit(fraction=0.005)),
        (" 100 % ", ParameterLimit(fraction=1.0)),
        (".25%", ParameterLimit(fraction=0.0025)),
        ("2M", ParameterLimit(count=2_000_000)),
        ("1.5k", ParameterLimit(count=1_500)),
        ("1B", ParameterLimit(count=10**9)),
        ("800_000", ParameterLimit(count=800_000)),
        ("800,000", ParameterLimit(count=800_000)),
        (800_000, ParameterLimit(count=800_000)),
    ],
)
def test_parameter_limit_is_a_share_or_a_count(text, limit):
    assert parse_parameter_limit(text) == limit


@pytest.mark.parametrize("text", ["0%", "101%", "0", "0.5", 0.5, "1.0001k", "-1", "", "many", "5X", "1e6", "nan", "%"])
def test_what_is_no_parameter_limit_is_refused_and_shown(text):
    with pytest.raises(ValueError, match=r"is not|is none of") as error:
        parse_parameter_limit(text)
    assert repr(text) in str(error.value)


@given(st.integers(1, 10**13), st.integers(1, 10_000))
def test_share_of_a_model_is_rounded_down_exactly(base, hundredths):
    text = f"{hundredths // 100}.{hundredths % 100:02d}%"
    assert parse_parameter_limit(text).of(base) == base * hundredths // 10_000


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1KiB", 1024),
        ("2GiB", 2**31),
        ("16GB", 16 * 10**9),
        ("1.5 mb", 1_500_000),
        (123, 123),
        ("7b", 7),
        ("1TiB", 2**40),
    ],
)
def test_bytes_are_read(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["0", "0.4", "1XB", "GiB", "-1GB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match=r"is not|is none of"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45s", 45), ("30min", 1800), ("2m", 120), ("1.5h", 5400), ("1d", 86400), (12, 12), (0.5, 0.5)],
)
def test_times_are_read(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["0", "1y", "soon", "-3s"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match=r"is not|is none of"):
        parse_seconds(text)


@given(st.integers(1, 2**50))
def test_shown_size_reads_back_within_one_percent(size):
    assert parse_bytes(show_bytes(size).replace(" ", "")) == pytest.approx(size, rel=0.01, abs=1)


@given(st.integers(1, 10**12))
def test_shown_count_reads_back_within_one_percent(count):
    assert parse_parameter_limit(show_count(count)).count == pytest.approx(count, rel=0.01)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0.0s"), (59.4, "59.4s"), (59.97, "1m00s"), (60, "1m00s"), (3599.9, "1h00m"), (8000, "2h13m")],
)
def test_times_are_shown(seconds, shown):
    assert show_seconds(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0"), (999_999, "999,999"), (1_000_000, "1M"), (999_999_999, "1B"), (22_713_216, "22.7M")]
)
def test_counts_are_shown(count, shown):
    assert show_count(count) == shown


@pytest.mark.parametrize(
    ("size", "shown"), [(1023, "1023 B"), (1024, "1.00 KiB"), (2**20 - 1, "1.00 MiB"), (2**30 * 1.5, "1.50 GiB")]
)
def test_sizes_are_shown(size, shown):
    assert show_bytes(size) == shown


def test_percent_has_three_figures():
    assert show_percent(0.00498) == "0.498%"
