"""Runs of the calculator task: mixed with single-turn tasks, killed at every turn, evaluated and reported."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import sspo
from small_runs import rows, without_times

from sspo_cli import session
from sspo_cli.config import ENVIRONMENTS, EpisodeOptions, RunOptions, load_config
from sspo_cli.environments.calculator import CalculatorEnvironment
from sspo_cli.errors import UserError
from sspo_cli.evaluation import command
from sspo_cli.report import page, write_report
from sspo_cli.rewards import AnswerChecker
from sspo_cli.tasks import TASKS, load_problems
from sspo_cli.tracking.tracker import Tracker

CONFIGS = Path(__file__).parents[1] / "configs"
STEPS, G = 4, 4
OPTIONS = {
    "steps": STEPS,
    "model.tiny": "{hidden_size: 32, layers: 1, heads: 1, intermediate_size: 48, action_tags: true}",
    "tasks": "[{name: calculator, limit: 60}, {name: arithmetic, limit: 60}]",
    "rollout.prompts": 6,
    "rollout.group_size": G,
    "rollout.max_new_tokens": 16,
    "episode": "{turns: 3, proposals: 1, max_tokens: 90}",
    "optimizer.learning_rate": 1e-3,
    "cold_start.steps": 80,
    "cold_start.batch_size": 16,
    "cold_start.learning_rate": 1e-2,
    "evaluation.samples": 1,
    "evaluation.temperature": 0.0,
    "evaluation.benchmarks": "[{name: calculator, split: test, limit: 6}, {name: arithmetic, split: test, limit: 6}]",
    "checkpoint.every": 3,
}


class Killed(BaseException):
    """Exception that ends a run at once, without the work that a run does at its end."""


def options(**changes: Any) -> RunOptions:
    values = {**OPTIONS, **{key.replace("__", "."): value for key, value in changes.items()}}
    return load_config([CONFIGS / "calculator.yaml"], [f"{key}={value}" for key, value in values.items()])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a folder of runs that share one answer checker and skip the check of the model, because both take seconds."""
    with AnswerChecker(workers=1, timeout=30.0) as checker, pytest.MonkeyPatch.context() as patch:
        for room in (session, command):
            patch.setattr(room, "AnswerChecker", lambda timeout: contextlib.nullcontext(checker))
            patch.setattr(room, "check_model", lambda *_, **__: None)
        patch.setattr(page, "figures", lambda collection: ())
        yield tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(runs: Path) -> Path:
    session.start_run(options(), runs / "whole", [])
    return runs / "whole"


def test_single_turns_and_episodes_train_together(whole: Path):
    metrics, kept = rows(whole / "metrics.jsonl"), rows(whole / "completions.jsonl")
    assert len(metrics) == STEPS
    of_episodes = [row for row in kept if "outcome" in row]
    assert 0 < len(of_episodes) < len(kept)
    assert any("episodes/turns" in row for row in metrics)
    for row in metrics:
        assert row["time/environment"] >= 0
        if "episodes/turns" in row:
            assert 1 <= row["episodes/turns"] <= 3
            assert row["episodes/proposals"] <= 1
    for row in of_episodes:
        assert sum(row["written"]) == len(row["pieces"]) == len(row["weights"])
        assert sum(row["written"][::2]) == row["tokens"]
        assert row["truncated"] == (row["outcome"]["ended"] == "tokens")
        assert (row["r_answer"] == 1) == row["outcome"]["solved"]
        assert row["completion"].count("<|im_start|>user") == len(row["turns"]) - 1
    assert any(turn["action"] != "nothing" for row in of_episodes for turn in row["turns"])
    assert all("turns" not in row for row in kept if "outcome" not in row)


def test_sampled_tokens_are_the_policy_s_own(whole: Path):
    """Only sampled tokens count: at most 3 turns of 16 tokens for each completion."""
    first = [row for row in rows(whole / "metrics.jsonl") if row["rollout"] == 0]
    mean = sum(row["completions/length"] for row in first) / len(first)
    assert first[0]["tokens"] == pytest.approx(mean * 6 * G)
    assert mean <= 3 * 16


