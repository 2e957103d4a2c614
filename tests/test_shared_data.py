"""A checkout without some of the published data reports which files are missing and how many tests were skipped."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from shared_data import published, skipped_line


@dataclass
class Report:
    longrepr: tuple[str, int, str] | str


def test_the_line_names_the_missing_files_and_counts_their_tests(tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").touch()
    assert published("gsm8k/test.jsonl", tmp_path).is_file()
    reports = [Report("xfail"), Report(("tests/test_a.py", 7, "Skipped: no chromium"))]
    assert skipped_line(reports) is None
    for file in ("gsm8k/train.jsonl", "aime24/test.jsonl", "gsm8k/train.jsonl"):
        with pytest.raises(pytest.skip.Exception) as skipped:
            published(file, tmp_path)
        reports.append(Report(("tests/test_a.py", 7, f"Skipped: {skipped.value}")))
    line = str(skipped_line(reports, tmp_path))
    assert line.startswith("3 tests were skipped for lack of published data")
    assert f"missing in {tmp_path}: aime24/test.jsonl (1), gsm8k/train.jsonl (2);" in line
    assert "\n" not in line
    assert str(skipped_line(reports[:3], tmp_path)).startswith("1 test was skipped")
