"""`rollout.lag`: each rollout batch is sampled with earlier weights, and its ratios refer to those weights."""

import pytest
import torch
from scripted_runs import Played, ScriptedEngine, play
from small_runs import without_times

from sspo_cli import train

LAG = 2
OPTIONS = {"steps": 10, "evaluation__every": "null"}  # five rollout batches of two steps


def checksum(policy) -> float:
    return sum(float(parameter.double().sum()) for parameter in policy.parameters)


@pytest.fixture(scope="module")
def lagged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Played, list[float], list[float]]:
    """Return a run, and for each rollout batch the checksums of the weights that sampled it and of those at its start."""
    sampled, started = [], []
    generate, fill = ScriptedEngine.generate, train.behaviour_policy

    def recording(self, request, *arguments):
        if request.sampling.temperature > 0:
            sampled.append(checksum(self.policy))
        return generate(self, request, *arguments)

    def before(run):
        started.append(checksum(run.policy))
        return fill(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptedEngine, "generate", recording)
        patch.setattr(train, "behaviour_policy", before)
        run = play(tmp_path_factory.mktemp("runs"), "lagged", rollout__lag=LAG, **OPTIONS)
    return run, sampled, started


def test_each_rollout_is_sampled_by_the_weights_of_so_many_before_it(lagged):
    _, sampled, started = lagged
    assert len(set(started)) == 5
    assert sampled == [started[max(0, rollout - LAG)] for rollout in range(5)]


def test_ratios_are_to_the_weights_that_sampled(lagged, tmp_path):
    run, *_ = lagged
    plain = play(tmp_path, "plain", **OPTIONS)
    assert [std == 0 for std in plain["ratio/log_std"]] == [True, False] * 5
    assert [std == 0 for std in run["ratio/log_std"]][:2] == [True, False]
    assert all(std > 0 for std in run["ratio/log_std"][2:])
    # In every rollout batch the scripted sampler is equally far from the policy that it samples with.
    assert run["sampler/mismatch_max"] == pytest.approx([0.5] * 10, abs=1e-3)


def test_checkpoints_keep_no_more_weights_than_are_needed(lagged):
    run, *_ = lagged
    state = torch.load(run.folder / "checkpoints" / "step-10" / "trainer.pt", weights_only=True)["run"]
    assert len(state["recent_weights"]) == LAG + 1


def test_a_resumed_run_samples_with_the_weights_that_it_would_have(lagged, tmp_path):
    resumed = play(tmp_path, "resumed", {"stop_at_rollout": 4}, rollout__lag=LAG, **OPTIONS)
    assert len(resumed.engines) == 2
    assert without_times(resumed.folder) == without_times(lagged[0].folder)
