"""A model is computed as its own code computes it, or refused with a sentence that names the difference."""

from dataclasses import replace

import pytest
import torch
from commands import assert_error, sspo
from small_runs import arguments
from transformers import AutoConfig, Gemma2Config, Gemma2ForCausalLM

from sspo_cli import model_check
from sspo_cli.config import LoraOptions, ModelOptions
from sspo_cli.errors import UserError
from sspo_cli.model_check import check_model, check_reach, check_structure
from sspo_cli.model_check.structure import Limit, check_small
from sspo_cli.policy.logprobs import IDENTITY, LogitTransform
from sspo_cli.policy.model import build_policy, check_ids
from sspo_cli.policy.tiny import tiny_tokenizer
from sspo_cli.rollout import torch_engine

CPU = torch.device("cpu")
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096}
SHAPE = {"hidden_size": 64, "num_attention_heads": 4}
TINY = {"vocab_size": 270, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SAMPLE = torch_engine._sample


def check(kind: str, options: dict | None = None, **values) -> Limit | None:
    config = AutoConfig.for_model(kind, **values)
    return check_small(kind, config, ModelOptions(name=kind, **(options or {})), samples=True)


RIGHT = {
    "gemma2": {"head_dim": 16},
    "gemma4_text": {"head_dim": 16, "global_head_dim": 32},  # for the layers with full attention
    "granite": SHAPE,
    "llama4_text": {**SHAPE, "head_dim": 16},
    "lfm2": SHAPE,
    "jamba": SHAPE,
    "falcon": SHAPE,
    "mamba": {"hidden_size": 32, "state_size": 4},
}


@pytest.mark.parametrize("kind", RIGHT)
def test_these_kinds_are_right_at_every_length(kind):
    assert check(kind, **RIGHT[kind]) is None


@pytest.mark.parametrize("kind", ["phimoe", "seed_oss"])
def test_what_training_mode_draws_at_random_is_left_out_under_gradient_checkpointing(kind):
    assert check(kind, {"gradient_checkpointing": True}, **SHAPE, num_key_value_heads=2) is None


def test_adapters_are_checked_in_small():
    lora = {"lora": LoraOptions(targets=["layers.17.self_attn.q_proj", "up_proj"])}
    assert check("llama", lora, **SHAPE) is None
    with pytest.raises(UserError, match=r"targets = all-linear of MambaForCausalLM: .*; name other linear layers"):
        check("mamba", {"lora": LoraOptions()})


def test_a_model_that_samples_otherwise_than_it_reads_is_refused_with_that_reason():
    """Nemotron-H limits the time step from below when it reads a text, but not when it reads a single token."""
    with pytest.raises(UserError, match=r"token by token, as in sampling, differ .*; choose another model"):
        check("nemotron_h", hidden_size=32, num_attention_heads=2, head_dim=16, mamba_head_dim=16, ssm_state_size=16)


def test_lengths_that_cross_the_switch_of_longrope_are_refused_and_those_below_are_not():
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0 + i for i in range(8)]}
    values = {"rope_parameters": {**LONG, **factors}, "original_max_position_embeddings": 4096}
    # The sliding window is computed right, so it sets no limit.
    limit = check("phi3", max_position_embeddings=131072, sliding_window=512, **values, **SHAPE)
    check_reach(limit, 4096, "phi3")
    with pytest.raises(UserError, match=r"original_max_position_embeddings = 4096 tokens.* together within 4096"):
        check_reach(limit, 4097, "phi3")


def test_a_right_structure_is_checked_once_and_kept_with_its_limit(tmp_path, monkeypatch):
    AutoConfig.for_model("mistral", **SHAPE).save_pretrained(tmp_path)
    limit, calls = Limit(7, "sliding_window", "everything differs"), []
    monkeypatch.setattr(model_check, "check_small", lambda *args, **kwargs: (calls.append(args), limit)[1])
    for options in ({}, {}, {"gradient_checkpointing": True}):
        given = ModelOptions(name=str(tmp_path), **options)
        assert check_structure(given, pytest.fail, samples=True) == limit
    assert len(calls) == 2  # gradient checkpointing is another computation


