"""The gradient of one minibatch by several ranks, for models of several kinds.

`python gradients.py FOLDER MODELS` is a rank of the largest number, and then of each smaller one. The first rank writes, for
each number of ranks, the whole gradients of each kind, their norm, and what was computed row by row; and the models, and what
is loaded from the folders in MODELS.
"""

import json
import os
import shutil
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers import Qwen2ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from sspo_cli import ranks
from sspo_cli.config import LearningOptions, LoraOptions, ModelOptions, TinyModelOptions
from sspo_cli.errors import UserError
from sspo_cli.objectives import build_objective
from sspo_cli.policy.batch import Batch, collate
from sspo_cli.policy.learner import accumulate_gradient, fill_old_logprobs
from sspo_cli.policy.model import Policy, build_policy, load_policy
from sspo_cli.policy.optimizer import adamw, guarded_step
from sspo_cli.policy.sharding import whole
from sspo_cli.policy.tiny import tiny_config, tiny_model, tiny_tokenizer
from sspo_cli.types import Completion, Group, Problem, Prompt, Reward

TINY = TinyModelOptions(hidden_size=32, layers=2, heads=2, intermediate_size=48)
KINDS = ("dense", "untied", "checkpointing", "lora", "moe")
SIZES = (4, 3, 2)  # numbers of ranks
WRITING = 3  # ranks that write models, whose tensors do not divide by it
EXPORTED = ("dense", "untied", "lora", "moe")
LOADED = ("dense", "untied", "moe", "few experts", "lora", "of another shape")
BUDGETS = (80, 100_000)  # tokens of a micro-batch: several, and one for each rank


def make_policy(kind: str, dtype: str = "float32") -> Policy:
    options = ModelOptions(
        tiny=TINY,
        dtype=dtype,
        gradient_checkpointing=kind == "checkpointing",
        lora=LoraOptions(rank=4) if kind == "lora" else None,
    )
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    if kind == "untied":
        config = tiny_config(TINY, tokenizer)
        config.tie_word_embeddings = False
        model: Any = Qwen2ForCausalLM(config)
    elif kind in ("moe", "few experts"):
        shape = tiny_config(TINY, tokenizer).to_dict()
        for name in ("model_type", "architectures", "layer_types", "transformers_version"):
            shape.pop(name, None)
        model = Qwen3MoeForCausalLM(
            Qwen3MoeConfig(
                **shape,
                num_experts=8 if kind == "moe" else 2,
                num_experts_per_tok=2,
                moe_intermediate_size=24,
                head_dim=16,
                norm_topk_prob=True,
            )
        )
    else:
        model = tiny_model(TINY, tokenizer)
    computed = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    policy = build_policy(model, tokenizer, options, torch.device("cpu"), computed, spread=ranks.size() > 1)
    if kind == "lora":  # a new adapter's second matrix is zero, and the gradient of its first one with it
        with torch.no_grad():
            for number, parameter in enumerate(policy.parameters):
                draw = torch.Generator().manual_seed(number)
                values = 0.1 * torch.randn(parameter.shape, generator=draw)
                parameter.copy_(values if ranks.size() == 1 else _spread(values, parameter))
    return policy


def _spread(values: torch.Tensor, parameter: Any) -> Any:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(values, parameter.device_mesh, parameter.placements)


def make_batch(prompts: int = 4, group_size: int = 4) -> Batch:
    draw = torch.Generator().manual_seed(1)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=draw))
        return torch.randint(4, 90, (length,), generator=draw).tolist()

    groups = []
    for number in range(prompts):
        written = [ids(1, 20) for _ in range(group_size)]
        completions = [
            Completion(tokens, [-1.0] * len(tokens), "", truncated=not i) for i, tokens in enumerate(written)
        ]
        prompt = Prompt(Problem(str(number), "", "", "test"), "", ids(2, 12))
        groups.append(Group(prompt, completions, [Reward(0.0, 0.0, None, "ok")] * group_size))
    return collate(groups, torch.randn(prompts, group_size, generator=draw), mask_truncated=True)


