"""Tests of copies of a checkpoint's model, with its published tensor names, in its own or another dtype."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_experts import make_policy
from transformers import AutoModelForCausalLM, AutoTokenizer

from sspo_cli.policy import sharded_files
from sspo_cli.policy.checkpoint import MANIFEST, STATE, save_checkpoint
from sspo_cli.policy.copies import copy_model
from sspo_cli.policy.optimizer import adamw

PUBLISHED = "model.layers.1.mlp.experts.7.down_proj.weight"  # in memory this tensor is merged with others


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_mixture_is_copied_in_parts_and_loads_as_itself(tmp_path, monkeypatch, dtype):
    policy, checkpoint, copy = make_policy(torch.float32), tmp_path / "step-1", tmp_path / "copy"
    optimizer = adamw(policy.parameters, (0.9, 0.99), 0.0, eight_bit=False)
    save_checkpoint(checkpoint, policy, {"run": {}}, optimizer)
    copy.mkdir()
    monkeypatch.setattr(sharded_files, "SHARD_BYTES", 20_000)
    copy_model(checkpoint, copy, dtype)
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert PUBLISHED in index["weight_map"]
    assert index["weight_map"].keys() == load_file(checkpoint / "model.safetensors").keys()
    wanted = torch.bfloat16 if dtype else torch.float32
    model = AutoModelForCausalLM.from_pretrained(copy)
    assert model.dtype == wanted
    for name, weight in policy.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight.to(wanted)), name
    assert AutoTokenizer.from_pretrained(copy).chat_template
    names = {path.name for path in copy.iterdir()}
    assert not names & {MANIFEST, STATE}
    assert len({path.stat().st_mode for path in copy.iterdir()}) == 1
