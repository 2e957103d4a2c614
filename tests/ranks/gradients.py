"""The gradient of one minibatch by several ranks, for models of several kinds.

`python gradients.py FOLDER MODELS` is a rank of the largest number, and then of each smaller one. The first rank writes, for
each number of ranks, the whole gradients of each kind, their norm, and what was computed row by row; and the models, and what
is loaded from the folders in MODELS.
"""

import json
import os
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LongcatFlashConfig,
    LongcatFlashForCausalLM,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Zamba2Config,
    Zamba2ForCausalLM,
)
from transformers.quantizers import HfQuantizer

from sspo_cli import ranks
from sspo_cli.config import LearningOptions, LoraOptions, ModelOptions, TinyModelOptions
from sspo_cli.errors import UserError
from sspo_cli.model_check.compare import Row
from sspo_cli.model_check.compare import _by_token as by_token
from sspo_cli.model_check.shrink import shrink
from sspo_cli.objectives import build_objective
from sspo_cli.policy import sharding
from sspo_cli.policy.batch import Batch, collate
from sspo_cli.policy.learner import accumulate_gradient, fill_old_logprobs, step_metrics
from sspo_cli.policy.model import Policy, build_policy, load_policy
from sspo_cli.policy.optimizer import adamw, guarded_step
from sspo_cli.policy.sharded_files import load_optimizer_parts, save_optimizer
from sspo_cli.policy.sharding import whole
from sspo_cli.policy.tiny import tiny_config, tiny_model, tiny_tokenizer
from sspo_cli.types import Completion, Group, Problem, Prompt, Reward

TINY = TinyModelOptions(hidden_size=32, layers=2, heads=2, intermediate_size=48)
KINDS = ("dense", "untied", "checkpointing", "lora", "moe")
SIZES = (4, 3, 2)  # numbers of ranks
WRITING = 3  # ranks that write models, whose tensors do not divide by it
EXPORTED = ("dense", "untied", "lora", "moe")
COPIES = {  # models of which the files are changed
    "bin": "dense",
    "several files": "untied",
    "head twice": "dense",
    "two heads": "dense",
    "unused": "dense",
    "dequantized": "dense",
    "of another shape": "untied",
    "missing": "dense",
    "truncated": "dense",
    "unreadable by rank 1": "dense",
}
LOADED = ("dense", "untied", "moe", "few experts", "lora", *list(COPIES)[:6])
REFUSED = (*list(COPIES)[6:], "missing file", "quantized")
WEIGHTS, FORMAT = "model.safetensors", {"format": "pt"}
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
    elif kind == "shared blocks":  # three layers have the weights of one block, and layers that are layers of their own
        kinds = ["linear_attention", "hybrid", "hybrid", "hybrid"]
        widths = {"hidden_size": 32, "intermediate_size": 32, "attention_hidden_size": 64, "attention_head_dim": 32}
        heads = {"num_attention_heads": 2, "n_mamba_heads": 2, "mamba_headdim": 32, "mamba_ngroups": 1}
        sizes = {"num_hidden_layers": 4, "num_mem_blocks": 1, "mamba_d_state": 8, "chunk_size": 16}
        words = len(tokenizer)
        model = Zamba2ForCausalLM(Zamba2Config(vocab_size=words, layers_block_type=kinds, **widths, **heads, **sizes))
    elif kind == "looped experts":  # most of which compute nothing, so that the tokens of a rank may use no weight
        config = shrink(LongcatFlashConfig(n_routed_experts=2, zero_expert_num=16, moe_topk=2))
        config.vocab_size = len(tokenizer)
        model = LongcatFlashForCausalLM(config)
    elif kind == "layer norms":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2))
    else:
        model = tiny_model(TINY, tokenizer)
        if kind == "unused weights":
            model.register_module("unused", torch.nn.Linear(5, 3))
    computed = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    policy = build_policy(model, tokenizer, options, torch.device("cpu"), computed, sharded=ranks.size() > 1)
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
    """The gradient and its norm before clipping, the weights after a clipped step of AdamW, and the metrics."""
    before = policy.parameters
    if policy.routes:
        batch = replace(batch, routes=changed_routes(policy, batch))
    fill_old_logprobs(policy, batch, [torch.arange(len(batch))], budget, 1.0)
    batch.old_logprobs.add_(
        torch.where(batch.mask, 0.1 * torch.sin(torch.arange(batch.mask.numel())).view(batch.mask.shape), 0.0)
    )
    objective = build_objective(method="sspo", gate="atanlog", token_limit=64)
    options = LearningOptions(token_budget=budget)
    factors = objective.factors(batch.mask.sum(dim=1))
    on_policy = accumulate_gradient(policy, objective, batch, factors, options, 1.0, on_policy=True)
    for parameter in policy.parameters:
        parameter.grad = None
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
        "metrics": [step_metrics(batch, result) for result in (on_policy, result)],
        "rows": {field.name: getattr(result, field.name) for field in fields(result)} | {"at rollout": batch.rerouted},
    }


