"""vLLM's samples and log-probabilities against the policy's own."""

import os
import random

import pytest
import torch
from conftest import disturb, tiny_policy

from sspo_cli.errors import UserError
from sspo_cli.policy.batch import collate
from sspo_cli.rollout.engine import Sampling
from sspo_cli.rollout.torch_engine import TorchEngine
from sspo_cli.types import Group, Problem, Prompt, Reward

PROMPTS = [[2, 10, 11], [2, 12, 13, 14, 15, 16], [2, 17]]


def sample(engine, prompts=PROMPTS, group_size=8, **options):
    return engine.generate(prompts, group_size, Sampling(**{"temperature": 1.0, "max_new_tokens": 24, "seed": 1, **options}))


def differences(policy, groups, temperature=1.0):
    """|log-probability by the policy − by the sampler| of every sampled token."""
    graded = [
        Group(Prompt(Problem("", "", "", ""), "", prompt), group, [Reward(0, 0, None, "ok")] * len(group))
        for prompt, group in zip(PROMPTS, groups, strict=True)
    ]
    batch = collate(graded, torch.zeros(len(groups), len(groups[0])), mask_truncated=False)
    with torch.no_grad():
        logprobs, _ = policy.logprobs(batch, temperature)
    return (logprobs - batch.sampling_logprobs).abs()[batch.mask]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_ten_updates_in_a_row_reach_the_engine_and_nothing_of_the_ones_before_stays(start, tied):
    policy = tiny_policy(tied=tied)
    engine = start(policy)
    drift = []
    for update in range(10):
        before = differences(policy, sample(engine)).mean() if update else None
        disturb(policy, update)
        assert update == 0 or differences(policy, sample(engine)).mean() > 0.05 > 100 * before
        drift.append(engine.sync(policy)["sampler/probe_drift"])
        assert differences(policy, sample(engine, temperature=0.7), 0.7).median() <= 1e-4
    assert max(drift) < 1e-4
