"""Runs that differ in an option that changes what is learned are separate lines of a table, never one mean."""

from collections.abc import Iterator
from typing import get_args

import pytest
from pydantic import BaseModel
from synthetic_runs import evaluation, write_run
from written_reports import Report

from sspo_cli.config import RunOptions


def columns_of(tasks: str) -> dict[str, tuple[str, ...]]:
    """Return overrides that change `columns` of the tasks and each of its roles, after those that they depend on."""
    file = f"{tasks}=[{{name: file, path: mine"
    alone, empty = (file + "}]",), file + ", columns: {}}]"
    return {f"{tasks}.columns": (*alone, empty)} | {
        f"{tasks}.columns.{role}": (*alone, empty, file + f", columns: {{{role}: x}}}}]")
        for role in ("question", "answer", "id", "demonstration")
    }


EPISODES = "tasks=[{name: calculator}]"
# For each option, a value that differs from its default, after the overrides that the value depends on.
OTHER_VALUES: dict[str, tuple[str, ...]] = {
    "seed": ("seed=999",),
    "steps": ("steps=2",),
    "threads": ("threads=2",),
    "device": ("device=cuda",),
    "prompt": ("prompt=think-answer",),
    "answer_timeout": ("answer_timeout=1.0",),
    "chat.system": ("chat.system=Think.",),
    "chat.user": ("chat.user='{question} Think.'",),
    "chat.template": ("chat.template='{{ messages }}'",),
    "chat.template_kwargs": ("chat.template_kwargs={enable_thinking: false}",),
    "objective.method": ("objective.method=gspo",),
    "objective.gate": ("objective.gate=siglog",),
    "objective.normalizer": ("objective.normalizer=token",),
    "objective.tau_neg": ("objective.tau_neg=0.7",),
    "objective.tau_pos": ("objective.tau_pos=0.7",),
    "objective.eps_low": ("objective.method=gspo", "objective.eps_low=0.1"),
    "objective.eps_high": ("objective.method=gspo", "objective.eps_high=0.1"),
    "objective.clip_space": ("objective.method=gmpo", "objective={eps_low: 0.2, eps_high: 0.2, clip_space: log}"),
    "objective.alpha": ("objective.method=pspo", "objective.alpha=0.3"),
    "objective.beta_low": ("objective.method=cegppo", "objective.beta_low=0.5"),
    "objective.beta_high": ("objective.method=cegppo", "objective.beta_high=0.5"),
    "objective.allow_any_gate": ("objective.allow_any_gate=true",),
    "objective.allow_any_method": ("objective.allow_any_method=true",),
    "model.name": ("model.name=Qwen/Qwen3-8B",),
    "model.revision": ("model.revision=a1",),
    "model.dtype": ("model.dtype=float32",),
    "model.weights": ("optimizer.eight_bit=true", "model.weights=bfloat16"),
    "model.kernels": ("model.kernels=compiled",),
    "model.attention": ("model.attention=eager",),
    "model.gradient_checkpointing": ("model.gradient_checkpointing=true",),
    "model.lora": ("model.lora={}",),
    "model.lora.rank": ("model.lora={}", "model.lora.rank=4"),
    "model.lora.alpha": ("model.lora={}", "model.lora.alpha=4"),
    "model.lora.targets": ("model.lora={}", "model.lora.targets=[q_proj]"),
    "model.lora.seed": ("model.lora={}", "model.lora.seed=4"),
    "model.tiny.hidden_size": ("model.tiny.hidden_size=32",),
    "model.tiny.layers": ("model.tiny.layers=1",),
    "model.tiny.heads": ("model.tiny.heads=1",),
    "model.tiny.intermediate_size": ("model.tiny.intermediate_size=48",),
    "model.tiny.seed": ("model.tiny.seed=4",),
    "model.tiny.action_tags": ("model.tiny.action_tags=true",),
    "model.tiny.context": ("model.tiny.context=2048",),
    "tasks.name": ("tasks=[{name: gsm8k}]",),
    "tasks.path": ("tasks=[{path: mine}]",),
    "tasks.split": ("tasks=[{split: test}]",),
    "tasks.config": ("tasks=[{config: cn}]",),
    **columns_of("tasks"),
    "tasks.weight": ("tasks=[{weight: 2}]",),
    "tasks.limit": ("tasks=[{limit: 9}]",),
    "rollout.engine": ("rollout.engine=torch",),
    "rollout.prompts": ("rollout.prompts=8",),
    "rollout.group_size": ("rollout.group_size=4",),
    "rollout.max_new_tokens": ("rollout.max_new_tokens=8",),
    "rollout.temperature": ("rollout.temperature=0.7",),
    "rollout.max_rows": ("rollout.max_rows=8",),
    "rollout.lag": ("rollout.lag=1",),
    "rollout.equal_groups": ("rollout.equal_groups=drop",),
    "rollout.equal_in": ("rollout.equal_groups=drop", "rollout.equal_in=answer"),
    "rollout.most_sampled": ("rollout.equal_groups=drop", "rollout.most_sampled=5"),
    "rollout.vllm": ("rollout.vllm={}",),
    "rollout.vllm.gpu_memory_utilization": ("rollout.vllm={}", "rollout.vllm.gpu_memory_utilization=0.5"),
    "rollout.vllm.kv_cache_gib": ("rollout.vllm={}", "rollout.vllm.kv_cache_gib=2"),
    "rollout.vllm.enforce_eager": ("rollout.vllm={}", "rollout.vllm.enforce_eager=true"),
    "rollout.vllm.sleep": ("rollout.vllm={}", "rollout.vllm.sleep=false"),
    "rollout.vllm.tolerance": ("rollout.vllm={}", "rollout.vllm.tolerance=0.5"),
    "rollout.vllm.server": ("rollout.vllm={server: a, exchange: b}", "rollout.vllm.server=c"),
    "rollout.vllm.exchange": ("rollout.vllm={server: a, exchange: b}", "rollout.vllm.exchange=c"),
    "reward.answer": ("reward.answer=2",),
    "reward.format": ("reward.format=0.5",),
    "reward.function": ("reward.function=mine:brief",),
    "reward.weight": ("reward.function=mine:brief", "reward.weight=2"),
    "reward.range": ("reward.function=mine:brief", "reward.range=[-1, 0]"),
    **{
        f"episode{name}": (EPISODES, f"episode{name}={value}")
        for name, value in {
            "": "{turns: 3}",
            ".turns": 4,
            ".proposals": 1,
            ".max_tokens": 99,
            ".thinking": "true",
            ".observation_chars": 99,
            ".call_timeout": 9.0,
            ".memory_mib": 99,
            ".parallel": 1,
        }.items()
    },
    "learning.mu": ("learning.mu=4",),
    "learning.epochs": ("learning.epochs=2",),
    "learning.std": ("learning.std=none",),
    "learning.token_budget": ("learning.token_budget=999",),
    "learning.mask_truncated": ("learning.mask_truncated=true",),
    "learning.kl": ("learning.kl=0.1",),
    "learning.entropy_range": ("learning.entropy_range=[0.9, 1.1]",),
    "learning.importance_cap": ("learning.importance_cap=2",),
    "learning.importance_level": ("learning.importance_cap=2", "learning.importance_level=token"),
    "learning.importance_beyond": ("learning.importance_cap=2", "learning.importance_beyond=mask"),
    "optimizer.learning_rate": ("optimizer.learning_rate=1e-3",),
    "optimizer.warmup_steps": ("optimizer.warmup_steps=0",),
    "optimizer.schedule": ("optimizer.schedule=cosine",),
    "optimizer.betas": ("optimizer.betas=[0.9, 0.95]",),
    "optimizer.weight_decay": ("optimizer.weight_decay=0.1",),
    "optimizer.max_grad_norm": ("optimizer.max_grad_norm=0.5",),
    "optimizer.max_bad_steps": ("optimizer.max_bad_steps=9",),
    "optimizer.eight_bit": ("optimizer.eight_bit=true",),
    "cold_start.steps": ("cold_start.steps=20",),
    "cold_start.batch_size": ("cold_start.batch_size=20",),
    "cold_start.learning_rate": ("cold_start.learning_rate=1e-4",),
    "cold_start.warmup_steps": ("cold_start.warmup_steps=0",),
    "cold_start.schedule": ("cold_start.schedule=cosine",),
    "cold_start.weight_decay": ("cold_start.weight_decay=0.1",),
    "cold_start.max_grad_norm": ("cold_start.max_grad_norm=0.5",),
    "cold_start.tasks.name": ("cold_start.tasks=[{}]", "cold_start.tasks=[{name: gsm8k}]"),
    "cold_start.tasks.path": ("cold_start.tasks=[{}]", "cold_start.tasks=[{path: mine}]"),
    "cold_start.tasks.split": ("cold_start.tasks=[{}]", "cold_start.tasks=[{split: test}]"),
    "cold_start.tasks.config": (
        "cold_start.tasks=[{}]",
        "cold_start.tasks=[{config: cn}]",
    ),
    **columns_of("cold_start.tasks"),
    "cold_start.tasks.weight": ("cold_start.tasks=[{}]", "cold_start.tasks=[{weight: 2}]"),
    "cold_start.tasks.limit": ("cold_start.tasks=[{}]", "cold_start.tasks=[{limit: 9}]"),
    "cold_start.checkpoint_every": ("cold_start.checkpoint_every=9",),
    "cold_start.seed": ("cold_start.seed=4",),
    "evaluation.benchmarks.name": ("evaluation.benchmarks=[{name: aime24}]",),
    "evaluation.benchmarks.path": ("evaluation.benchmarks=[{path: mine}]",),
    "evaluation.benchmarks.split": ("evaluation.benchmarks=[{split: train}]",),
    "evaluation.benchmarks.config": ("evaluation.benchmarks=[{config: cn}]",),
    **columns_of("evaluation.benchmarks"),
    "evaluation.benchmarks.weight": ("evaluation.benchmarks=[{weight: 2}]",),
    "evaluation.benchmarks.limit": ("evaluation.benchmarks=[{limit: 9}]",),
    "evaluation.benchmarks.max_new_tokens": ("evaluation.benchmarks=[{max_new_tokens: 9}]",),
    "evaluation.every": ("evaluation.every=9",),
    "evaluation.max_new_tokens": ("evaluation.max_new_tokens=9",),
    "evaluation.samples": ("evaluation.temperature=0.5", "evaluation.samples=2"),
    "evaluation.temperature": ("evaluation.temperature=0.5",),
    "evaluation.top_p": ("evaluation.temperature=0.5", "evaluation.top_p=0.5"),
    "evaluation.top_k": ("evaluation.temperature=0.5", "evaluation.top_k=5"),
    "evaluation.validation": ("evaluation.validation=9",),
    "evaluation.decontaminate": ("evaluation.decontaminate=false",),
    "checkpoint.every": ("checkpoint.every=9",),
    "checkpoint.keep": ("checkpoint.keep=9",),
    "wandb.mode": ("wandb.mode=offline",),
    "wandb.project": ("wandb.project=mine",),
    "wandb.entity": ("wandb.entity=us",),
    "wandb.group": ("wandb.group=ours",),
    "wandb.tags": ("wandb.tags=[a]",),
    "fork": ("fork={run: a/b, step: 4, fingerprint: x}",),
    "fork.run": ("fork={run: a/b, step: 4, fingerprint: x}", "fork.run=moved/b"),
    "fork.step": ("fork={run: a/b, step: 4, fingerprint: x}", "fork.step=5"),
    "fork.optimizer": ("fork={run: a/b, step: 4, fingerprint: x}", "fork.optimizer=true"),
    "fork.fingerprint": ("fork={run: a/b, step: 4, fingerprint: x}", "fork.fingerprint=y"),
}

