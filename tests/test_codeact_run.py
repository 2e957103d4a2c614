"""Code-acting end to end on the published rows: real sandbox, small model in Hugging Face format, scripted turns.

A random policy writes no code, so the sampler follows a script: it runs code and proposes the gold answer or wrong
ones. Everything else is that of a normal run.
"""

import contextlib
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import rows, without_times
from transformers import Qwen2Config, Qwen2ForCausalLM

from sspo_cli import session
from sspo_cli.config import load_config
from sspo_cli.environments.codeact import CodeActEnvironment
from sspo_cli.environments.sandbox import Sandbox, SandboxLimits
from sspo_cli.errors import UserError
from sspo_cli.policy.model import Policy
from sspo_cli.policy.tiny import tiny_tokenizer
from sspo_cli.report import page, write_report
from sspo_cli.rollout import episodes
from sspo_cli.rollout.engine import Request
from sspo_cli.tasks import load_problems
from sspo_cli.tracking.tracker import Tracker
from sspo_cli.types import Completion

# The turns of each completion, by its number in the group.
SCRIPTS = [
    ["Let us see.\n<execute>import random\nprint(random.random())</execute>", "So it is <solution>{gold}</solution>"],
    ["<execute>x = 6*7</execute>", "<execute>print(x + 1)</execute>", "<solution>{gold}</solution>"],
    [
        "<solution>no idea</solution>",
        "<execute>print(open('/etc/passwd').read())</execute>",
        "<solution>none</solution>",
    ],
    ["I do not know."] * 5,
]
G = len(SCRIPTS)
CLOCK = "<execute>import time\nprint(time.time_ns())</execute>"  # makes no two rollouts alike
OPTIONS = {
    "steps": 4,
    "rollout.prompts": 2,
    "rollout.group_size": G,
    "rollout.max_new_tokens": 80,
    "rollout.max_rows": 8,
    "episode": "{max_tokens: 4000, call_timeout: 20}",
    "learning.mu": 2,
    "cold_start.steps": 1,
    "cold_start.batch_size": 2,
    "evaluation.every": "null",
    "evaluation.validation": 0,
    "checkpoint.every": 100,
    "wandb.mode": "disabled",
    "optimizer.learning_rate": "1e-3",
}
CONFIG = Path(__file__).parents[1] / "configs" / "table2-qwen3-8b-codeact.yaml"


class Killed(BaseException):
    """Exception that ends a run at once, without the work that a run does at its end."""


