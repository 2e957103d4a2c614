"""Try every causal-LM type of transformers as a small random model: `python -m tests.model_table [--seconds N] [TYPE]...`

Each type is tried in a separate process, with limits of time and memory, and becomes a line of runs/model-types.jsonl.
Types that have a line are left out unless they are named; when all have one, tests/model_types.md is written.

The learner and the sampler run without the product's checks and are compared with a literal computation, which shares
only the model's folder with them: one forward pass of each sequence, in the model's own eager attention, without
padding or cache, to full logits. Then the checks run. A model that they accept although it is computed wrong counts as
silently wrong; there must be none.
"""

import argparse
import functools
import json
import multiprocessing
import os
import re
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sspo_cli.config import LoraOptions, ModelOptions
from sspo_cli.errors import UserError, first_line
from sspo_cli.model_check import check_model, check_structure
from sspo_cli.model_check.compare import Row, batch_of
from sspo_cli.model_check.shrink import move_switches, shrink, switches
from sspo_cli.policy.model import Policy, load_policy
from sspo_cli.policy.tiny import tiny_tokenizer
from sspo_cli.rollout.engine import Request, Sampling
from sspo_cli.rollout.torch_engine import TorchEngine

LINES, TABLE = Path("runs/model-types.jsonl"), Path("tests/model_types.md")
SECONDS, MEMORY = 60, 3 * 2**30  # limits in seconds and bytes for each type
CPU = torch.device("cpu")
# Vocabulary of each model, and the tokens that end a completion, so that rows leave the sampler's batch.
WORDS, ENDS = 272, list(range(40, 80))
TOLERANCE = 2e-4  # nats, and relative to the size of the gradient, in float32
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "recomputed": {"gradient_checkpointing": True},
    "LoRA": {"lora": LoraOptions(rank=4)},
}
# Values that make the default config of a type valid for a causal language model.
ROPE = {"rope_type": "default", "rope_theta": 1e4}
HEADS = {"head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 128}
INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 256,
    "indexer_budget": 2048,
    "indexer_compress_ratio": 16,
}
VALUES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [9, 18, 27]},
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), ROPE)},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2}},
    "deepseek_v2": {"n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    "hunyuan_v1_dense": HEADS,
    "hunyuan_v1_moe": HEADS,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": HEADS,
    "nemotron": {"num_key_value_heads": 8},
    "qwen4_exp_text": INDEXER,
    "qwen4_exp": {"text_config": INDEXER},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
}
# Small configs of types that the product cannot shrink, so that it can check only their weights.
LAYERS = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL: dict[str, dict[str, Any]] = {
    "blt": {
        "encoder_hash_byte_group_vocab": 64,
        "encoder_hash_byte_group_size": [3, 4],
        "patcher_config": LAYERS,
        "encoder_config": {**LAYERS, "hidden_size_global": 32},
        "decoder_config": {**LAYERS, "hidden_size_global": 32},
        "global_config": LAYERS,
    },
    "codegen": {"n_embd": 64, "n_head": 4, "n_layer": 2, "rotary_dim": 8},
    "zamba": {**LAYERS, "num_hidden_layers": 5, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8},
}


def default_config(kind: str) -> Any:
    """Return the default config of a type; an encoder that can also decode becomes a decoder."""
    config = AutoConfig.for_model(kind, **VALUES.get(kind, {}))
    if getattr(config, "is_decoder", None) is False and not hasattr(config, "decoder_layers"):
        config.is_decoder = True
    return config


