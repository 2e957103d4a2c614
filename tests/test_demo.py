"""The product's promise: `sspo train` without options learns, in minutes, on a CPU."""

import json
from pathlib import Path

import pytest
from commands import sspo


@pytest.mark.slow
def test_the_default_run_raises_format_and_accuracy(tmp_path: Path):
    done = sspo("train", "--runs-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "sspo-atanlog-seed0"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

    def mean(key: str, part: list[dict]) -> float:
        return sum(row[key] for row in part) / len(part)

    first, last = rows[:20], rows[-20:]
    assert mean("reward/mean", first) <= 1.4
    assert mean("reward/mean", last) >= 1.8
    for part in ("reward/answer", "reward/format"):
        assert mean(part, last) > mean(part, first) + 0.2
    before, *_, after = json.loads((run / "eval" / "summary.json").read_text())
    assert before["n"] == after["n"] == 512
    assert after["low"] > before["high"]
    assert after["pass_at_1"] > 0.9
