"""Weights that do not match the model are refused however they are loaded; unused weights are reported."""

import json
from pathlib import Path

import pytest
import torch
from commands import assert_error, sspo
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from sspo_cli.config import ModelOptions
from sspo_cli.errors import UserError
from sspo_cli.policy.model import load_policy
from sspo_cli.policy.tiny import tiny_tokenizer

CPU = torch.device("cpu")
QUICK = {
    "steps": 1,
    "rollout__prompts": 2,
    "rollout__group_size": 2,
    "rollout__max_new_tokens": 4,
    "tasks": "[{name: arithmetic, limit: 4}]",
    "evaluation__benchmarks": "[]",
    "cold_start__steps": 0,
}


@pytest.fixture
def folder(policy, tmp_path) -> Path:
    policy.save(tmp_path / "model")
    return tmp_path / "model"


def change_weights(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def change_config(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def rename(tensors) -> None:
    tensors["model.layers.1.mlp.up.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")


BREAKS = {
    "renamed": (lambda f: change_weights(f, rename), r"1 is missing \(model.layers.1.mlp.up_proj.weight\)"),
    "dropped": (
        lambda f: change_weights(f, lambda t: t.pop("model.norm.weight")),
        r"1 is missing \(model.norm.weight\)",
    ),
    "a layer more in the config": (
        lambda f: change_config(f, num_hidden_layers=3, layer_types=["full_attention"] * 3),
        r"12 are missing \(model.layers.2.input_layernorm.weight, .*, …\)",
    ),
    "another width": (
        lambda f: change_config(f, intermediate_size=64),
        r"6 are of another shape \(model.layers.0.mlp.down_proj.weight of shape 32×48 for 32×64, .*, …\)",
    ),
    "another vocabulary": (lambda f: change_config(f, vocab_size=280), "1 is of another shape .*embed_tokens"),
    "an untied projection": (lambda f: change_config(f, tie_word_embeddings=False), r"1 is missing \(lm_head.weight\)"),
    "another architecture": (
        lambda f: change_config(f, model_type="gpt2", architectures=["GPT2LMHeadModel"]),
        "of GPT2LMHeadModel's tensors, .* are missing",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_weights_that_are_not_the_config_s_are_refused(folder, name):
    change, said = BREAKS[name]
    change(folder)
    with pytest.raises(UserError, match=rf"(?s)the weights of {folder} do not match its config.json: .*{said}"):
        load_policy(ModelOptions(name=str(folder)), CPU)
    with pytest.raises(UserError, match=r"do not match its config\.json"):  # like a checkpoint or a cold start
        load_policy(ModelOptions(), CPU, folder)


ARITHMETIC = ("-b", "arithmetic", "--limit", "2", "-s", "prompt=plain")


def test_the_commands_refuse_them_before_anything_is_spent(folder, tmp_path):
    change_weights(folder, rename)
    where = {"model__name": folder, **QUICK}
    assert_error(sspo("train", "--runs-dir", tmp_path / "runs", **where), "do not match its config.json")
    assert_error(sspo("eval", folder, *ARITHMETIC, "--runs-dir", tmp_path / "runs"), "do not match its config.json")
    assert not list(tmp_path.glob("runs/*/metrics.jsonl"))


def test_tensors_that_are_not_used_are_reported(folder, tmp_path):
    change_weights(folder, lambda tensors: tensors.update({"score.weight": torch.zeros(1, 32)}))
    policy = load_policy(ModelOptions(name=str(folder)), CPU)
    (note,) = policy.notes
    assert "1 is not used (score.weight), because Qwen2ForCausalLM has no such weights" in note
    done = sspo("train", "--runs-dir", tmp_path / "runs", model__name=folder, **QUICK)
    assert done.returncode == 0, done.stderr
    assert "score.weight" in done.stdout
    done = sspo("eval", folder, *ARITHMETIC, "--runs-dir", tmp_path / "runs", "--max-new-tokens", "4")
    assert done.returncode == 0, done.stderr
    assert "score.weight" in done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["gpt2", "llama tied", "llama"])
def test_whole_models_have_nothing_to_report(tmp_path, kind):
    """Tied weights and buffers that are not stored do not count as missing."""
    shape = {"vocab_size": 270, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=270, n_embd=32, n_layer=2, n_head=2))
    else:
        model = LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=48, tie_word_embeddings=kind == "llama tied"))
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load_policy(ModelOptions(name=str(tmp_path)), CPU).notes == ()


@pytest.mark.parametrize("method", ["secret4bit", None])
def test_an_unknown_quantization_is_refused(folder, method):
    change_config(folder, quantization_config={"bits": 4, **({"quant_method": method} if method else {})})
    with pytest.raises(UserError, match=f"are quantized by {method!r}, which the installed transformers does not know"):
        load_policy(ModelOptions(name=str(folder)), CPU)
