"""A checkout without the published data says how many tests it left out."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from shared_data import NO_SHARED_DATA, skipped_line


@dataclass
class Report:
    longrepr: tuple[str, int, str] | str


def skips(*reasons: str) -> list[Report]:
    return [Report(("tests/test_a.py", 7, f"Skipped: {reason}")) for reason in reasons]


@pytest.mark.parametrize(("count", "begins"), [(1, "1 test was skipped"), (3, "3 tests were skipped")])
def test_the_line_counts_the_tests_that_lacked_the_data_and_says_where_it_goes(count: int, begins: str) -> None:
    lacking = skips(*[f"{NO_SHARED_DATA} next to the project"] * count)
    line = skipped_line([*skips("no chromium"), *lacking, Report("xfail")], Path("some/shared/data"))
    assert line is not None
    assert line.startswith(begins)
    assert "they go into some/shared/data" in line
    assert "\n" not in line


def test_other_skips_are_not_counted() -> None:
    assert skipped_line(skips("no chromium", "torch.compile wants a C++ compiler on a CPU")) is None
    assert skipped_line([]) is None