def changed_routes(policy: Policy, batch: Batch) -> torch.Tensor:
    """The experts that the policy chooses, except for others in the first layer of the first token of each completion."""
    with torch.no_grad():
        policy.logprobs(batch, 1.0)
    routes = torch.zeros(*batch.mask.shape, policy.routes.layers, dtype=torch.int32)
    routes[batch.mask] = policy.routes.codes()
    routes[:, 0, 0] += 1
    return routes


def all_gradients() -> dict[str, Any]:
    """Compute the gradients of every kind, of a new policy and batch."""
    torch.set_num_threads(1)
    found = {kind: gradient(make_policy(kind), make_batch(), BUDGETS[0]) for kind in KINDS}
    found["large micro-batches"] = gradient(make_policy("dense"), make_batch(), BUDGETS[1])
    found["two rows"] = gradient(make_policy("dense"), make_batch(1, 2), BUDGETS[1])  # fewer than ranks
    with mock.patch.object(sharding, "GATHERED_TOGETHER", 10**6):
        found["together"] = gradient(make_policy("checkpointing"), make_batch(), BUDGETS[0])
        found["together, bfloat16"] = gradient(make_policy("dense", "bfloat16"), make_batch(), BUDGETS[1])
    found["bfloat16"] = gradient(make_policy("dense", "bfloat16"), make_batch(), BUDGETS[1])
    if ranks.size() <= 2:
        found["shared blocks"] = gradient(make_policy("shared blocks"), make_batch(), BUDGETS[1])
        found["looped experts"] = gradient(make_policy("looped experts"), make_batch(2, 2), BUDGETS[1])
        found["layer norms, bfloat16"] = gradient(make_policy("layer norms", "bfloat16"), make_batch(), BUDGETS[1])
        found["by token"] = by_token(make_policy("lora"), Row([5, 6, 7], [8, 9])).detach()
    return found


