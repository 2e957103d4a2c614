"""The policy's log-probabilities agree with full logits, computed for one completion at a time and without padding."""

import pytest
import torch
from transformers import PhiConfig, PhiForCausalLM

from sspo_cli.config import LoraOptions, ModelOptions
from sspo_cli.policy import logprobs as logprobs_module
from sspo_cli.policy.logprobs import token_logprobs
from sspo_cli.policy.model import load_policy
from sspo_cli.policy.tiny import tiny_tokenizer


def plain(policy, batch, temperature):
    """Return log-probabilities and entropies, both [B, T], computed row by row from the model's own logits."""
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


def test_a_bias_of_the_projection_counts_and_dropout_does_not(make_batch, tmp_path):
    """Phi has both a bias and dropout.

    Gradient checkpointing leaves the policy in training mode; the expected values come from evaluation mode.
    """
    torch.manual_seed(0)
    shape = {"vocab_size": 270, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    dropout = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attention_dropout": 0.5}
    model = PhiForCausalLM(PhiConfig(**shape, **dropout, num_attention_heads=2, initializer_range=0.2))
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    options = ModelOptions(name=str(tmp_path), gradient_checkpointing=True)
    policy, batch = load_policy(options, torch.device("cpu")), make_batch()
    ours = policy.logprobs(batch, 0.7)[0].detach()
    with policy.evaluating(), torch.no_grad():
        torch.testing.assert_close(ours, plain(policy, batch, 0.7)[0], atol=1e-4, rtol=1e-4)


def test_blocks_of_the_vocabulary_change_neither_values_nor_gradients(policy, make_batch, monkeypatch):
    batch = make_batch()
    weight = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(0))

    def run():
        policy.model.zero_grad()
        values, entropy = policy.logprobs(batch, 1.0)
        (values * weight).sum().backward()
        return values.detach(), entropy, [parameter.grad.clone() for parameter in policy.parameters]

    whole = run()
    monkeypatch.setitem(logprobs_module.BLOCK_ELEMENTS, "cpu", 7 * int(batch.mask.sum()))
    blockwise = run()
    torch.testing.assert_close(whole[0], blockwise[0])
    torch.testing.assert_close(whole[1], blockwise[1])
    for a, b in zip(whole[2], blockwise[2], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_no_more_than_a_few_blocks_of_logits_are_alive(monkeypatch):
    """The backward pass recomputes the logits, one block of words at a time."""
    tokens, vocabulary, block = 300, 5000, 100
    monkeypatch.setitem(logprobs_module.BLOCK_ELEMENTS, "cpu", tokens * block)
    hidden, weight = torch.randn(tokens, 8, requires_grad=True), torch.randn(vocabulary, 8, requires_grad=True)
    with torch.profiler.profile(profile_memory=True) as profile:
        logprobs, _ = token_logprobs(hidden, torch.arange(tokens), weight, None, 1.0)
        logprobs.sum().backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert tokens * block * 4 <= largest < 10 * tokens * block * 4  # less than a fifth of all logits


def test_logprobs_are_exact_for_extreme_logits_a_bias_and_words_of_every_block(monkeypatch):
    """Values and gradients agree with float64; the highest logit comes last, so that every block rescales the sums."""
    draw = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, generator=draw) for shape in ((9, 4), (23, 4), (23,)))
    weight[:, 0], hidden[:, 0] = torch.linspace(-20, 20, 23), 1.0
    targets = torch.tensor([0, 4, 5, 9, 10, 15, 20, 21, 22])
    given = torch.randn(9, generator=draw)
    monkeypatch.setitem(logprobs_module.BLOCK_ELEMENTS, "cpu", 9 * 5)
    ours = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    logprobs, entropy = token_logprobs(ours[0], targets, ours[1], ours[2], 0.7)
    (logprobs * given).sum().backward()
    exact = [x.double().requires_grad_() for x in (hidden, weight, bias)]
    distribution = torch.distributions.Categorical(logits=torch.nn.functional.linear(*exact) / 0.7)
    (distribution.log_prob(targets) * given).sum().backward()
    torch.testing.assert_close(logprobs.double(), distribution.log_prob(targets), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.double(), distribution.entropy(), rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", [-100.0, -1e4, 1e4])
@pytest.mark.parametrize("words", [23, 5], ids=["one block", "blocks"])
def test_logits_that_are_all_very_low_or_high_give_the_same_as_near_zero(monkeypatch, level, words):
    """The expected values are those of the same logits without the level, in float64.

    In float32, e^-88 is already smaller than the smallest normal number.
    """
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(9, 4, generator=draw), torch.randn(23, 4, generator=draw)
    hidden, weight = hidden.mul(8).round() / 8, weight.mul(8).round() / 8  # exact in float32, even with the level
    targets, given = torch.arange(9) * 2, torch.randn(9, generator=draw)
    monkeypatch.setitem(logprobs_module.BLOCK_ELEMENTS, "cpu", 9 * words)
    ours = [x.clone().requires_grad_() for x in (hidden, weight)]
    logprobs, entropy = token_logprobs(ours[0], targets, ours[1], torch.full((23,), level), 1.0)
    (logprobs * given).sum().backward()
    exact = [x.double().requires_grad_() for x in (hidden, weight)]
    distribution = torch.distributions.Categorical(logits=exact[0] @ exact[1].T)
    (distribution.log_prob(targets) * given).sum().backward()
    rounding = 3e-7 * abs(level) + 1e-5
    torch.testing.assert_close(logprobs.double(), distribution.log_prob(targets), rtol=1e-5, atol=rounding)
    torch.testing.assert_close(entropy.double(), distribution.entropy(), rtol=1e-4, atol=rounding)
    for mine, theirs in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-3, atol=10 * rounding)


def test_no_token_is_more_than_certain():
    """The target's logit and the sum over all words come from the same matrix product, so that they are rounded alike."""
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(300, 256, generator=draw), torch.randn(500, 256, generator=draw)
    targets = (hidden @ weight.T).argmax(dim=1)
    logprobs, _ = token_logprobs(hidden, targets, weight, None, 1.0)
    assert (logprobs > -1e-3).sum() > 50
    assert (logprobs <= 0).all()


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
