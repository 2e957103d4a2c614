"""Models are computed as they compute themselves, or refused in a sentence that says what differs."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig

from sspo_cli.config import ModelOptions
from sspo_cli.errors import UserError
from sspo_cli.model_check import check_model
from sspo_cli.model_check.structure import check_small
from sspo_cli.policy.logprobs import LogitTransform
from sspo_cli.rollout import torch_engine

LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096}


def check(kind: str, reach: int = 64, gradient_checkpointing: bool = False, **values) -> None:
    config = AutoConfig.for_model(kind, **values)
    options = ModelOptions(name=kind, gradient_checkpointing=gradient_checkpointing)
    check_small(kind, config, options, reach, learns=True, samples=True)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "granite", "mistral", "lfm2", "jamba", "falcon"])
def test_these_kinds_are_right(kind):
    check(kind)


@pytest.mark.parametrize("kind", ["phimoe", "opt", "seed_oss"])
def test_what_training_mode_draws_at_random_is_left_out_under_gradient_checkpointing(kind):
    check(kind, gradient_checkpointing=True)


def test_pure_state_spaces_are_refused():
    with pytest.raises(UserError, match="mamba is not computed right by sspo: the torch sampler's log-probabilities"):
        check("mamba")


def test_lengths_that_cross_the_switch_of_longrope_are_refused_and_those_below_are_not():
    factors = {"short_factor": [1.0] * 48, "long_factor": [4.0 + i for i in range(48)]}
    values = {"rope_parameters": {**LONG, **factors}, "original_max_position_embeddings": 4096}
    check("phi3", reach=4000, max_position_embeddings=131072, **values)
    with pytest.raises(UserError, match=r"original_max_position_embeddings = 4096 tokens.* together within 4096"):
        check("phi3", reach=5000, max_position_embeddings=131072, **values)


def test_a_right_model_passes_and_each_thing_that_is_wrong_is_found(policy, monkeypatch):
    check_model(policy)
    with pytest.raises(UserError, match=r"differ from those of each row alone by .* nats, where rounding makes"):
        check_model(replace(policy, transform=LogitTransform(cap=5.0)))
    with monkeypatch.context() as patch:
        patch.setattr(torch_engine, "_sample", lambda *args: (lambda c, p: (c, p - 0.1))(*SAMPLE(*args)))
        with pytest.raises(UserError, match=r"torch sampler's log-probabilities differ .* by 0.1 nats"):
            check_model(policy)
    with torch.no_grad():
        policy.parameters[3][0] = float("nan")
    with pytest.raises(UserError, match=r"are not finite .NaN or infinite in model.layers.0"):
        check_model(policy)


SAMPLE = torch_engine._sample