def optimizer_states(folder: Path) -> dict[str, list[str]]:
    """Return the names of the weights with an optimizer state: after a step, and read from what several ranks wrote."""
    policy = make_policy("unused weights")
    names = {parameter: name for name, parameter in policy.model.named_parameters()}
    optimizers = [adamw(policy.parameters, (0.9, 0.95), 0.01, eight_bit=False) for _ in range(2)]
    if ranks.size() > 1:
        policy.logprobs(make_batch(), 1.0)[0].sum().backward()
        guarded_step(optimizers[0], 0.0, 1e-3, 0.5, seed=0)
        save_optimizer(policy.model, optimizers[0], folder)
    load_optimizer_parts(policy.model, optimizers[1], folder)
    written, read = optimizers
    equal = all(
        torch.equal(whole(value), whole(read.state[parameter][name]))
        for parameter, state in written.state.items()
        for name, value in state.items()
    )
    assert equal
    return {kind: sorted(names[p] for p in o.state) for kind, o in (("written", written), ("read", read))}


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
    for kind, source in COPIES.items():
        shutil.copytree(folder / source, folder / kind)
    change_config(folder / "of another shape", vocab_size=301)
    (folder / "bin" / WEIGHTS).unlink()
    torch.save(load_file(folder / "dense" / WEIGHTS), folder / "bin" / "pytorch_model.bin")
    (folder / "several files" / WEIGHTS).unlink()
    make_policy("untied").model.save_pretrained(folder / "several files", max_shard_size="20KB")
    shutil.copytree(folder / "several files", folder / "missing file", "quantized")
    sorted((folder / "missing file").glob("*.safetensors"))[1].unlink()
    stored = load_file(folder / "dense" / WEIGHTS)
    head = stored["model.embed_tokens.weight"]
    save_file(stored | {"lm_head.weight": head.clone()}, folder / "head twice" / WEIGHTS, FORMAT)
    save_file(stored | {"lm_head.weight": head + 0.01}, folder / "two heads" / WEIGHTS, FORMAT)
    save_file(stored | {"model.extra.weight": head.clone()}, folder / "unused" / WEIGHTS, FORMAT)
    stored.pop("model.layers.1.mlp.up_proj.weight")
    save_file(stored, folder / "missing" / WEIGHTS, FORMAT)
    content = (folder / "dense" / WEIGHTS).read_bytes()
    (folder / "truncated" / WEIGHTS).write_bytes(content[: len(content) // 2])
    method = {"quant_method": "fp8", "weight_block_size": [16, 16], "dequantize": True}
    change_config(folder / "dequantized", quantization_config=method)
    save_file(in_fp8(load_file(folder / "dense" / WEIGHTS)), folder / "dequantized" / WEIGHTS, FORMAT)
    shutil.copytree(folder / "dequantized", folder / "quantized")


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def in_fp8(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The layers' matrices in 8 bits, each block of 16 by 16 with its scale."""
    quantized = dict(weights)
    for name, weight in weights.items():
        if name.endswith("_proj.weight"):
            rows, columns = weight.shape
            blocks = weight.reshape(rows // 16, 16, columns // 16, 16)
            scales = blocks.abs().amax(dim=(1, 3)) / torch.finfo(torch.float8_e4m3fn).max
            quantized[name] = (blocks / scales[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn)
            quantized[f"{name}_scale_inv"] = scales
    return quantized


def load(folder: Path) -> dict[str, Any]:
    """Return the loaded weights of each model and what is computed; or why each rank refuses it."""
    results: dict[str, Any] = {}
    for kind in (*LOADED, *REFUSED):
        lora = LoraOptions(rank=4) if kind == "lora" else None
        options = ModelOptions(name=str(folder / ("dense" if lora else kind)), dtype="float32", lora=lora)
        try:
            with disturbed(kind):
                policy = load_policy(options, torch.device("cpu"))
        except UserError as error:
            refusal = str(error)
            results[kind] = ranks.gather(lambda refusal=refusal: [refusal])
            continue
        names = {name: whole(value.detach()).clone() for name, value in policy.model.state_dict().items()}
        logprobs, _ = policy.logprobs(make_batch(), 1.0)
        results[kind] = {"weights": names, "logprobs": logprobs.detach(), "notes": policy.notes}
    return results


def disturbed(kind: str) -> AbstractContextManager[object]:
    """A context in which one of the ranks cannot read a model, or a quantized model stays so, as it does on a GPU."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    if kind == "unreadable by rank 1" and ranks.rank() == 1:
        return mock.patch.object(AutoModelForCausalLM, "from_pretrained", fail)
    if kind == "quantized":
        return mock.patch.object(HfQuantizer, "remove_quantization_config")
    return nullcontext()


def as_ranks(folder: Path, models: Path) -> None:
    sharding.GATHERED_TOGETHER = 0  # so that the layers of these small models are gathered one by one
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
                loaded = load(models) | {"optimizer": optimizer_states(folder / "optimizer")}
                if ranks.is_first():
                    torch.save(loaded, folder / "loaded.pt")
            ranks.stop()


if __name__ == "__main__":
    as_ranks(Path(sys.argv[1]), Path(sys.argv[2]))
