"""Adapters are placed where the options ask for them, or refused with one sentence."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from sspo_cli.config import LoraOptions, ModelOptions
from sspo_cli.errors import UserError
from sspo_cli.policy.model import load_policy
from sspo_cli.policy.tiny import tiny_tokenizer
from sspo_cli.rollout.weights import checkpoint_weights

CPU = torch.device("cpu")
SHAPE = {"vocab_size": 270, "hidden_size": 32, "num_hidden_layers": 2}
HEADS = {"intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["q_prj"], "names q_prj, but Qwen2ForCausalLM has no such layer; did you mean q_proj?"),
        (["q_proj", "v_prok"], "names v_prok, but .* did you mean v_proj?"),
        (["layers.0.self_attn.q_proj", "layers.7.self_attn.q_proj"], "names layers.7.self_attn.q_proj, but"),
        (["input_layernorm"], r"cannot be put on model.lora.targets = \[input_layernorm\] of Qwen2ForCausalLM"),
        (["q_proj", "norm"], "cannot be put on"),
        (["self_attn"], "cannot be put on"),
        (["embed_tokens"], "is tied to the vocabulary projection"),
        (["q_proj", "lm_head"], r"vocabulary projection \(lm_head\) would not be trained; leave lm_head out"),
    ],
)
def test_targets_that_are_not_there_or_cannot_be_trained_are_refused(tiny, targets, said):
    with pytest.raises(UserError, match=said):
        load_policy(ModelOptions(tiny=tiny, lora=LoraOptions(targets=targets)), CPU)


def test_adapters_on_part_of_the_layers_or_by_a_path_are_only_there(tiny):
    policy = load_policy(
        ModelOptions(tiny=tiny, lora=LoraOptions(targets=["layers.1.self_attn.q_proj", "up_proj"])), CPU
    )
    trained = {name.split(".lora_")[0] for name, p in policy.model.named_parameters() if p.requires_grad}
    assert {name.partition("layers.")[2] for name in trained} == {
        "1.self_attn.q_proj",
        "0.mlp.up_proj",
        "1.mlp.up_proj",
    }


def test_an_adapter_on_an_untied_embedding_reaches_the_sampler(tmp_path, make_batch):
    """The policy agrees with a plain model that has loaded the weights which another engine would get."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, **HEADS, tie_word_embeddings=False, initializer_range=0.2)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    options = ModelOptions(name=str(tmp_path), lora=LoraOptions(rank=4, targets=["embed_tokens", "q_proj"]))
    policy, batch = load_policy(options, CPU), make_batch()
    before = policy.logprobs(batch, 1.0)[0]
    with torch.no_grad():
        for parameter in policy.parameters:
            parameter.normal_(std=0.2)
    plain = load_policy(ModelOptions(name=str(tmp_path)), CPU)
    plain.model.load_state_dict(dict(checkpoint_weights(policy, torch.float32)))
    ours = policy.logprobs(batch, 1.0)[0]
    assert (ours - before).abs().max() > 0.1
    torch.testing.assert_close(ours, plain.logprobs(batch, 1.0)[0], atol=1e-4, rtol=1e-4)


def test_all_linear_where_peft_refuses_it_is_a_sentence(tmp_path):
    MambaForCausalLM(MambaConfig(**SHAPE, state_size=4)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"targets = all-linear of MambaForCausalLM: .*; name other linear layers"):
        load_policy(ModelOptions(name=str(tmp_path), lora=LoraOptions()), CPU)


def test_a_saved_adapter_without_all_of_its_tensors_is_refused(tiny, tmp_path):
    options = ModelOptions(tiny=tiny, lora=LoraOptions(rank=4))
    load_policy(options, CPU).save(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    removed = next(name for name in sorted(tensors) if "q_proj" in name)
    del tensors[removed]
    save_file(tensors, file)
    with pytest.raises(UserError, match=f"1 of its .* tensors are missing .*{removed}"):
        load_policy(options, CPU, tmp_path)
