"""SSPO's objective in a training loop of your own: `python examples/objective_in_another_trainer.py`.

Only `sspo_cli.objectives` is used. The policy is a table of logits that learns to write the token 7: enough to show the shapes,
the on-policy first step and the off-policy steps after it.
"""

import torch

from sspo_cli.objectives import build_objective, group_advantages

PROMPTS, GROUP, TOKENS, VOCABULARY = 4, 8, 6, 10
ROLLOUTS, MU = 30, 4  # rollout batches, and optimizer steps for each

torch.manual_seed(0)
objective = build_objective(method="sspo", gate="atanlog", tau_neg=0.3, tau_pos=0.2)
logits = torch.zeros(TOKENS, VOCABULARY, requires_grad=True)  # the policy: one distribution for each position
optimizer = torch.optim.Adam([logits], lr=0.05)


def logprobs(completions: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of every token: [B, T] -> [B, T]."""
    return logits.log_softmax(-1).expand(len(completions), -1, -1).gather(-1, completions[..., None])[..., 0]


for rollout in range(ROLLOUTS):
    # Sample completions of random lengths from the behaviour policy, which is the policy of this moment.
    with torch.no_grad():
        completions = torch.distributions.Categorical(logits=logits).sample((PROMPTS * GROUP,))
        lengths = torch.randint(1, TOKENS + 1, (PROMPTS * GROUP,))
        mask = torch.arange(TOKENS) < lengths[:, None]
        old_logprobs = logprobs(completions)
        rewards = ((completions == 7) * mask).sum(1) / lengths
        advantages = group_advantages(rewards.view(PROMPTS, GROUP)).flatten()

    # μ disjoint minibatches, one optimizer step each. The first has ρ = 1, the later ones do not.
    for rows in torch.randperm(PROMPTS * GROUP).chunk(MU):
        log_ratio = logprobs(completions[rows]) - old_logprobs[rows]
        weights = objective.weights(log_ratio, advantages[rows], mask[rows])
        factors = objective.factors(mask[rows].sum(1))
        loss = -(factors * weights * advantages[rows]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    if rollout % 10 == 0 or rollout == ROLLOUTS - 1:
        print(f"rollout {rollout:3}   mean reward {rewards.mean():.3f}")
