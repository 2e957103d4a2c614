"""The policy's log-probabilities against the plain computation: full logits, one completion at a time, no padding."""

import pytest
import torch

from sspo_cli.config import LoraOptions, ModelOptions
from sspo_cli.errors import UserError
from sspo_cli.policy import logprobs as logprobs_module
from sspo_cli.policy.model import load_policy


def plain(policy, batch, temperature):
    """[B, T] log-probabilities and entropies, row by row from the model's own logits."""
    values, entropies = torch.zeros(batch.mask.shape), torch.zeros(batch.mask.shape)
    for row in range(len(batch)):
        start, length = int(batch.prompt_lengths[row]), int(batch.lengths[row])
        ids = batch.tokens[row, : start + length]
        distribution = torch.distributions.Categorical(
            logits=policy.model(input_ids=ids[None]).logits[0, start - 1 : -1] / temperature
        )
        values[row, :length] = distribution.log_prob(ids[start:])
        entropies[row, :length] = distribution.entropy()
    return values * batch.mask, entropies * batch.mask


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_logprobs_and_entropy_are_those_of_the_model_at_the_temperature(policy, make_batch, temperature):
    batch = make_batch(mask_truncated=True)
    ours, entropy = policy.logprobs(batch, temperature)
    theirs, their_entropy = plain(policy, batch, temperature)
    assert theirs.std() > 1  # the distributions are not trivial
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, their_entropy, atol=1e-5, rtol=1e-5)


def test_chunks_change_neither_values_nor_gradients(policy, make_batch, monkeypatch):
    batch = make_batch()
    weight = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(0))

    def run():
        policy.model.zero_grad()
        values, entropy = policy.logprobs(batch, 1.0)
        (values * weight).sum().backward()
        return values.detach(), entropy, [parameter.grad.clone() for parameter in policy.parameters]

    whole = run()
    monkeypatch.setitem(logprobs_module.CHUNK_ELEMENTS, "cpu", 7 * policy.vocabulary)
    chunked = run()
    torch.testing.assert_close(whole[0], chunked[0])
    torch.testing.assert_close(whole[1], chunked[1])
    for a, b in zip(whole[2], chunked[2], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_no_more_than_a_chunk_of_logits_is_alive(policy, make_batch, monkeypatch):
    """The backward pass projects again, a chunk at a time."""
    monkeypatch.setitem(logprobs_module.CHUNK_ELEMENTS, "cpu", 5 * policy.vocabulary)
    sizes = []

    def noted(hidden, weight, bias):
        sizes.append(len(hidden))
        return linear(hidden, weight, bias)

    linear = torch.nn.functional.linear
    tokens = int((batch := make_batch()).mask.sum())
    logprobs, _ = policy.logprobs(batch, 1.0)
    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.functional, "linear", noted)
        logprobs.sum().backward()  # the forward's chunks are gone; each is projected once more
    projections = [size for size in sizes if size <= 5]
    assert sum(projections) == tokens
    assert max(sizes) == 5


def test_gradient_checkpointing_gives_the_same_gradient(policy, tiny, make_batch):
    batch = make_batch()
    options = ModelOptions(tiny=tiny, gradient_checkpointing=True)
    other = load_policy(options, torch.device("cpu"))
    other.model.load_state_dict(policy.model.state_dict())
    for each in (policy, other):
        each.logprobs(batch, 1.0)[0].sum().backward()
    for a, b in zip(policy.parameters, other.parameters, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-5)


def test_lora_trains_adapters_only_and_starts_as_the_base_model(tiny, make_batch):
    batch = make_batch()
    base = load_policy(ModelOptions(tiny=tiny), torch.device("cpu"))
    lora = load_policy(ModelOptions(tiny=tiny, lora=LoraOptions(rank=4)), torch.device("cpu"))
    torch.testing.assert_close(base.logprobs(batch, 1.0)[0], lora.logprobs(batch, 1.0)[0])
    lora.logprobs(batch, 1.0)[0].sum().backward()
    assert sum(p.numel() for p in lora.parameters) < 0.5 * sum(p.numel() for p in base.parameters)
    assert any(p.grad.abs().sum() > 0 for p in lora.parameters)


def test_a_model_that_transforms_its_logits_is_refused(policy):
    policy.check_logits()
    forward = type(policy.model).forward

    class Capped(type(policy.model)):
        def forward(self, *args, **kwargs):
            output = forward(self, *args, **kwargs)
            output.logits = 5 * torch.tanh(output.logits / 5)
            return output

    policy.model.__class__ = Capped
    with pytest.raises(UserError, match="transforms its logits"):
        policy.check_logits()