@dataclass
class ScriptedEngine:
    """Engine that writes the scripts; it finds the script of a completion by the turns in the context."""

    policy: Policy
    golds: dict[str, str]
    scripts: list[list[str]]
    contexts: list[list[int]] = field(default_factory=list)
    name = "scripted"

    def check_capacity(self, tokens: int) -> None: ...

    def sleep(self) -> None: ...

    def sync(self, policy: Policy) -> dict[str, float]:
        self.policy = policy
        return {}

    def generate(self, request: Request, on_completion: Callable | None = None) -> list[list[Completion]]:
        self.contexts += request.prompts
        tokenizer, groups = self.policy.tokenizer, []
        for ids in request.prompts:
            text = tokenizer.decode(ids)
            question = re.search(r"user\n(.*?)<\|im_end\|>", text, re.DOTALL)[1]
            turns = re.findall(r"assistant\n(.*?)<\|im_end\|>", text, re.DOTALL)
            gold = self.golds[question]
            scripts = [[turn.replace("{gold}", gold) for turn in script] for script in self.scripts]
            wanted = scripts if not turns else [s for s in scripts if s[: len(turns)] == turns][:1]
            groups.append([self._completion(script[len(turns)]) for script in wanted[: request.group_size]])
        return groups

    def _completion(self, text: str) -> Completion:
        tokenizer = self.policy.tokenizer
        ids = tokenizer.encode(text, add_special_tokens=False)
        ids += [] if text.endswith(("</execute>", "</solution>")) else [tokenizer.eos_token_id]
        return Completion(ids, [-0.5] * len(ids), text, truncated=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "Qwen3-8B"  # the report finds the paper's figures by this name
    tokenizer = tiny_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=8192,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data() -> Path:
    folder = Path(__file__).parents[2] / "shared" / "data" / "codeact"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/codeact")
    return folder


@dataclass
class Workshop:
    """Helper that starts and resumes runs with the scripted engine."""

    model: Path
    data: Path
    runs: Path
    scripts: list[list[str]] = field(default_factory=lambda: SCRIPTS)
    engines: list[ScriptedEngine] = field(default_factory=list)

    def options(self, **changes: Any) -> Any:
        benchmarks = [{"name": n, "path": str(self.data), "split": "test", "limit": k} for n, k in self.measured]
        tasks = [{"name": "codeact", "path": str(self.data)}]
        values = {
            **OPTIONS,
            "model.weights": "float32",
            "optimizer.eight_bit": "false",
            "model.name": self.model,
            "tasks": json.dumps(tasks),
            "evaluation.benchmarks": json.dumps(benchmarks),
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
        return load_config([CONFIG], [f"{key}={value}" for key, value in values.items()])

    measured = (("codeact", 2), ("mint", 3), ("wtq", 1))

    def start(self, name: str, **changes: Any) -> Path:
        session.start_run(self.options(**changes), self.runs / name, [])
        return self.runs / name

    def resume(self, name: str) -> Path:
        session.resume_run(self.runs / name, None, [])
        return self.runs / name


@pytest.fixture(scope="module")
def workshop(model: Path, data: Path, sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    shop = Workshop(model, data, tmp_path_factory.mktemp("runs"))
    golds = {
        problem.question.strip(): problem.answer
        for name, split in (("codeact", "train"), ("codeact", "test"), ("mint", "test"), ("wtq", "test"))
        for problem in load_problems(name, path=str(data), split=split)
    }

    @contextlib.contextmanager
    def open_sandbox(limits: SandboxLimits) -> Iterator[Sandbox]:
        assert (limits.call_timeout, limits.memory_mib, limits.output_chars) == (20.0, 512, 2000)
        yield sandbox  # starting another sandbox takes seconds

    def open_engine(rollout: Any, policy: Policy, named: bool, learns: bool = True) -> ScriptedEngine:
        shop.engines.append(ScriptedEngine(policy, golds, shop.scripts))
        return shop.engines[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "open_engine", open_engine)
        patch.setattr(episodes, "Sandbox", open_sandbox)
        yield shop


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox(SandboxLimits(call_timeout=20))
    try:
        sandbox.__enter__()
    except UserError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must be able to confine programs: {error}")
        pytest.skip(str(error))
    yield sandbox
    sandbox.__exit__()


@pytest.fixture(scope="module")
def played(workshop: Workshop) -> Path:
    return workshop.start("whole")


def test_the_rewards_and_outcomes_are_those_of_the_scripts(played: Path):
    kept = rows(played / "completions.jsonl")
    assert len(kept) == 4 * G
    for number, row in enumerate(kept):
        outcome, member = row["outcome"], number % G
        assert [turn["text"] for turn in row["turns"]] == [t.format(gold=row["gold"]) for t in SCRIPTS[member]]
        assert outcome["ended"] == ["solved", "solved", "proposals", "turns"][member]
        assert outcome["calls"] == [1, 2, 1, 0][member]
        assert (row["r_answer"], row["r_format"]) == [(1, 1), (1, 1), (0, 1), (0, 0)][member]
    assert "43" in kept[1]["turns"][1]["answer"]
    assert "Permission" in kept[2]["turns"][1]["answer"]
    assert "root:" not in kept[2]["turns"][1]["answer"]
    metrics = rows(played / "metrics.jsonl")
    assert [row["episodes/solved"] for row in metrics] == [0.5] * 4
    assert [row["episodes/turns"] for row in metrics] == [(2 + 3 + 3 + 5) / 4] * 4
    assert all(row["sandbox/failures"] == 0 and row["time/environment"] >= 0 for row in metrics)


def test_the_kept_tokens_say_which_the_policy_wrote(played: Path):
    for row in rows(played / "completions.jsonl"):
        assert sum(row["written"]) == len(row["pieces"]) == len(row["weights"])
        assert sum(row["written"][::2]) == row["tokens"]
        assert len(row["written"]) == 2 * len(row["turns"]) - 1
        start, written = 0, []
        for place, count in enumerate(row["written"]):
            if place % 2 == 0:
                written.append("".join(row["pieces"][start : start + count]).removesuffix("<|im_end|>"))
            start += count
        assert written == [turn["text"] for turn in row["turns"]]


def test_the_policy_reads_the_instructions_and_what_is_left(workshop: Workshop, played: Path):
    contexts = [workshop.engines[0].policy.tokenizer.decode(ids) for ids in workshop.engines[0].contexts]
    assert any("You have 5 chances to interact" in text for text in contexts)
    assert any("You have 4 steps left and 2 chances to propose solution left." in text for text in contexts)


def test_benchmarks_are_solved_rates_with_their_parts(played: Path):
    summary = {
        (row["step"], row["benchmark"]): row for row in json.loads((played / "eval" / "summary.json").read_text())
    }
    assert set(summary) == {(step, name) for step in (0, 4) for name in ("codeact", "mint", "wtq")}
    for row in summary.values():
        assert row["pass_at_1"] == 1.0  # greedy sampling follows the first script
        assert (row["turns"], row["proposals"], row["max_tokens"]) == (5, 2, 4000)
        assert row["episodes"]["turns"] == 2.0
        assert row["episodes"]["solved_at_first"] == 1.0
    answers = rows(played / "eval" / "mint.jsonl")
    assert {row["part"] for row in answers} <= {"math", "gsm8k", "mmlu", "theoremqa"}
    assert all(row["played"][-1]["status"] == "solved" for row in answers)


def test_killed_in_a_rollout_and_its_fork_server_lost_after_that_a_run_ends_the_same(
    workshop: Workshop, played: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
):
    step, calls, failures = CodeActEnvironment.step, 0, sandbox.failures

    def disturbed(self: CodeActEnvironment, moves: Any) -> Any:
        nonlocal calls
        calls += len(moves) > 1  # neither the preflight nor a benchmark of one problem
        if calls == 11:  # in the second rollout, after 4 in evaluations and 5 in the first
            calls += 1
            raise Killed
        if calls == 15:
            os.kill(sandbox.server_process_id, signal.SIGKILL)
        return step(self, moves)

    monkeypatch.setattr(CodeActEnvironment, "step", disturbed)
    with pytest.raises(Killed):
        workshop.start("killed")
    resumed = workshop.resume("killed")
    assert sandbox.failures == failures + 1
    assert (resumed / "completions.jsonl").read_bytes() == (played / "completions.jsonl").read_bytes()
    for name in ("checkpoints/step-4/model.safetensors", "eval/mint.jsonl"):
        assert (resumed / name).read_bytes() == (played / name).read_bytes()
    one, other = (
        [{k: v for k, v in row.items() if k != "sandbox/failures"} for row in without_times(path)]
        for path in (resumed, played)
    )
    assert one == other


def test_a_rollout_that_no_repetition_would_give_again_is_kept_until_it_is_in_a_checkpoint(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
):
    log = Tracker.log

    def fatal(self: Tracker, step: int, metrics: Any) -> None:
        log(self, step, metrics)
        if step == 2:
            raise Killed

    workshop.scripts = [[CLOCK, *script[1:]] if number == 0 else script for number, script in enumerate(SCRIPTS)]
    changes = {"steps": 2, "evaluation__benchmarks": "[]"}
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Tracker, "log", fatal)
            with pytest.raises(Killed):
                workshop.start("clock", **changes)
        before = rows(workshop.runs / "clock" / "completions.jsonl")
        assert [path.name for path in (workshop.runs / "clock" / "rollouts").iterdir()] == ["rollout-0.pt"]
        resumed = workshop.resume("clock")
        assert rows(resumed / "completions.jsonl") == before
        assert not (resumed / "rollouts").exists()
    finally:
        workshop.scripts = SCRIPTS


def test_a_sandbox_that_fails_for_good_ends_the_run_with_its_state_saved(
    workshop: Workshop, played: Path, monkeypatch: pytest.MonkeyPatch
):
    step, calls = CodeActEnvironment.step, 0

    def failing(self: CodeActEnvironment, moves: Any) -> Any:
        nonlocal calls
        calls += len(moves) > 1
        if calls == 6:  # the first turn of the second rollout
            raise UserError("the sandbox is gone")
        return step(self, moves)

    with monkeypatch.context() as patch:
        patch.setattr(CodeActEnvironment, "step", failing)
        with pytest.raises(UserError, match="gone"):
            workshop.start("failed", evaluation__benchmarks="[]")
    folder = workshop.runs / "failed"
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-2"]
    ended = workshop.resume("failed") / "checkpoints" / "step-4" / "model.safetensors"
    assert ended.read_bytes() == (played / "checkpoints" / "step-4" / "model.safetensors").read_bytes()


def test_the_report_has_the_paper_s_column_and_what_is_absent(
    workshop: Workshop, played: Path, monkeypatch: pytest.MonkeyPatch
):
    out = workshop.runs / "report"
    monkeypatch.setattr(page, "figures", lambda collection: ())
    write_report([played], out, paper=True)
    text = (out / "report.md").read_text()
    heading = next(line for line in text.splitlines() if line.startswith("| Method"))
    for column in ("codeact", "paper: codeact", "mint", "wtq"):
        assert column in heading
    assert "HumanEval, MBPP, HotpotQA and ALFWorld" in text
    assert "at most 5 turns and 2 proposals" in text
    assert '"outcome":{"solved":true' in (out / "index.html").read_text()
