"""A rollout keeps 256 code-acting episodes alive at once; the test prints what their calls take."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil
import pytest
import torch

from sspo_cli.config import EpisodeOptions, ModelOptions, TinyModelOptions
from sspo_cli.environments.codeact import CodeActEnvironment
from sspo_cli.environments.episode import EpisodeLimits
from sspo_cli.environments.sandbox import Sandbox
from sspo_cli.policy.model import Policy, load_policy
from sspo_cli.rewards import AnswerChecker
from sspo_cli.rollout.engine import Request, Sampling
from sspo_cli.rollout.episodes import Stage, play
from sspo_cli.tasks.prompts import Template
from sspo_cli.types import Completion, Problem

pytestmark = pytest.mark.long

PROMPTS, G = 32, 8
TURNS = ["<execute>x = 6*7\nprint(x)</execute>", "<execute>print(x + 1)</execute>", "<solution>43</solution>"]


@dataclass
class ScriptedEngine:
    """Writes the same turn in all episodes, and records the sandbox's interpreters and memory before each turn."""

    policy: Policy
    sandbox: Sandbox
    interpreters: list[int] = field(default_factory=list)
    bytes_of_one: float = 0.0

    def generate(self, request: Request, on_completion: Callable | None = None) -> list[list[Completion]]:
        processes = psutil.Process(self.sandbox.server_process_id).children()
        if processes:
            self.bytes_of_one = sum(each.memory_full_info().uss for each in processes) / len(processes)
        turn = TURNS[len(self.interpreters)]
        self.interpreters.append(len(processes))
        ids = self.policy.tokenizer.encode(turn, add_special_tokens=False)
        completion = Completion(ids, [-0.5] * len(ids), turn, truncated=False)
        return [[completion] * request.group_size for _ in request.prompts]


def test_a_rollout_of_256_episodes_that_are_alive_at_once() -> None:
    policy = load_policy(ModelOptions(tiny=TinyModelOptions(hidden_size=16, layers=1, heads=1)), torch.device("cpu"))
    options, spent = EpisodeOptions(turns=5, proposals=1, max_tokens=4096), [0.0]

    @contextmanager
    def timed() -> Iterator[None]:
        start = time.perf_counter()
        yield
        spent.append(time.perf_counter() - start)

    with AnswerChecker(workers=1, timeout=60.0) as checker, Sandbox() as sandbox:
        environment = CodeActEnvironment(sandbox, checker, EpisodeLimits(options.turns, options.proposals))
        stage = Stage.of({"codeact": environment}, options, policy)
        problems = [Problem(str(n), f"{n}?", "43", "codeact", environment="codeact") for n in range(PROMPTS)]
        prompts = [stage.render(problem, Template.of("plain"), policy.tokenizer) for problem in problems]
        engine = ScriptedEngine(policy, sandbox)
        server = psutil.Process(sandbox.server_process_id)
        before = sum(server.cpu_times()[:4])
        groups = play(engine, prompts, G, Sampling(1.0, 64, seed=0), stage, time_environment=timed)
        deadline = time.monotonic() + 60
        while server.children():  # killed processes disappear when their server has waited for them
            assert time.monotonic() < deadline
            time.sleep(0.1)
        processor = sum(server.cpu_times()[:4]) - before  # includes the time of the interpreters, which have ended
    episodes = [completion.episode for group in groups for completion in group]
    assert engine.interpreters == [0, PROMPTS * G, PROMPTS * G]
    assert len(episodes) == PROMPTS * G
    assert all(episode.outcome.solved and episode.outcome.calls == 2 for episode in episodes)
    assert all(episode.reward.total == 2 for episode in episodes)
    assert {episode.turns[1].answer.split("\n")[1] for episode in episodes} == {"43"}
    first, second, proposals, processor = (each / len(episodes) * 1000 for each in (*spent[1:], processor))
    print(
        f"ms an episode: {first:.1f} the first call with its interpreter, {second:.1f} the second, {proposals:.1f} the check of "
        f"a proposal and the end; {processor:.1f} of a processor; {engine.bytes_of_one / 2**20:.1f} MiB of its own"
    )
