"""Time the bare passes of the same model, without a trainer around them, as a lower bound for a cycle.

This is a child process: `python -m tests.benchmarks.floors FOLDER OUT REPEATS`, with the folder of a workload. The learner's
passes compute each prompt once and repeat its cache for the completions. On a GPU both programs compute in bfloat16, and so do
these passes: the learner keeps its weights in float32, the sampler uses a bfloat16 copy of them.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache

from tests.benchmarks.workloads import MU, PROMPT, Workload, clocks, peak_memory, report


def next_token_logits(model: nn.Module, prompts: Tensor, completions: Tensor) -> Tensor:
    """Return the logits of the completions, [B, T, V]; each prompt is computed once for all of its completions."""
    repeats = len(completions) // len(prompts)
    cache = DynamicCache(config=model.config)
    last = model.model(input_ids=prompts, past_key_values=cache, use_cache=True).last_hidden_state[:, -1:]
    cache.batch_repeat_interleave(repeats)
    rest = model.model(input_ids=completions[:, :-1], past_key_values=cache, use_cache=True).last_hidden_state
    return model.lm_head(torch.cat([last.repeat_interleave(repeats, 0), rest], dim=1))


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, minibatches: list[tuple[Tensor, Tensor]]) -> None:
    """Do the learner's work of one cycle: log-probabilities of all minibatches but the first, then a step on each minibatch."""
    with torch.no_grad():
        for prompts, completions in minibatches[1:]:
            next_token_logits(model, prompts, completions).log_softmax(-1).gather(2, completions.unsqueeze(2))
    for prompts, completions in minibatches:
        logits = next_token_logits(model, prompts, completions)
        nn.functional.cross_entropy(logits.flatten(0, 1), completions.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def decode(model: nn.Module, prompts: Tensor, group_size: int, tokens: int) -> None:
    """Sample with a bare loop: prefill each prompt once, then decode one token of every completion at a time."""
    cache = DynamicCache(config=model.config)
    logits = model(input_ids=prompts, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
    cache.batch_repeat_interleave(group_size)
    logits = logits.repeat_interleave(group_size, 0)
    for _ in range(tokens - 1):
        chosen = torch.multinomial(logits.softmax(-1), 1)
        logits = model(input_ids=chosen, past_key_values=cache, use_cache=True).logits[:, -1]
    torch.multinomial(logits.softmax(-1), 1)


@torch.no_grad()
def generate(model: nn.Module, prompts: Tensor, group_size: int, tokens: int) -> None:
    """Sample with `transformers.generate`, which prefills the prompt again for each completion."""
    ids = prompts.repeat_interleave(group_size, 0)
    ending = {"min_new_tokens": tokens, "max_new_tokens": tokens, "eos_token_id": None, "pad_token_id": 0}
    model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, **ending)


def seconds(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Return the wall time and the processor time of a call, in seconds."""
    wall, processor = clocks(device)
    work()
    ended = clocks(device)
    return ended[0] - wall, ended[1] - processor


def main() -> None:
    folder, out, repeats = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    workload = Workload(**json.loads((folder / "workload.json").read_text()))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(workload.device).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=workload.device == "cuda")

    on_gpu = workload.device == "cuda"

    def in_bfloat16() -> torch.autocast:
        return torch.autocast(workload.device, torch.bfloat16, enabled=on_gpu)

    def ids(rows: int, length: int) -> Tensor:
        return torch.randint(1, 60, (rows, length), device=workload.device)

    prompts = ids(workload.prompts, PROMPT)
    completions = ids(workload.prompts * workload.group_size, workload.tokens)
    minibatches = list(zip(prompts.chunk(MU), completions.chunk(MU), strict=True))
    measured: dict[str, list[tuple[float, float]]] = {"learner": [], "sampler": [], "generate": []}
    for _ in range(repeats + 1):
        with in_bfloat16():
            measured["learner"].append(seconds(lambda: learn(model, optimizer, minibatches), workload.device))
    memory = peak_memory(workload.device)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if on_gpu:
        model.to(torch.bfloat16)
    for _ in range(repeats + 1):
        measured["sampler"].append(
            seconds(lambda: decode(model, prompts, workload.group_size, workload.tokens), workload.device)
        )
        measured["generate"].append(
            seconds(lambda: generate(model, prompts, workload.group_size, workload.tokens), workload.device)
        )
    report(out, weights=weights, memory=memory, **{name: times[1:] for name, times in measured.items()})


if __name__ == "__main__":
    main()
