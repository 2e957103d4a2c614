"""The KL penalty in whole runs: its reference is the policy before RL, kept in the run folder for resumed runs."""

import pytest
import torch
from scripted_runs import Played, play
from small_runs import without_times

from sspo_cli.config import LoraOptions, ModelOptions
from sspo_cli.errors import UserError
from sspo_cli.policy.model import Policy, load_policy
from sspo_cli.run import reference
from sspo_cli.run.weights import given_weights
from sspo_cli.tracking.run_folder import RunFolder

OPTIONS = {"steps": 8, "evaluation__every": "null", "learning__kl": 0.5}


def policy_before(run: Played) -> Policy:
    """Return the policy that a run without a cold start begins with."""
    return load_policy(RunFolder.open(run.folder).config.model, torch.device("cpu"))


@pytest.fixture(scope="module")
def penalized(tmp_path_factory):
    """Return a run, and its rollout batches with reference log-probabilities and the weights that computed them."""
    filled = []
    fill = reference.fill_reference_logprobs

    def recording(policy, batch, *arguments):
        fill(policy, batch, *arguments)
        filled.append((batch, [parameter.clone() for parameter in policy.parameters]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "fill_reference_logprobs", recording)
        run = play(tmp_path_factory.mktemp("runs"), "penalized", **OPTIONS)
    return run, filled


def test_the_reference_of_every_rollout_is_the_policy_that_rl_started_from(penalized):
    run, filled = penalized
    start = policy_before(run)
    assert len(filled) == 4
    for batch, weights in filled:
        assert all(torch.equal(a, b) for a, b in zip(weights, start.parameters, strict=True))
        expected, _ = start.logprobs(batch, 0.7)
        torch.testing.assert_close(batch.reference_logprobs, expected.detach(), atol=1e-5, rtol=1e-5)
    assert run["policy/reference_kl"][0] == pytest.approx(0, abs=1e-9)
    assert all(divergence > 1e-6 for divergence in run["policy/reference_kl"][1:])


def test_a_penalty_keeps_the_policy_nearer_to_its_reference(penalized, tmp_path):
    run, _ = penalized
    strong = play(tmp_path, "strong", **{**OPTIONS, "learning__kl": 50})
    assert strong["policy/reference_kl"][-1] < 0.5 * run["policy/reference_kl"][-1]
    plain = play(tmp_path, "plain", **{**OPTIONS, "learning__kl": 0})
    assert plain["policy/reference_kl"] == [None] * 8
    assert not (plain.folder / reference.NAME).exists()


def test_a_resumed_run_has_the_same_reference(penalized, tmp_path):
    resumed = play(tmp_path, "resumed", {"stop_at_rollout": 3}, **OPTIONS)
    assert len(resumed.engines) == 2
    assert without_times(resumed.folder) == without_times(penalized[0].folder)


def test_the_reference_of_adapters_is_the_named_model(policy, make_batch, tmp_path):
    policy.save(tmp_path / "model")
    with_adapters = ModelOptions(name=str(tmp_path / "model"), lora=LoraOptions(rank=2))
    adapted = load_policy(with_adapters, torch.device("cpu"))
    kept = reference.keep_reference(tmp_path, adapted)
    batch = make_batch()
    with torch.no_grad():
        for parameter in adapted.parameters:
            parameter.add_(0.1)
        moved, _ = adapted.logprobs(batch, 1.0)
        with given_weights(adapted, kept):
            there, _ = adapted.logprobs(batch, 1.0)
        back, _ = adapted.logprobs(batch, 1.0)
        with adapted.model.disable_adapter():
            off, _ = adapted.logprobs(batch, 1.0)
    assert (moved - off).abs().max() > 0.01
    torch.testing.assert_close(there, off, atol=1e-6, rtol=1e-6)
    assert torch.equal(moved, back)


@pytest.mark.parametrize("damage", ["missing", "cut", "another"])
def test_a_run_without_its_reference_is_not_resumed(penalized, tmp_path, damage):
    run, _ = penalized
    path = tmp_path / reference.NAME
    content = (run.folder / reference.NAME).read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-200])
    elif damage == "another":
        torch.save([torch.zeros(3)], path)
    with pytest.raises(UserError, match=r"reference\.pt.* start a new"):
        reference.read_reference(tmp_path, policy_before(run))
