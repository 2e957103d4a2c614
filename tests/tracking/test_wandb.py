import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from rich.console import Console

from sspo_cli.config import load_config
from sspo_cli.errors import UserError
from sspo_cli.tracking.run_folder import RunFolder, State
from sspo_cli.tracking.tracker import open_tracker

SUMMARY = {
    **{"n": 512, "samples": 4, "temperature": 0.6, "correct": 700, "pass_at_1": 0.342, "low": 0.302, "high": 0.384},
    **{"pass_at_k": {"1": 0.342, "2": 0.5, "4": 0.75}, "format": 0.9, "truncated": 3, "tokens": 20.5},
}
HISTOGRAM = {"minibatch": 1, "epoch": 1, "width": 0.05, "positive": [0] * 20 + [7] + [0] * 3, "negative": [0] * 24}


@pytest.fixture(autouse=True)
def _without_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))


def recorded(file: Path, kind: str, item: str | None = "item") -> list[dict[str, Any]]:
    """Return the records of one kind that an offline run wrote for `wandb sync`."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    rows = [row[kind] for line in lines if (row := json.loads(line))["type"] == kind]
    return [row[item] for row in rows] if item else rows


def create(path: Path, mode: str) -> RunFolder:
    return RunFolder.create(path, load_config(overrides=[f"wandb.mode={mode}", "wandb.tags=[a]"]), [])


def test_an_offline_run_needs_no_login_and_continues_under_the_same_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import wandb

    started = []
    init = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **options: started.append((init(**options), options)) or started[-1][0])
    path = tmp_path / "a"
    said = io.StringIO()
    for part, open_run in enumerate((lambda: create(path, "offline"), lambda: RunFolder.resume(path))):
        with open_run() as run, open_tracker(run, console=Console(file=said)) as tracker:
            tracker.start(4, 2 * part)
            for step in (2 * part + 1, 2 * part + 2):
                tracker.weights(step, HISTOGRAM)
                tracker.log(step, {"reward/mean": 1.0 + step})
            tracker.completions(2, [{"rollout": 1, "completion": "<think>", "pieces": ["<think>"], "weights": [1.0]}])
            tracker.evaluation(2 * part + 2, "gsm8k", SUMMARY)

    (first, options), (second, _) = started
    assert first.id == second.id == (path / "wandb-id").read_text().strip()
    assert (first.group, first.name, first.tags) == ("sspo-atanlog", "a", ("a",))
    assert options["config"]["objective"]["tau_pos"] == 0.2
    assert said.getvalue().count(f"wandb sync {path}/wandb/offline-run-*\n") == 2
    assert len(list((path / "wandb").glob("offline-run-*"))) == 2
    out, err = capfd.readouterr()
    assert out + err == ""  # wandb prints nothing
    history = recorded(Path(second.settings.sync_file), "history")
    assert [(row["_step"], row["step"], row["reward/mean"]) for row in history] == [(3, 3, 4.0), (4, 4, 5.0)]
    assert history[-1]["eval/gsm8k/pass_at_1"] == 0.342
    named = {key.removeprefix("eval/gsm8k/"): value for key, value in history[-1].items() if key.startswith("eval/")}
    assert named == {
        **{"pass_at_1": 0.342, "avg_at_4": 0.342, "pass_at_2": 0.5, "pass_at_4": 0.75, "low": 0.302, "high": 0.384},
        **{"format": 0.9, "truncated": 3, "tokens": 20.5},
    }
    assert history[-1]["completions.nrows"] == 1
    assert history[-1]["completions.ncols"] == 3  # step, rollout, completion
    assert history[0]["weights/positive_histogram.values"] == HISTOGRAM["positive"]
    assert not [key for row in history for key in row if key.startswith("weights/negative")]
    metrics = {
        row.get("name", row.get("glob_name")): row for row in recorded(Path(second.settings.sync_file), "metric", None)
    }
    assert metrics["*"]["step_metric"] == "step"


@pytest.mark.parametrize(("state", "code"), [("finished", 0), ("failed", 1), ("interrupted", 1)])
def test_wandb_hears_how_a_run_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: State, code: int) -> None:
    import wandb

    started = mock.MagicMock()
    monkeypatch.setattr(wandb, "init", lambda **options: started)
    with create(tmp_path / "a", "offline") as run:
        tracker = open_tracker(run, console=Console(file=io.StringIO()))
        tracker.start(4)
        tracker.finish(state, "a reason")
    started.summary.update.assert_called_once_with({"state": state, "reason": "a reason"})
    started.finish.assert_called_once_with(exit_code=code)


def test_online_without_a_login_is_one_sentence(tmp_path: Path) -> None:
    with create(tmp_path / "a", "online") as run:
        tracker = open_tracker(run, console=Console(file=io.StringIO()))
        with pytest.raises(
            UserError, match=r"^wandb cannot start: .*log.?in.* or set wandb.mode to offline$"
        ) as raised:
            tracker.start(4)
        assert "\n" not in str(raised.value)
        tracker.finish("failed", str(raised.value))  # not all sinks have been started
        assert run.status["state"] == "failed"


def test_wandb_is_imported_only_where_it_is_asked_for() -> None:
    code = "import sspo_cli.tracking.tracker, sys; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
