"""The probe after each sync, which compares the sampler's log-probabilities with the policy's."""

import math
from collections.abc import Callable

import torch

from sspo_cli import ranks
from sspo_cli.errors import UserError
from sspo_cli.policy.batch import collate
from sspo_cli.policy.model import Policy
from sspo_cli.rollout.engine import Request, Sampling
from sspo_cli.types import Completion, Group, Problem, Prompt, Reward

QUESTION = "What is 2 + 3 - 4?"
COMPLETIONS, TOKENS = 4, 16
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # observed: 1e-6, 0.02; more than 1 if a step is missing


def probe(
    policy: Policy,
    generate: Callable[[Request], list[list[Completion]]],
    temperature: float,
    tolerance: float,
) -> dict[str, float]:
    """Compare the sampler's log-probabilities with the policy's, on a few completions of one prompt sampled by `generate`.

    Returns the mean log-probability of the tokens by the sampler and by the policy, and the mean absolute difference. Raises
    UserError if this difference exceeds `tolerance`, which means that the sampler has not received all weights.
    """
    turns = [{"role": "user", "content": QUESTION}]
    text = policy.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    prompt = Prompt(Problem("", QUESTION, "", "probe"), text, policy.tokenizer.encode(text, add_special_tokens=False))
    request = Request([prompt.token_ids], COMPLETIONS, Sampling(temperature, TOKENS, seed=0))
    (completions,) = ranks.on_first(lambda: generate(request))
    group = Group(prompt, completions, [Reward(0.0, 0.0, None, "ok")] * COMPLETIONS)
    batch = collate([group], torch.zeros(1, COMPLETIONS), mask_truncated=False).to(policy.device)
    with torch.no_grad():
        by_policy = policy.logprobs(batch, temperature)[0][batch.mask]
    by_sampler = batch.sampling_logprobs[batch.mask]
    drift = (by_policy - by_sampler).abs().mean().item()
    if not math.isfinite(drift) or drift > tolerance:
        raise UserError(
            f"after a sync of the weights, the sampler's log-probabilities differ from the policy's by {drift:.2g} on average, "
            f"more than {tolerance:g}, so the sampler does not sample from the policy; set rollout.engine=torch, or raise "
            "rollout.vllm.tolerance if such a difference is expected"
        )
    return {
        "sampler/probe_sampler": by_sampler.mean().item(),
        "sampler/probe_policy": by_policy.mean().item(),
        "sampler/probe_drift": drift,
    }