def test_a_model_that_cannot_be_made_small_is_noted(tmp_path):
    AutoConfig.for_model("codegen").save_pretrained(tmp_path)
    notes: list[str] = []
    assert check_structure(ModelOptions(name=str(tmp_path)), notes.append, samples=True) is None
    assert "can be made" in notes[0]
    assert "only the full model is checked" in notes[0]


def test_a_right_model_passes_and_each_thing_that_is_wrong_is_found(policy, monkeypatch):
    check_model(policy, samples=True)
    with pytest.raises(UserError, match=r"differ from those of each row alone by .* nats, but rounding causes only"):
        check_model(replace(policy, transform=LogitTransform(cap=5.0)), samples=True)
    with monkeypatch.context() as patch:
        patch.setattr(torch_engine, "_sample", lambda *args: (lambda c, p: (c, p - 0.1))(*SAMPLE(*args)))
        check_model(policy, samples=False)
        with pytest.raises(UserError, match=r"torch sampler's log-probabilities differ .* by 0.1 nats"):
            check_model(policy, samples=True)
    with monkeypatch.context() as patch:
        last = torch.tensor([0.0, 0.0, 0.0, float("nan")])
        patch.setattr(torch_engine, "_sample", lambda *args: (lambda c, p: (c, p + last[-len(p) :]))(*SAMPLE(*args)))
        with pytest.raises(UserError, match=r"torch sampler's log-probabilities differ .* by nan nats"):
            check_model(policy, samples=True)
    with torch.no_grad():
        policy.parameters[3][0] = float("nan")
    with pytest.raises(UserError, match=r"are not finite .NaN or infinite in model.layers.0"):
        check_model(policy, samples=True)


def test_a_soft_cap_that_is_left_out_is_found_in_bfloat16():
    torch.manual_seed(0)
    config = Gemma2Config(**TINY, num_key_value_heads=2, head_dim=16, final_logit_softcapping=3.0)
    model = Gemma2ForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20)  # scales the tied head too, so that the cap matters
    policy = build_policy(model, tiny_tokenizer(), ModelOptions(), CPU, torch.bfloat16)
    check_model(policy, samples=True)
    with pytest.raises(UserError, match=r"sspo does not compute .* correctly in torch.bfloat16: .* differ"):
        check_model(replace(policy, transform=IDENTITY), samples=True)


def test_tokens_beyond_the_embedding_are_replaced_where_nobody_reads_them_and_refused_elsewhere(policy):
    tokenizer = policy.tokenizer
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.add_tokens(["Pythagoras"])
    assert tokenizer.pad_token_id == policy.vocabulary
    assert policy.pad_id == policy.end_ids[0]
    check_model(policy, samples=True)  # the rows of the check are padded
    with pytest.raises(UserError, match=r"the prompt has token \d+ .'Pythagoras'., but the model has only \d+"):
        check_ids(tokenizer.encode("as Pythagoras says"), policy, "the prompt")


def test_the_context_of_a_multimodal_model_is_that_of_its_text(policy):
    text = {"max_position_embeddings": 77}
    policy.model.config = AutoConfig.for_model("qwen3_5", text_config=text)
    assert policy.context == 77


@pytest.fixture(params=["eval", "train"])
def command(request, tmp_path) -> list:
    """Return a command that uses the model in `tmp_path / "model"`."""
    if request.param == "eval":
        return ["eval", tmp_path / "model", "-b", "arithmetic", "--limit", "4", "--runs-dir", tmp_path / "runs"]
    return arguments(tmp_path / "runs", "-s", f"model.name={tmp_path / 'model'}")


def test_a_model_with_a_weight_that_is_not_a_number_is_refused_before_anything_is_done(policy, tmp_path, command):
    with torch.no_grad():
        policy.parameters[3][0] = float("nan")
    policy.save(tmp_path / "model")
    assert_error(sspo(*command), "are not finite (NaN or infinite in model.layers.0")


def test_texts_longer_than_a_model_is_right_for_are_refused(policy, tmp_path, command, monkeypatch):
    policy.save(tmp_path / "model")
    for road in ("examination", "evaluation.command"):
        limit = Limit(20, "sliding_window", "everything differs")
        monkeypatch.setattr(f"sspo_cli.{road}.check_structure", lambda *args, limit=limit, **options: limit)
    assert_error(sspo(*command), "correctly for texts longer than sliding_window = 20 tokens, but up to")
