"""Tests of the engine that the options choose, and of the weights that another engine receives, without vLLM."""

import sys
from dataclasses import replace

import pytest
import torch
from commands import assert_error, sspo
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from sspo_cli.config import RolloutOptions, VllmOptions, load_config, validate
from sspo_cli.errors import UserError
from sspo_cli.rollout import open_engine, vllm_engine
from sspo_cli.rollout.torch_engine import TorchEngine
from sspo_cli.rollout.weights import checkpoint_weights


def test_auto_is_the_torch_engine_on_a_cpu(policy):
    assert isinstance(open_engine(RolloutOptions(), policy, named=True), TorchEngine)


def test_vllm_that_is_not_installed_is_reported(policy, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"vLLM is not installed \(`pip install vllm` .* set rollout.engine=torch"):
        open_engine(RolloutOptions(engine="vllm"), policy, named=False)
    assert not torch._dynamo.config.disable  # otherwise model.kernels=compiled would compile nothing from here on


def test_a_server_that_does_not_answer_is_reported_with_how_to_start_one(policy, tmp_path):
    options = VllmOptions(server="http://127.0.0.1:9", exchange=str(tmp_path))
    with pytest.raises(
        UserError, match=r"does not answer \(ConnectError\); start it with `VLLM_SERVER_DEV_MODE=1 vllm"
    ):
        open_engine(RolloutOptions(vllm=options), policy, named=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "torch", "vllm.enforce_eager": True}, "rollout.vllm is given, but rollout.engine = torch"),
        ({"vllm.exchange": "x"}, "rollout.vllm.exchange applies to rollout.vllm.server"),
        ({"vllm.server": "http://a:1"}, "rollout.vllm.server needs rollout.vllm.exchange"),
        (
            {"vllm.server": "http://a:1", "vllm.exchange": "x", "vllm.sleep": True},
            "rollout.vllm.sleep does not apply with rollout.vllm.server",
        ),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(options, said):
    assert_error(sspo("train", "--dry-run", **{f"rollout__{name}": value for name, value in options.items()}), said)


@pytest.mark.parametrize("vllm", ["{kv_cache_gib: 2}", "{server: http://a:1, exchange: x}"])
def test_what_is_left_of_the_options_gives_the_same_run_again(vllm):
    options = load_config(overrides=[f"rollout.vllm={vllm}"])
    assert validate(options.model_dump(mode="json")) == options


def test_experts_go_over_under_the_names_of_the_published_checkpoint(policy):
    """A checkpoint stores every expert separately, whereas a layer's experts are fused in memory."""
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16, "head_dim": 32}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape, **heads, num_experts=4, num_experts_per_tok=2))
    weights = dict(checkpoint_weights(replace(policy, model=model), torch.float32))
    experts = model.model.layers[0].mlp.experts
    assert torch.equal(weights["model.layers.0.mlp.experts.3.down_proj.weight"], experts.down_proj[3])
    assert torch.equal(weights["model.layers.0.mlp.experts.2.up_proj.weight"], experts.gate_up_proj[2, 16:])


def test_a_reader_of_the_weights_keeps_its_own_gradients(policy):
    """Gradients stay enabled for the reader, even if it stops before the last weight."""
    weights = checkpoint_weights(policy, torch.float32)
    next(weights)
    assert torch.is_grad_enabled()


def test_without_a_learner_vllm_s_engine_cannot_sleep_so_that_another_may_follow(policy, monkeypatch):
    monkeypatch.setattr("sspo_cli.rollout.check_engine", lambda options: None)  # vLLM need not be installed
    monkeypatch.setattr(vllm_engine, "VllmEngine", lambda policy, options, *_: options)
    options = RolloutOptions(engine="vllm")
    assert open_engine(options, policy, named=True).sleep
    assert not open_engine(options, policy, named=True, learns=False).sleep
