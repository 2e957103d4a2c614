"""Tests of the weights that another engine receives, and of the probe that checks their arrival, without vLLM."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from sspo_cli.config import LoraOptions, ModelOptions
from sspo_cli.errors import UserError
from sspo_cli.policy import sharded_files
from sspo_cli.policy.model import load_policy
from sspo_cli.rollout.probe import probe
from sspo_cli.rollout.torch_engine import TorchEngine
from sspo_cli.rollout.weights import checkpoint_weights, write_weights

CPU = torch.device("cpu")


@pytest.fixture
def adapted(tiny):
    """A LoRA policy whose adapters have moved."""
    policy = load_policy(ModelOptions(tiny=tiny, lora=LoraOptions(rank=4, alpha=12.0)), CPU)
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return policy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_are_those_of_the_model_in_the_dtype_asked_for(policy, dtype):
    given = dict(checkpoint_weights(policy, dtype))
    assert given.keys() == {name for name, _ in policy.model.named_parameters()}
    for name, weight in policy.model.named_parameters():
        assert torch.equal(given[name], weight.to(dtype))
        assert given[name].dtype == dtype
        assert not given[name].requires_grad


def test_adapters_are_merged_as_w_plus_alpha_over_r_b_a_and_stay_in_the_policy(adapted):
    own = {name.removeprefix("base_model.model."): p.detach().clone() for name, p in adapted.model.named_parameters()}
    given = dict(checkpoint_weights(adapted, torch.float32))
    merged = 0
    for name, weight in given.items():
        layer, _, kind = name.rpartition(".")
        base = own.get(f"{layer}.base_layer.{kind}", own.get(name))
        a, b = own.get(f"{layer}.lora_A.default.weight"), own.get(f"{layer}.lora_B.default.weight")
        if kind == "weight" and a is not None:
            base, merged = base + 12.0 / 4 * b @ a, merged + 1
        torch.testing.assert_close(weight, base, msg=name)
    assert merged == 2 * 7  # q, k, v, o, gate, up, down in two layers
    assert given.keys() == {name.replace(".base_layer", "") for name in own if ".lora_" not in name}
    for name, parameter in adapted.model.named_parameters():
        assert torch.equal(parameter, own[name.removeprefix("base_model.model.")])


@pytest.mark.parametrize("shard_bytes", [1, 20_000, 1 << 30])
def test_the_folder_holds_every_weight_once_and_nothing_of_before(policy, tmp_path, monkeypatch, shard_bytes):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model-99.safetensors").write_text("of the step before")
    monkeypatch.setattr(sharded_files, "SHARD_BYTES", shard_bytes)
    write_weights(policy, folder)
    shards = [load_file(path) for path in folder.glob("*.safetensors")]
    sizes = [sum(weight.nbytes for weight in shard.values()) for shard in shards]
    assert (len(shards) > 1) == (shard_bytes < 1 << 30)
    assert max(sizes) < shard_bytes + policy.head.weight.nbytes
    names = [name for shard in shards for name in shard]
    assert sorted(names) == sorted(name for name, _ in policy.model.named_parameters())
    for name, weight in {name: weight for shard in shards for name, weight in shard.items()}.items():
        assert torch.equal(weight, policy.model.get_parameter(name))
    if len(shards) > 1:
        places = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        assert {name: set(load_file(folder / file)) & {name} for name, file in places.items()} == {
            n: {n} for n in names
        }


def test_a_folder_that_cannot_be_written_is_reported(policy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the weights for the vLLM server cannot be written to .*weights: "):
        write_weights(policy, tmp_path / "file" / "weights")


def sampler(policy, shift=(0.0,)):
    """Return the `generate` of the torch engine on the policy, with log-probabilities shifted token by token, cyclically."""

    def generate(request):
        (group,) = TorchEngine(policy, 64).generate(request)
        shifted = [
            replace(c, sampling_logprobs=[v + shift[t % len(shift)] for t, v in enumerate(c.sampling_logprobs)])
            for c in group
        ]
        return [shifted]

    return generate


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_probe_of_the_policy_s_own_sampler_finds_no_drift(policy, temperature):
    metrics = probe(policy, sampler(policy), temperature, 1e-3)
    assert 0 <= metrics["sampler/probe_drift"] < 1e-4
    assert metrics["sampler/probe_sampler"] == pytest.approx(metrics["sampler/probe_policy"], abs=1e-4)


def test_the_probe_reports_the_mean_of_the_distances(policy):
    """A shift that alternates between +0.25 and -0.25 is 0 on average, but its mean distance is 0.25."""
    metrics = probe(policy, sampler(policy, (0.25, -0.25)), 1.0, 0.3)
    assert metrics["sampler/probe_drift"] == pytest.approx(0.25, abs=1e-4)
    metrics = probe(policy, sampler(policy, (0.25,)), 1.0, 0.3)
    assert metrics["sampler/probe_sampler"] - metrics["sampler/probe_policy"] == pytest.approx(0.25, abs=1e-4)
    with pytest.raises(UserError, match=r"differ from the policy's by 0\.25 on average, more than 0\.2, "):
        probe(policy, sampler(policy, (0.25, -0.25)), 1.0, 0.2)


@pytest.mark.parametrize("shift", [math.nan, math.inf, -math.inf])
def test_log_probabilities_that_are_no_numbers_are_refused(policy, shift):
    with pytest.raises(UserError, match="the sampler does not sample from the policy"):
        probe(policy, sampler(policy, (0.0, shift)), 1.0, math.inf)


def test_weights_of_another_policy_are_refused(policy, tiny):
    with pytest.raises(UserError, match="the sampler does not sample from the policy"):
        probe(policy, sampler(load_policy(ModelOptions(tiny=tiny), CPU)), 1.0, 0.1)
