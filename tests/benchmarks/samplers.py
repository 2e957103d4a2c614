"""Time the torch engine and `transformers.generate` on the same prompts of the embedded task.

This is a child process: `python -m tests.benchmarks.samplers MODEL OUT`, with the folder of a cold start. The completions end
by themselves, and both samplers decode them to text.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sspo_cli.config import RunOptions
from sspo_cli.policy.model import Policy, load_policy
from sspo_cli.rollout.engine import Request, Sampling
from sspo_cli.rollout.torch_engine import TorchEngine
from sspo_cli.tasks import load_problems
from sspo_cli.tasks.prompts import render
from tests.benchmarks.floors import seconds
from tests.benchmarks.workloads import report

BATCHES = 9  # the first one is a warm-up


@torch.no_grad()
def generate(policy: Policy, prompts: list[list[int]], rollout: Any, seed: int) -> None:
    longest = max(map(len, prompts))
    missing = [longest - len(prompt) for prompt in prompts]
    ids = torch.tensor([[policy.pad_id] * m + prompt for m, prompt in zip(missing, prompts, strict=True)])
    attention = torch.tensor([[0] * m + [1] * len(prompt) for m, prompt in zip(missing, prompts, strict=True)])
    torch.manual_seed(seed)
    written = policy.model.generate(
        ids,
        attention_mask=attention,
        do_sample=True,
        top_k=0,
        max_new_tokens=rollout.max_new_tokens,
        num_return_sequences=rollout.group_size,
        eos_token_id=policy.end_ids,
        pad_token_id=policy.pad_id,
    )
    policy.tokenizer.batch_decode(written[:, longest:])


def main() -> None:
    folder, out = Path(sys.argv[1]), sys.argv[2]
    options = RunOptions()
    rollout = options.rollout
    torch.set_num_threads(1)
    policy = load_policy(options.model, torch.device("cpu"), folder)
    policy.model.eval()
    problems = load_problems("arithmetic", split="train")
    engine = TorchEngine(policy, rollout.max_rows)
    measured: dict[str, list[tuple[float, float]]] = {"sampler": [], "generate": []}
    for batch in range(BATCHES):
        chosen = problems[batch * rollout.prompts : (batch + 1) * rollout.prompts]
        prompts = [render(problem, options.prompt, policy.tokenizer).token_ids for problem in chosen]
        sampling = Sampling(rollout.temperature, rollout.max_new_tokens, seed=batch)
        measured["sampler"].append(
            seconds(partial(engine.generate, Request(prompts, rollout.group_size, sampling)), "cpu")
        )
        measured["generate"].append(seconds(partial(generate, policy, prompts, rollout, seed=batch), "cpu"))
    report(out, **{name: times[1:] for name, times in measured.items()})


if __name__ == "__main__":
    main()