# Options of how a run is computed, measured, saved or shown, which do not change what it learns. A new option fails the
# first test until it is added here or above.
WITHOUT_EFFECT = {
    "seed",
    "threads",
    "device",
    "answer_timeout",
    "episode.parallel",
    "objective.allow_any_gate",
    "objective.allow_any_method",
    "model.gradient_checkpointing",
    "rollout.max_rows",
    "learning.token_budget",
    "cold_start.checkpoint_every",
    "evaluation.benchmarks.name",
    "evaluation.benchmarks.path",
    "evaluation.benchmarks.split",
    "evaluation.benchmarks.config",
    "evaluation.benchmarks.columns",
    "evaluation.benchmarks.columns.question",
    "evaluation.benchmarks.columns.answer",
    "evaluation.benchmarks.columns.id",
    "evaluation.benchmarks.columns.demonstration",
    "evaluation.benchmarks.weight",
    "evaluation.benchmarks.limit",
    "evaluation.benchmarks.max_new_tokens",
    "evaluation.every",
    "evaluation.max_new_tokens",
    "evaluation.samples",
    "evaluation.temperature",
    "evaluation.top_p",
    "evaluation.top_k",
    "evaluation.decontaminate",  # the problems that it leaves out have an effect, and are recorded
    "checkpoint.every",
    "checkpoint.keep",
    "wandb.mode",
    "wandb.project",
    "wandb.entity",
    "wandb.group",
    "wandb.tags",
    "fork.run",
}