def test_a_benchmark_of_episodes_says_how_they_were_limited_and_another_one_does_not(whole: Path):
    summary = {
        (row["benchmark"], row["step"]): row for row in json.loads((whole / "eval" / "summary.json").read_text())
    }
    assert set(summary) == {(name, step) for name in ("calculator", "arithmetic") for step in (0, STEPS)}
    row = summary["calculator", STEPS]
    assert (row["turns"], row["proposals"], row["max_tokens"], row["n"]) == (3, 1, 90, 6)
    answers = [answer for answer in rows(whole / "eval" / "calculator.jsonl") if answer["step"] == STEPS]
    assert row["episodes"]["calls"] == pytest.approx(sum(answer["outcome"]["calls"] for answer in answers) / 6)
    assert row["episodes"]["solved_at_first"] == row["pass_at_1"]  # episodes have one proposal
    assert row["parts"] == {}
    assert not {"turns", "episodes", "parts"} & summary["arithmetic", STEPS].keys()


def test_killed_at_every_turn_and_resumed_a_run_ends_the_same(runs: Path, whole: Path, monkeypatch: pytest.MonkeyPatch):
    step, moments = CalculatorEnvironment.step, 0

    def counted(self: CalculatorEnvironment, moves: Any) -> Any:
        nonlocal moments
        if len(moves) > 1:  # the preflight does not count
            moments -= 1
            if moments == 0:
                raise Killed
        return step(self, moves)

    monkeypatch.setattr(CalculatorEnvironment, "step", counted)
    for moment in range(1, 100):
        moments, folder = moment, runs / f"killed-{moment}"
        try:
            session.start_run(options(evaluation__benchmarks="[]"), folder, [])
        except Killed:
            session.resume_run(folder, None, [])
        model = Path("checkpoints") / f"step-{STEPS}" / "model.safetensors"
        assert (folder / model).read_bytes() == (whole / model).read_bytes()
        assert without_times(folder) == without_times(whole)
        assert (folder / "completions.jsonl").read_bytes() == (whole / "completions.jsonl").read_bytes()
        if moments > 0:  # the run ended before this moment
            break
    assert moment > 4


def test_a_kept_rollout_is_read_by_the_run_that_is_resumed(runs: Path, whole: Path, monkeypatch: pytest.MonkeyPatch):
    """The resumed run reads the rollout, because another sampler would not draw the same one."""
    log = Tracker.log

    def fatal(self: Tracker, step: int, metrics: Any) -> None:
        log(self, step, metrics)
        if step == 1:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "log", fatal)
        with pytest.raises(Killed):
            session.start_run(options(evaluation__benchmarks="[]"), runs / "kept", [])
    assert [path.name for path in (runs / "kept" / "rollouts").iterdir()] == ["rollout-0.pt"]
    played = []
    with monkeypatch.context() as patch:
        step = CalculatorEnvironment.step
        patch.setattr(CalculatorEnvironment, "step", lambda self, moves: (played.append(moves), step(self, moves))[1])
        session.resume_run(runs / "kept", None, [])
    assert without_times(runs / "kept") == without_times(whole)
    rollouts = rows(whole / "metrics.jsonl")[-1]["rollout"] + 1
    assert 0 < sum(len(moves) > 1 for moves in played) <= 3 * (rollouts - 1)  # the first is only read
    assert not (runs / "kept" / "rollouts").exists()


def test_eval_plays_episodes_of_a_run_and_report_shows_them(whole: Path):
    done = sspo("eval", whole, "-b", "calculator-two", "--limit", 5)
    assert done.returncode == 0, done.stderr
    assert "calculator-two Pass@1" in done.stdout + done.stderr
    write_report([whole], whole.parent / "report")
    text, html = ((whole.parent / "report" / name).read_text() for name in ("report.md", "index.html"))
    assert (
        "solved rate, the share of episodes in which a proposal was accepted within at most 3 turns and 1 proposal"
        in text
    )
    assert '"read":[false' in html


