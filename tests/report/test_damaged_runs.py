"""A damaged run is left out of a report with a reason, and the other runs are reported."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import write_run

from sspo_cli.report import write_report
from sspo_cli.report.collect import collect
from sspo_cli.report.completions import sample_completions

SHAPES: dict[str, Any] = {
    "null": None,
    "true": True,
    "number": 3,
    "text": "text",
    "list": [1, [2]],
    "rows": [{"a": 1}],
    "null rows": [None],
    "object": {"a": {"b": []}},
    "empty list": [[]],
}
WRONG_VALUES: dict[str, tuple[str, str, Any]] = {
    "state of another version": ("status.json", "state", "paused"),
    "state that is a list": ("status.json", "state", ["finished"]),
    "step as text": ("status.json", "step", "12"),
    "negative step": ("status.json", "step", -1),
    "step true": ("status.json", "step", True),
    "reason that is an object": ("status.json", "reason", {}),
    "time that is none": ("status.json", "started", "yesterday"),
    "time without zone": ("status.json", "started", "2026-01-01T00:00:00"),
    "time as number": ("status.json", "started", 3),
    "options that are a list": ("config.json", "options", []),
    "options of another version": ("config.json", "options", {"stepz": 1}),
    "options with text for numbers": ("config.json", "options", {"steps": "12"}),
    "metric as text": ("metrics.jsonl", "reward/mean", "high"),
    "metric as list": ("metrics.jsonl", "reward/mean", [1]),
    "metrics without step": ("metrics.jsonl", "step", None),
    "step of metrics as text": ("metrics.jsonl", "step", "1"),
    "step that comes twice": ("metrics.jsonl", "step", 2),
    "weights as text": ("weights.jsonl", "positive", "many"),
    "other bins": ("weights.jsonl", "positive", [1, 2]),
    "bins of no width": ("weights.jsonl", "width", 0),
    "benchmark that is a number": ("eval/summary.json", "benchmark", 3),
    "pass_at_1 above 1": ("eval/summary.json", "pass_at_1", 1.5),
    "pass_at_1 NaN": ("eval/summary.json", "pass_at_1", float("nan")),
    "no problems": ("eval/summary.json", "n", 0),
    "more right than there are": ("eval/summary.json", "correct", 10**6),
    "samples as text": ("eval/summary.json", "samples", "4"),
}
RAW = {
    "empty": b"",
    "cut": b'{"a": ',
    "binary": b"\xff\xfe\x00",
    "5,000 levels": b"[" * 5000 + b"]" * 5000 + b"\n",
    "half a surrogate pair": b'{"step": 1, "benchmark": "\\ud800"}\n',
    "5,000 digits": b'{"step": ' + b"9" * 5000 + b"}\n",
}
FILES = ("status.json", "config.json", "metrics.jsonl", "weights.jsonl", "eval/summary.json")


def spoil(run: Path, file: str, key: str, value: Any) -> None:
    """Replace the value of a key in the first row of a file, or in its only object."""
    path = run / file
    if path.suffix == ".jsonl":
        first, *rest = path.read_text().splitlines()
        path.write_text("\n".join([json.dumps({**json.loads(first), key: value}), *rest]) + "\n")
        return
    content = json.loads(path.read_text())
    spoiled = [{**content[0], key: value}, *content[1:]] if isinstance(content, list) else {**content, key: value}
    path.write_text(json.dumps(spoiled))


def replaced_by_folder(run: Path, file: str) -> None:
    (run / file).unlink()
    (run / file).mkdir()


DAMAGE: dict[str, Callable[[Path], None]] = {
    **{
        f"{file.replace('/', '-')} {name}": lambda run, file=file, value=value: (run / file).write_text(
            json.dumps(value) + "\n"
        )
        for file in FILES
        for name, value in SHAPES.items()
    },
    **{
        f"{file.replace('/', '-')} {name}": lambda run, file=file, content=content: (run / file).write_bytes(content)
        for file in FILES
        for name, content in RAW.items()
        # A line torn by a crash is dropped and an empty file of rows is valid, so these are not damage.
        if not (file.endswith("l") and name in ("empty", "cut", "binary"))
    },
    **{name: lambda run, wrong=wrong: spoil(run, *wrong) for name, wrong in WRONG_VALUES.items()},
    **{f"{file.replace('/', '-')} folder": lambda run, file=file: replaced_by_folder(run, file) for file in FILES},
    "eval file": lambda run: (shutil.rmtree(run / "eval"), (run / "eval").write_text("")),
}


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no figures, which take most of the time of a report."""
    monkeypatch.setattr("sspo_cli.report.page.figures", lambda collection: [])


@pytest.fixture(scope="module")
def damaged_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a whole run `0` and one run for each kind of damage, each with its own seed."""
    runs = tmp_path_factory.mktemp("damaged")
    whole = write_run(runs / "0", "seed=1", steps=4, whole=True)
    for damage in DAMAGE.values():
        run = runs / f"{len([*runs.iterdir()])}"
        shutil.copytree(whole, run)
        damage(run)
    return runs


def test_every_damaged_run_is_left_out_with_a_reason(damaged_runs: Path):
    left_out = {}
    for sentence in collect([damaged_runs]).left_out:
        path, _, reason = sentence.partition("`: ")
        left_out[Path(path.removeprefix("`")).name] = reason
    assert len(left_out) == len(DAMAGE)
    readable = [name for number, name in enumerate(DAMAGE, 1) if "the same options" in left_out[str(number)]]
    assert readable == ["eval file"]  # a run without evaluations
    for reason in left_out.values():
        assert len(reason) < 1000
        assert "\n" not in reason


def test_the_report_of_all_is_written(damaged_runs: Path, tmp_path: Path):
    write_report([damaged_runs], tmp_path)
    assert (tmp_path / "report.md").read_text().count("; left out.") == len(DAMAGE)


def test_damaged_completions_and_answers_are_named_and_the_rest_is_reported(tmp_path: Path):
    for seed, shape in enumerate(SHAPES.values()):
        run = write_run(tmp_path / "runs" / str(seed), f"seed={seed}", steps=2, whole=True)
        for file in ("completions.jsonl", "eval/arithmetic.jsonl"):
            (run / file).write_text(json.dumps(shape) + "\n")
        damage = sample_completions(collect([run]).groups)[0]["damage"]
        assert "completions.jsonl, line 1 does not have the format" in damage
    write_run(tmp_path / "runs" / "grpo", "objective.method=grpo", steps=2, whole=True)
    write_report([tmp_path / "runs"], tmp_path / "out")
    assert "arithmetic.jsonl, line 1 does not have the format" in (tmp_path / "out" / "report.md").read_text()