# Options that determine the model that RL starts from, or the regime in which methods are compared. Runs that differ in
# them are not compared and are in different blocks of a table. A prefix stands for all options of its section.
OF_THE_SETTING = (
    "model.",
    "cold_start.",
    "tasks.",
    "chat.",
    "episode",
    "fork",
    "prompt",
    "steps",
    "learning.mu",
    "learning.epochs",
    "rollout.prompts",
    "rollout.group_size",
    "rollout.max_new_tokens",
    "rollout.temperature",
)


def options_of(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every option; an optional section is an option too."""
    for name, field in section.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        nested = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not nested or type(None) in kinds:
            yield prefix + name
        for kind in nested:
            yield from options_of(kind, f"{prefix}{name}.")


def test_every_option_is_tried() -> None:
    assert list(OTHER_VALUES) == list(options_of(RunOptions))
    assert OTHER_VALUES.keys() >= WITHOUT_EFFECT


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Return the line of table 1 that each run is in, by the run's overrides.

    The report covers a run for each value of each option.
    """
    path = tmp_path_factory.mktemp("options")
    tried = {overrides[:length] for overrides in OTHER_VALUES.values() for length in range(len(overrides) + 1)}
    places = {overrides: seed for seed, overrides in enumerate(sorted(tried))}
    for overrides, seed in places.items():
        steps = 2 if "steps=2" in overrides else 1
        own = (f"seed={seed}", *(each for each in overrides if not each.startswith(("seed=", "steps="))))
        write_run(path / "runs" / str(seed), *own, steps=steps, evaluations=[evaluation(steps, 120)])
    rows = Report(path / "runs", path / "out").rows("table1")
    names = [tuple(row[name] for name in ("setting", "method", "gate", "configuration")) for row in rows]
    assert len(set(names)) == len(names)  # a reader can distinguish them
    line_of = {seed: name for name, row in zip(names, rows, strict=True) for seed in row["seeds"].split(", ")}
    return {overrides: line_of[str(seed)] for overrides, seed in places.items()}


@pytest.mark.parametrize("option", OTHER_VALUES)
def test_runs_that_differ_in_it(option: str, lines: dict[tuple[str, ...], tuple[str, ...]]) -> None:
    """Check that runs that differ in one option are in different lines, unless the option has no effect.

    The lines are in different blocks if the option belongs to the setting.
    """
    line, own = lines[OTHER_VALUES[option][:-1]], lines[OTHER_VALUES[option]]
    assert (line == own) == (option in WITHOUT_EFFECT)
    makes_the_setting = option.startswith(OF_THE_SETTING) and option not in WITHOUT_EFFECT
    assert (line[0] != own[0]) == makes_the_setting