def test_the_environments_of_tasks_are_those_of_their_problems():
    assert ENVIRONMENTS.keys() <= TASKS.keys()
    for name in ("calculator", "calculator-two"):
        assert load_problems(name, split="test", limit=1)[0].environment == ENVIRONMENTS[name]
    assert load_problems("arithmetic", split="test", limit=1)[0].environment is None


def test_options_of_episodes_are_there_where_there_are_episodes_and_refused_where_not():
    assert load_config([], ["tasks=[{name: calculator}]", "rollout.max_new_tokens=9"]).episode == EpisodeOptions()
    assert load_config([], []).episode is None
    assert load_config([], ["evaluation.benchmarks=[{name: calculator, split: test}]"]).episode == EpisodeOptions()
    with pytest.raises(UserError, match="episode is given, but no task has episodes"):
        load_config([], ["episode.turns=3"])
    with pytest.raises(UserError, match=r"episode.max_tokens = 20 is less than the limit of a turn"):
        options(episode__max_tokens=20, rollout__max_new_tokens=24)


def test_an_episode_that_cannot_be_solved_is_refused_before_anything_is_spent(runs: Path):
    with pytest.raises(UserError, match=r"model's context is 1024; lower episode.max_tokens or leave"):
        session.start_run(options(episode__max_tokens=1020), runs / "too-long", [])
    short = options(**{"model.tiny": OPTIONS["model.tiny"].replace("}", ", context: 8}")})
    with pytest.raises(UserError, match=r"model's context is 8; use a model with a longer context or leave"):
        session.start_run(short, runs / "too-short", [])


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of runs of the whole config, which share their cold starts."""
    return tmp_path_factory.mktemp("learned")


def last_row(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "eval" / "summary.json").read_text())[-1]


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", ["sspo", "grpo"])
def test_the_calculator_config_learns_to_call(learned: Path, method: str, seed: int):
    name = f"{method}-{seed}"
    words = ["--runs-dir", learned, "--run", name, "--method", method, "--seed", seed]
    done = sspo("train", "-c", CONFIGS / "calculator.yaml", *words)
    assert done.returncode == 0, done.stderr
    before, after = json.loads((learned / name / "eval" / "summary.json").read_text())
    assert (before["temperature"], before["samples"]) == (after["temperature"], after["samples"]) == (1.0, 4)
    assert before["pass_at_1"] <= 0.4
    assert after["pass_at_1"] >= 0.9
    assert after["episodes"]["calls"] > 0.9
    greedy = ["-b", "calculator", "--temperature", 0, "--samples", 1]
    done = sspo("eval", name, "--runs-dir", learned, *greedy)
    assert done.returncode == 0, done.stderr
    row = last_row(learned / name)
    assert row["temperature"] == 0
    assert row["pass_at_1"] >= 0.9


@pytest.mark.long
def test_a_second_call_is_written_from_the_result_of_the_first(learned: Path):
    benchmark = "[{name: calculator-two, split: test, limit: 256}]"
    sets = ["-s", "tasks=[{name: calculator-two}]", "-s", f"evaluation.benchmarks={benchmark}"]
    done = sspo("train", "-c", CONFIGS / "calculator.yaml", "--runs-dir", learned, "--run", "two", *sets)
    assert done.returncode == 0, done.stderr
    answers = rows(learned / "two" / "eval" / "calculator-two.jsonl")
    step = last_row(learned / "two")["step"]
    both = [answer["correct"] for answer in answers if answer["step"] == step and answer["outcome"]["calls"] == 2]
    assert len(both) > 0.8 * 4 * 256
    assert sum(both) / len(both) >= 0.9
