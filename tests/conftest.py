"""Small models and batches that several test files use."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from forked import FORKING
from shared_data import skipped_line
from small_rows import write_small_data
from small_runs import run

from sspo_cli import supervisor
from sspo_cli.config import ModelOptions, TinyModelOptions
from sspo_cli.policy.batch import Batch, collate
from sspo_cli.policy.model import Policy, load_policy
from sspo_cli.types import Completion, Group, Problem, Prompt, Reward

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def separate_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use a temporary cache, so that no test finds models that the user has checked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.hookimpl(wrapper=True, tryfirst=True)  # after all of pytest's own output
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    yield
    if line := skipped_line(terminalreporter.stats.get("skipped", [])):
        terminalreporter.write_line(line, yellow=True)


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write made-up data sets in the layouts of the published ones, and return their folder."""
    return write_small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def tiny() -> TinyModelOptions:
    return TinyModelOptions(hidden_size=32, layers=2, heads=1, intermediate_size=48)


@pytest.fixture
def policy(tiny: TinyModelOptions) -> Policy:
    """Return a tiny random policy with weights scaled up, so that its distributions are far from uniform."""
    policy = load_policy(ModelOptions(tiny=tiny), torch.device("cpu"))
    with torch.no_grad():
        for parameter in policy.parameters:
            if parameter.ndim >= 2:
                parameter.mul_(2)
    return policy


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    def make(
        prompts: int = 3, group_size: int = 4, seed: int = 0, vocabulary: int = 90, mask_truncated: bool = False
    ) -> Batch:
        """Return a batch of ragged random prompts and completions, with random advantages; every fifth is truncated."""
        draw = torch.Generator().manual_seed(seed)

        def ids(low: int, high: int) -> list[int]:
            length = int(torch.randint(low, high, (1,), generator=draw))
            return torch.randint(4, vocabulary, (length,), generator=draw).tolist()

        groups = []
        for i in range(prompts):
            completions = [ids(1, 12) for _ in range(group_size)]
            groups.append(
                Group(
                    Prompt(Problem(str(i), "", "", "test"), "", ids(2, 9)),
                    [Completion(c, [-1.0] * len(c), "", truncated=(i + j) % 5 == 4) for j, c in enumerate(completions)],
                    [Reward(float(j % 2), 0.5, None, "ok") for j in range(group_size)],
                )
            )
        advantages = torch.randn(prompts, group_size, generator=draw)
        return collate(groups, advantages, mask_truncated=mask_truncated)

    return make


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small uninterrupted run; its folder of runs has the cold start that other runs share."""
    runs = tmp_path_factory.mktemp("runs")
    run(runs, "--run", "whole")
    return runs / "whole"


@pytest.fixture(scope="session")
def forked_ranks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor, "subprocess", FORKING)
        yield


@pytest.fixture
def forked_trials(forked_ranks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # The module is named by a string, because importing it needs pandas, which the environment of vLLM lacks.
    monkeypatch.setattr("sspo_cli.sweep.place.subprocess", FORKING)