def gradient(policy: Policy, batch: Batch, budget: int) -> dict[str, Any]:
    """The gradient and its norm before clipping, and the weights after a clipped step of AdamW."""
    before = policy.parameters
    fill_old_logprobs(policy, batch, [torch.arange(len(batch))], budget, 1.0)
    batch.old_logprobs.add_(
        torch.where(batch.mask, 0.1 * torch.sin(torch.arange(batch.mask.numel())).view(batch.mask.shape), 0.0)
    )
    objective = build_objective(method="sspo", gate="atanlog", token_limit=64)
    options = LearningOptions(token_budget=budget)
    factors = objective.factors(batch.mask.sum(dim=1))
    result = accumulate_gradient(policy, objective, batch, factors, options, 1.0, on_policy=False)
    grads = [whole(parameter.grad).clone() for parameter in policy.parameters]
    optimizer = adamw(policy.parameters, (0.9, 0.95), 0.01, eight_bit=False)
    norm, taken = guarded_step(optimizer, 0.0, 1e-3, 0.5, seed=0)
    assert taken
    return {
        "gradient": torch.cat([grad.flatten() for grad in grads]),
        "norm": norm,
        "weights": torch.cat([whole(parameter.detach()).flatten() for parameter in policy.parameters]),
        "same_parameters": all(a is b for a, b in zip(before, policy.parameters, strict=True)),
        "rows": {field.name: getattr(result, field.name) for field in fields(result)},
    }


def all_gradients() -> dict[str, Any]:
    """Compute the gradients of every kind, of a new policy and batch."""
    torch.set_num_threads(1)
    found = {kind: gradient(make_policy(kind), make_batch(), BUDGETS[0]) for kind in KINDS}
    found["large micro-batches"] = gradient(make_policy("dense"), make_batch(), BUDGETS[1])
    found["two rows"] = gradient(make_policy("dense"), make_batch(1, 2), BUDGETS[1])  # fewer than ranks
    found["bfloat16"] = gradient(make_policy("dense", "bfloat16"), make_batch(), BUDGETS[1])
    return found


def export(folder: Path) -> None:
    """Write the models of some kinds."""
    for kind in EXPORTED:
        if ranks.is_first():
            (folder / kind).mkdir(parents=True)
        make_policy(kind).save(folder / kind)


def write_models(folder: Path) -> None:
    """Write what is loaded; to be called by a process alone."""
    export(folder)
    make_policy("few experts").save(folder / "few experts")
    shutil.copytree(folder / "untied", folder / "of another shape")
    path = folder / "of another shape" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 301}))


def load(folder: Path) -> dict[str, Any]:
    """Return the loaded weights of each model, their transform and what is computed; or why it is refused."""
    results: dict[str, Any] = {}
    for kind in LOADED:
        lora = LoraOptions(rank=4) if kind == "lora" else None
        options = ModelOptions(name=str(folder / ("dense" if lora else kind)), dtype="float32", lora=lora)
        try:
            policy = load_policy(options, torch.device("cpu"))
        except UserError as error:
            results[kind] = str(error)
            continue
        names = {name: whole(value.detach()).clone() for name, value in policy.model.state_dict().items()}
        logprobs, _ = policy.logprobs(make_batch(), 1.0)
        results[kind] = {"weights": names, "logprobs": logprobs.detach(), "notes": policy.notes}
    return results


def as_ranks(folder: Path, models: Path) -> None:
    number = int(os.environ["RANK"])
    for size in SIZES:
        if number < size:
            os.environ["WORLD_SIZE"] = str(size)
            ranks.start("cpu")
            results = all_gradients()
            if ranks.is_first():
                torch.save(results, folder / f"{size}.pt")
            if size == WRITING:
                export(folder / "models")
                loaded = load(models)
                if ranks.is_first():
                    torch.save(loaded, folder / "loaded.pt")
            ranks.stop()


if __name__ == "__main__":
    as_ranks(Path(sys.argv[1]), Path(sys.argv[2]))