def try_type(kind: str) -> dict[str, Any]:
    """Return the results of a type: its distances from the literal computation, and the verdicts of the checks."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        whole, small = Path(folder, "whole"), Path(folder, "small")
        try:
            default_config(kind).save_pretrained(whole)
            write_small(kind, small)
        except Exception as error:
            return {"untried": f"{type(error).__name__}: {first_line(error)}"}
        plain = functools.cache(lambda: _plain(small))  # a model that cannot be loaded must be refused
        result: dict[str, Any] = {way: distances(plain, small, values) for way, values in WAYS.items()}
        for way, values in WAYS.items():
            if way == "full" or not all(map(_is_right, result[way].values())):
                result[way]["train"] = _said(lambda: verdict(whole, small, values, samples=True))  # noqa: B023
                if not result[way]["train"].startswith("right"):
                    result[way]["train by vLLM"] = _said(lambda: verdict(whole, small, values, samples=False))  # noqa: B023
    return result


def verdict(whole: Path, small: Path, values: dict[str, Any], *, samples: bool) -> str:
    """Return the verdict of the checks: of the structure by the published config, of the weights by the small model."""
    notes: list[str] = []
    limit = check_structure(ModelOptions(name=str(whole), **values), notes.append, samples=samples)
    check_model(load_policy(ModelOptions(name=str(small), dtype="float32", **values), CPU), samples=samples)
    if limit:
        return f"right up to {limit.name} = {limit.tokens} tokens, then refused: {limit.text}"
    return "right on its weights alone" if notes else "right"


def distances(plain: Callable[[], Any], folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Return the distances of learner and, in full training, sampler from the literal computation, or their errors."""
    policy = functools.cache(lambda: load_policy(ModelOptions(name=str(folder), dtype="float32", **values), CPU))
    result = {"learner": _said(lambda: learner_distance(policy(), plain()))}
    if not values:
        result["sampler"] = _said(lambda: sampler_distance(policy(), plain()))
    return result


def _said(action: Callable[[], Any]) -> Any:
    """Return the result of an action, or its error as text."""
    try:
        return action()
    except UserError as error:
        return f"refused: {re.sub(r'/[^ ]*/(whole|small)', 'the model', str(error))}"
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"


def write_small(kind: str, folder: Path) -> None:
    """Write a small model with random weights that are far from those of a model before training, and a tokenizer."""
    config = AutoConfig.for_model(kind, **SMALL[kind]) if kind in SMALL else shrink(default_config(kind))
    config = move_switches(config, switches(config))
    for part in [config, *(part for part in vars(config).values() if isinstance(part, transformers.PreTrainedConfig))]:
        for name in vars(part):
            if "vocab_size" in name and isinstance(getattr(part, name), int):
                setattr(part, name, WORDS)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.5).add_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
            else:
                parameter.mul_(1 + 0.2 * torch.randn_like(parameter)).add_(0.1 * torch.randn_like(parameter))
        if (head := model.get_output_embeddings()) is not None:
            head.weight.mul_(2.0)
    model.generation_config.eos_token_id = ENDS
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def _rows() -> list[Row]:
    draw = torch.Generator().manual_seed(2)

    def ids(length: int) -> list[int]:
        return torch.randint(80, WORDS - 10, (length,), generator=draw).tolist()

    short, long = ids(2), ids(17)
    return [Row(short, ids(4)), Row(short, ids(19)), Row(long, ids(9)), Row(long, ids(1)), Row(ids(7), ids(12))]


def _plain(folder: Path) -> Any:
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    except ValueError:  # the class supports only one attention
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _literal(model: Any, row: Row) -> torch.Tensor:
    """Compute the log-probabilities of a completion from the logits of one forward pass."""
    logits = model(input_ids=torch.tensor([row.prompt + row.completion]), use_cache=False).logits[0].float()
    logprobs = logits - logits.logsumexp(dim=-1, keepdim=True)
    first = len(row.prompt) - 1
    return torch.stack([logprobs[first + place, token] for place, token in enumerate(row.completion)])


