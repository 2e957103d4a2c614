"""Export of a run's model to a folder for publication: weights, tokenizer and a model card."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sspo_cli import __version__
from sspo_cli.config import RunOptions, TaskOptions
from sspo_cli.errors import UserError, border, quantity
from sspo_cli.named_runs import checkpoint_of, find_run, step_of, whole
from sspo_cli.policy.copies import copy_model
from sspo_cli.policy.model import DTYPES, load_policy
from sspo_cli.redaction import redacted
from sspo_cli.tracking.files import explain_os_errors, read_json, write_text_atomic
from sspo_cli.tracking.run_folder import RunFolder
from sspo_cli.tracking.shapes import CONFIG

CARD = "README.md"  # the name that the Hugging Face hub expects


def export_model(name: str, folder: Path, which: str | None, runs_dir: Path, dtype: str | None = None) -> Path:
    """Write the model of a run's checkpoint (last, best or a step) to a new folder, atomically; return the checkpoint.

    dtype  float32 or bfloat16; None: the dtype of the checkpoint, or float32 if adapters are merged

    Adapters are merged into the weights. A model without adapters is copied tensor by tensor, so that it is never
    in memory as a whole.
    Raises UserError if there is no such checkpoint, if the folder exists or if it cannot be written.
    """
    found = find_run(name, runs_dir)
    if found is None:
        raise UserError(f"there is no run {name} in {runs_dir}")
    if found.checkpoint and which:
        raise UserError(f"{found.checkpoint} is a checkpoint already; leave out --checkpoint or name the run")
    if os.path.lexists(folder):
        raise UserError(f"{folder} exists; name a new folder")
    run = RunFolder.open(found.folder)
    checkpoint = whole(found.checkpoint) if found.checkpoint else checkpoint_of(run, which or "last")
    card = model_card(run, checkpoint)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    with explain_os_errors("create", folder):
        temporary.mkdir(parents=True)
    try:
        with border(f"{folder} cannot be written"):
            if run.config.model.lora:
                _write_merged(run.config, checkpoint, temporary, dtype)
            else:
                copy_model(checkpoint, temporary, dtype)
        write_text_atomic(temporary / CARD, card)
        with explain_os_errors("create", folder):
            os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return checkpoint


def _write_merged(options: RunOptions, checkpoint: Path, folder: Path, dtype: str | None) -> None:
    """Merge the adapters of a model in float32, and write the model."""
    changes = {"kernels": "torch", "gradient_checkpointing": False, "dtype": "float32"}
    model = options.model.model_copy(update=changes)
    policy = load_policy(model, torch.device("cpu"), checkpoint, options.chat.template)
    merged = policy.model.merge_and_unload()
    if dtype:
        merged = merged.to(DTYPES[dtype])
    merged.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


def model_card(run: RunFolder, checkpoint: Path) -> str:
    """Describe a checkpoint in Markdown, with the metadata that the Hugging Face hub reads.

    Raises UserError for a damaged file of the run.
    """
    options, step = run.config, step_of(checkpoint)
    words, base = options.objective.words, _public(options.model.name)
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    head |= {"tags": list(dict.fromkeys(["sspo", *words])), **({"base_model": base} if base else {})}
    scores = [row for row in run.evaluations() if row["step"] in (0, step) and "pass_at_1" in row]
    every_option = json.dumps(redacted(options.model_dump(mode="json")), indent=2, ensure_ascii=False)
    lines = [
        *("---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", ""),
        *(f"# {run.path.name}", ""),
        f"{base or 'A small model built from scratch'}, trained by reinforcement learning with {' '.join(words)}: "
        f"checkpoint of step {step} of {options.steps}, seed {options.seed}.",
        *("", "## Training", "", "| | |", "|:--|:--|"),
        *(f"| {name} | {value} |" for name, value in _training(options, read_json(run.config_path, CONFIG)).items()),
        *("", *_prompt(options)),
        *("## Scores", "", *_scores(scores), ""),
        *("Every option of the run:", "", "```json", every_option, "```", ""),
    ]
    return "\n".join(lines)


def _training(options: RunOptions, about: Mapping[str, Any]) -> dict[str, str]:
    """Return the facts about the training by name; `about` is the content of config.json."""
    listed_apart = ("method", "gate", "allow_any_gate", "allow_any_method")
    objective = {name: value for name, value in options.objective.model_dump().items() if name not in listed_apart}
    rollout, optimizer, data = options.rollout, options.optimizer, about.get("data")
    packages = about.get("packages", {})
    versions = (f"{name} {packages[name]}" for name in ("torch", "transformers", "vllm", "peft") if name in packages)
    program = (f"sspo {packages.get('sspo', __version__)}", f"revision {about.get('revision') or 'unknown'}", *versions)
    return {
        "method": options.objective.method,
        "gate": options.objective.gate or "none",
        **{f"`{name}`": str(value) for name, value in objective.items()},
        "weights": _trained(options),
        "data": "; ".join(map(_describe_task, options.tasks)),
        **({"training problems": f"{data['problems']}, fingerprint {data['fingerprint']}"} if data else {}),
        "rollout": f"{quantity(rollout.prompts, 'prompt')}, {rollout.group_size} completions each, at most "
        f"{quantity(rollout.max_new_tokens, 'token')}, temperature {rollout.temperature}",
        "optimizer": f"learning rate {optimizer.learning_rate:g}, {optimizer.schedule}; μ = {options.learning.mu}",
        "cold start": _cold_start(options),
        "prompt": f"template {options.template.name}",
        "program": ", ".join(program),
    }


def _public(name: str | None) -> str | None:
    """Return a model's name, without the path of a local folder; None for a model built from scratch."""
    return name if name is None or not Path(name).exists() else Path(name).resolve().name


def _trained(options: RunOptions) -> str:
    lora = options.model.lora
    return f"adapters of rank {lora.rank}, merged" if lora else "all"


def _describe_task(task: TaskOptions) -> str:
    limit = f", the first {quantity(task.limit, 'problem')}" if task.limit else ""
    source = f" from {_public(task.path)}" if task.path else ""
    return f"{task.label} ({task.split}{limit}){source}"


def _cold_start(options: RunOptions) -> str:
    cold = options.cold_start
    if not cold.steps:
        return "none"
    return f"{quantity(cold.steps, 'step')} of {quantity(cold.batch_size, 'demonstration')}, learning rate {cold.learning_rate:g}"


def _prompt(options: RunOptions) -> list[str]:
    """Quote the system turn of training, which users of the model need."""
    if not (system := options.template.system):
        return []
    return [
        "The model was trained with this system turn:",
        "",
        *(f"> {line}" for line in system.splitlines()),
        "",
    ]


def _scores(rows: Sequence[dict[str, Any]]) -> list[str]:
    if not rows:
        return ["Not measured at this checkpoint."]
    table = [
        "| benchmark | step | Pass@1 | 95 % interval | problems | samples | temperature | token limit | prompt |",
        "|:--|--:|--:|:--|--:|--:|--:|--:|:--|",
    ]
    for row in sorted(rows, key=lambda row: (row["benchmark"], row["step"])):
        interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f} %" if {"low", "high"} <= row.keys() else "–"
        cells = (row.get(name, "–") for name in ("n", "samples", "temperature", "max_new_tokens", "prompt"))
        score = f"{100 * row['pass_at_1']:.1f} %"
        table.append(f"| {' | '.join(map(str, (row['benchmark'], row['step'], score, interval, *cells)))} |")
    return [*table, "", "Intervals are Wilson's, over the problems. Step 0 is the model before reinforcement learning."]
