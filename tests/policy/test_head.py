"""Tests of logit scales and soft caps: values, gradients and samples agree with the model's own logits."""

import pytest
import torch
from test_logprobs import plain
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from sspo_cli.config import ModelOptions
from sspo_cli.errors import UserError
from sspo_cli.policy.head import measure_transform
from sspo_cli.policy.model import build_policy
from sspo_cli.policy.tiny import tiny_tokenizer
from sspo_cli.rollout.engine import Request, Sampling
from sspo_cli.rollout.torch_engine import TorchEngine

CPU = torch.device("cpu")
SHAPE = {
    "vocab_size": 270,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "initializer_range": 0.5,
}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MODELS = {
    "granite": (GraniteForCausalLM, GraniteConfig(**SHAPE, **HEADS, logits_scaling=8.0), (1 / 8, None)),
    "cohere": (CohereForCausalLM, CohereConfig(**SHAPE, **HEADS, logit_scale=0.25), (0.25, None)),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**SHAPE, **HEADS, head_dim=16, final_logit_softcapping=3.0), (1.0, 3.0)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_scale_and_a_soft_cap_count_in_values_gradients_and_samples(make_batch, name):
    kind, config, (scale, cap) = MODELS[name]
    torch.manual_seed(0)
    policy, batch = build_policy(kind(config), tiny_tokenizer(), ModelOptions(), CPU, torch.float32), make_batch(2, 2)
    assert policy.transform.scale == pytest.approx(scale)
    assert policy.transform.cap == (None if cap is None else pytest.approx(cap))

    def gradient(values):
        policy.model.zero_grad()
        (values * torch.linspace(-1, 1, values.shape[1])).sum().backward()
        return torch.cat([p.grad.flatten() for p in policy.parameters])

    ours, theirs = policy.logprobs(batch, 0.7), plain(policy, batch, 0.7)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    expected = gradient(theirs[0])
    assert (gradient(policy.logprobs(batch, 0.7)[0]) - expected).norm() < 1e-4 * expected.norm()
    (group,) = TorchEngine(policy, 8).generate(Request([[5, 6, 7]], 2, Sampling(0.6, 8, seed=0)))
    for completion in group:
        ids = torch.tensor([[5, 6, 7, *completion.token_ids]])
        logits = policy.model(input_ids=ids).logits[0, 2:-1] / 0.6
        values = logits.log_softmax(-1).gather(1, ids[0, 3:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.sampling_logprobs), values, atol=1e-4, rtol=1e-4)


def test_a_model_that_transforms_its_logits_otherwise_is_refused(policy):
    forward = type(policy.model).forward

    class Squared(type(policy.model)):
        def forward(self, *args, **kwargs):
            output = forward(self, *args, **kwargs)
            output.logits = output.logits * output.logits.abs()
            return output

    policy.model.__class__ = Squared
    with pytest.raises(UserError, match="Squared transforms its logits by more than a scale and a soft cap"):
        measure_transform(policy.model)