def learner_distance(policy: Policy, plain: Any) -> float:
    """Return how far `Policy.logprobs` is from the literal computation.

    The larger of two distances counts: that of the values in nats, and the relative one of the gradients. Adapters
    begin as the identity, so with adapters only the values are compared.
    """
    rows = _rows()
    plain.zero_grad()
    ours, theirs = policy.logprobs(batch_of(rows), 1.0)[0], [_literal(plain, row) for row in rows]
    distances = [(a[: len(b)] - b).abs().max() for a, b in zip(ours, theirs, strict=True)]
    if hasattr(policy.model, "peft_config"):
        return torch.stack(distances).max().item()
    of_row = torch.linspace(-1, 1, len(rows))
    (ours.sum(dim=1) * of_row).sum().backward()
    torch.stack([values.sum() * weight for values, weight in zip(theirs, of_row, strict=True)]).sum().backward()
    gradients = [
        torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in m.parameters()])
        for m in (policy.model, plain)
    ]
    distances.append((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    return torch.stack(distances).max().item()  # NaN if one is


@torch.no_grad()
def sampler_distance(policy: Policy, plain: Any) -> float:
    """Return how far the torch sampler's log-probabilities are from the literal ones, in nats."""
    prompts = [[90, 91], list(range(90, 109)), [200, 130, 90, 91, 92]]
    groups = TorchEngine(policy, 6).generate(Request(prompts, 2, Sampling(1.0, 20, seed=3)))
    distances = [
        (_literal(plain, Row(prompt, c.token_ids)) - torch.tensor(c.sampling_logprobs)).abs().max()
        for prompt, group in zip(prompts, groups, strict=True)
        for c in group
    ]
    return torch.stack(distances).max().item()


def outcome(line: dict[str, Any]) -> str:
    """Return the outcome of a line: right, refused, silently wrong, traceback or not tried."""
    if "untried" in line:
        return "not tried"
    for of_way in (line[way] for way in WAYS):
        for road, used in {"train": ("learner", "sampler"), "train by vLLM": ("learner",)}.items():
            said = of_way.get(road, "right")
            if not said.startswith(("right", "refused")):
                return "traceback"
            measured = [of_way[name] for name in used if name in of_way and said.startswith("right")]
            if any(isinstance(value, str) and not value.startswith("refused") for value in measured):
                return "traceback"
            if not all(map(_is_right, measured)):
                return "silently wrong"
    return "right" if line["full"]["train"].startswith("right") else "refused"


def _is_right(value: Any) -> bool:
    return value.startswith("refused") if isinstance(value, str) else value <= TOLERANCE  # NaN is not right


def write_table(lines: dict[str, dict[str, Any]]) -> None:
    """Write a row for each type: the outcome, distances from the literal computation, and the checks' messages."""
    outcomes = {kind: outcome(line) for kind, line in lines.items()}
    counts = Counter(outcomes.values())
    names = ("right", "refused", "silently wrong", "traceback", "not tried")
    text = [
        "# Causal-LM types of transformers, as small random models",
        "",
        f"Written by `python -m tests.model_table`, with transformers {transformers.__version__} and torch "
        f"{torch.__version__.partition('+')[0]}; its docstring says how they are tried.",
        "",
        f"{len(lines)} types: " + ", ".join(f"{counts[name]} {name}" for name in names) + ".",
        "",
        "Learner and sampler: distance from the literal computation without the checks, in nats; the learner's is the largest of "
        "training in full (of its gradient too, relative), with layers computed again, and with LoRA.",
        "",
        "| type | outcome | learner | sampler | what is said |",
        "|---|---|---|---|---|",
    ]
    for kind, line in sorted(lines.items()):
        measured = [
            _largest([line[way][name] for way in WAYS if name in line.get(way, {})]) for name in ("learner", "sampler")
        ]
        said = line.get("untried") or "; ".join(
            f"{way}, {road}: {sentence}"
            for way in WAYS
            for road in ("train", "train by vLLM")
            if (sentence := line[way].get(road, "right")) != "right"
        )
        text.append(f"| {kind} | {outcomes[kind]} | {' | '.join(measured)} | {said.replace('|', ' ')} |")
    TABLE.write_text("\n".join(text) + "\n")


def _largest(values: Sequence[Any]) -> str:
    numbers = [value for value in values if not isinstance(value, str)]
    return f"{max(numbers):.0e}" if numbers else "fails" if values else ""


def in_process(kind: str) -> dict[str, Any]:
    """Try a type in a separate process, and return its results or why it was stopped."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        sender.send(try_type(kind))

    process = context.Process(target=run, daemon=True)
    process.start()
    sender.close()
    result: dict[str, Any] = {"untried": f"not done after {SECONDS} s"}
    if receiver.poll(SECONDS):
        try:
            result = receiver.recv()
        except EOFError:
            result = {"untried": "its process died"}
    process.kill()
    process.join()
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Try the types that are left, and write the table if none remains."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("types", nargs="*")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no other type is begun")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    lines: dict[str, Any] = {}
    if LINES.exists():
        lines = {line.pop("type"): line for line in map(json.loads, LINES.read_text().splitlines())}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:  # do the preparations of the first use before forking
        write_small("llama", Path(folder))
        load_policy(ModelOptions(name=folder), CPU)
    for kind in options.types or [kind for kind in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) if kind not in lines]:
        if time.perf_counter() - start > options.seconds:
            break
        lines[kind] = in_process(kind)
        LINES.parent.mkdir(exist_ok=True)
        with LINES.open("a") as file:
            file.write(json.dumps({"type": kind, **lines[kind]}) + "\n")
        print(f"{time.perf_counter() - start:6.0f} s  {kind:24} {outcome(lines[kind])}", flush=True)
    if lines.keys() >= MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys():
        write_table(lines)


if __name__ == "__main__":
    main()
