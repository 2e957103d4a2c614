"""Tests of loading and saving a policy, in the formats that other programs read."""

import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sspo_cli.config import LoraOptions, ModelOptions
from sspo_cli.errors import UserError
from sspo_cli.policy.model import load_policy, resolve_device
from sspo_cli.policy.optimizer import adamw

CPU = torch.device("cpu")


def test_a_saved_policy_reads_and_writes_as_before(policy, tmp_path):
    """Plain transformers reads the saved policy, too: the same weights to the bit, the same ids for every character."""
    policy.save(tmp_path)
    text = "".join(map(chr, range(32, 127))) + "\n ü → 数 <think>1+2 = 3</think><answer>3</answer><|im_end|>"
    ids = policy.tokenizer.encode(text, add_special_tokens=False)
    assert policy.tokenizer.decode(ids) == text
    assert len(policy.tokenizer.encode("3+9-5=7")) == 7
    for tokenizer in (AutoTokenizer.from_pretrained(tmp_path), load_policy(ModelOptions(), CPU, tmp_path).tokenizer):
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.chat_template == policy.tokenizer.chat_template
    for model in (AutoModelForCausalLM.from_pretrained(tmp_path), load_policy(ModelOptions(), CPU, tmp_path).model):
        for name, value in policy.model.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name


def test_the_default_model_has_about_the_promised_size():
    policy = load_policy(ModelOptions(), CPU)
    assert 0.15e6 < sum(parameter.numel() for parameter in policy.parameters) < 0.25e6
    assert policy.vocabulary == len(policy.tokenizer)


def test_a_longer_context_changes_no_weight_of_the_tiny_model_and_is_saved(tiny, tmp_path):
    short = load_policy(ModelOptions(tiny=tiny), CPU)
    long = load_policy(ModelOptions(tiny=tiny.model_copy(update={"context": 8192})), CPU)
    assert (short.context, long.context, long.tokenizer.model_max_length) == (1024, 8192, 8192)
    for name, value in short.model.state_dict().items():
        assert torch.equal(long.model.state_dict()[name], value), name
    long.save(tmp_path)
    again = load_policy(ModelOptions(tiny=tiny), CPU, tmp_path)
    assert (again.context, again.tokenizer.model_max_length) == (8192, 8192)


def test_bfloat16_weights_are_computed_with_as_such_and_the_same_when_loaded(tiny, tmp_path, make_batch):
    options = ModelOptions(tiny=tiny, weights="bfloat16")
    policy = load_policy(options, CPU)
    assert {parameter.dtype for parameter in policy.parameters} == {policy.dtype} == {torch.bfloat16}
    policy.save(tmp_path)
    again = load_policy(options, CPU, tmp_path)
    assert {parameter.dtype for parameter in again.parameters} == {torch.bfloat16}
    assert torch.equal(again.logprobs(make_batch(), 1.0)[0], policy.logprobs(make_batch(), 1.0)[0])


def test_eight_bits_without_torchao_are_reported(policy, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(UserError, match=r"optimizer.eight_bit needs torchao; install it with `pip install torchao`"):
        adamw(policy.parameters, (0.9, 0.99), 0.0, eight_bit=True)


def test_a_lora_checkpoint_is_an_adapter_that_trains_on(tiny, tmp_path, make_batch):
    options = ModelOptions(tiny=tiny, lora=LoraOptions(rank=4))
    policy = load_policy(options, CPU)
    with torch.no_grad():
        for parameter in policy.parameters:
            parameter.normal_()
    policy.save(tmp_path)
    again = load_policy(options, CPU, tmp_path)
    batch = make_batch()
    torch.testing.assert_close(again.logprobs(batch, 1.0)[0], policy.logprobs(batch, 1.0)[0])
    assert len(again.parameters) == len(policy.parameters) > 0


def test_adapters_begin_by_their_own_seed_whatever_was_drawn_before(tiny):
    def start(seed):
        torch.rand(3)
        return load_policy(ModelOptions(tiny=tiny, lora=LoraOptions(rank=4, seed=seed)), CPU).parameters

    first, again, other = start(0), start(0), start(1)
    drawn = [parameter.std() > 0 for parameter in first]  # A of each pair is drawn; B begins at 0
    assert sum(drawn) == len(first) // 2
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    assert [not torch.equal(a, b) for a, b in zip(first, other, strict=True)] == drawn


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (["tokenizer.json", "tokenizer_config.json"], "has no tokenizer"),
        (["chat_template.jinja"], "has no chat template"),
        (["config.json"], "has no config.json"),
        (["model.safetensors"], "has no weights"),
    ],
)
def test_an_incomplete_model_folder_is_reported(policy, tmp_path, missing, said):
    policy.save(tmp_path)
    for name in missing:
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=said):
        load_policy(ModelOptions(name=str(tmp_path)), CPU)


def test_damaged_weights_and_unknown_names_are_reported(policy, tmp_path):
    policy.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_policy(ModelOptions(name=str(tmp_path)), CPU)
    with pytest.raises(UserError, match=r"model.name = nobody/nothing cannot be loaded"):
        load_policy(ModelOptions(name="nobody/nothing"), CPU)
    for path in (str(tmp_path / "nowhere"), "./nowhere", "a/b/c"):
        with pytest.raises(UserError, match=f"model.name = {path}: there is no such folder"):
            load_policy(ModelOptions(name=path), CPU)


def test_a_device_that_is_not_there_is_reported():
    with pytest.raises(UserError, match="device = cuda:7 is not available"):
        resolve_device("cuda:7")
    with pytest.raises(UserError, match="device = quantum is not available"):
        resolve_device("quantum")


def test_a_device_that_torch_has_and_sspo_has_not_is_reported():
    with pytest.raises(UserError, match="device = meta is not supported by sspo; use auto, cpu or cuda"):
        resolve_device("meta")


def test_a_float32_policy_after_a_bfloat16_one_computes_exactly_again(tiny):
    """The precision of matrix products is a setting of the process, and `sspo eval` loads several policies in turn."""
    load_policy(ModelOptions(tiny=tiny, dtype="bfloat16"), CPU)
    assert torch.get_float32_matmul_precision() == "high"
    load_policy(ModelOptions(tiny=tiny), CPU)
    assert torch.get_float32_matmul_precision() == "highest"
