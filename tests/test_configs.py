"""The configs that come with the program: each is valid, has the paper's values, and runs."""

import json
from pathlib import Path

import pytest
import torch
from commands import sspo
from shared_data import published
from transformers import Qwen2Config, Qwen2ForCausalLM

from sspo_cli.config import RunOptions, load_config
from sspo_cli.objectives import NORMALIZERS
from sspo_cli.policy.tiny import tiny_tokenizer
from sspo_cli.sweep import load_sweep
from sspo_cli.sweep.grid import Trial

CONFIGS = Path(__file__).parents[1] / "configs"


def test_the_demo_config_is_the_default():
    assert load_config([CONFIGS / "demo.yaml"]) == RunOptions()


def test_the_preset_of_a_small_model_is_not_the_embedded_one_s():
    options = load_config([CONFIGS / "smollm2-135m.yaml"])
    assert options.prompt == "think-answer"
    assert (options.cold_start.learning_rate, options.optimizer.learning_rate) == (5e-5, 1e-5)
    assert [task.name for task in (*options.tasks, *options.evaluation.benchmarks)] == ["gsm8k", "gsm8k"]


def test_table_1_is_the_paper_s_setting():
    options = load_config([CONFIGS / "table1.yaml"])
    assert options.model.name == "Qwen/Qwen2.5-7B-Instruct"
    assert [task.name for task in options.tasks] == ["gsm8k", "deepmath"]
    assert (options.rollout.group_size, options.rollout.max_new_tokens, options.learning.mu) == (8, 512, 2)
    assert [benchmark.name for benchmark in options.evaluation.benchmarks] == ["gsm8k", "math500", "aime25"]
    assert options.cold_start.steps > 0
    assert options.evaluation.validation == 256
    assert options.evaluation.limits(options.rollout) == [4096] * 4


@pytest.mark.parametrize("size", ["8B", "14B", "30B-A3B"])
def test_table_2_is_the_paper_s_setting(size: str):
    options = load_config([CONFIGS / f"table2-qwen3-{size.lower()}.yaml"])
    assert options.model.name == f"Qwen/Qwen3-{size}"
    assert [task.name for task in options.tasks] == ["dapo"]
    assert (options.rollout.group_size, options.rollout.max_new_tokens, options.learning.mu) == (8, 512, 4)
    assert [benchmark.name for benchmark in options.evaluation.benchmarks] == ["aime24", "aime25", "math500"]
    assert options.evaluation.validation == 256
    assert options.evaluation.limits(options.rollout) == [4096, 16384, 16384, 4096]


SIZES = ("8b", "14b", "30b-a3b")


@pytest.mark.parametrize(
    "name", ["table1", *(f"table2-qwen3-{size}{half}" for size in SIZES for half in ("", "-codeact"))]
)
def test_the_paper_s_models_are_trained_in_full_and_by_adapters_in_their_twins(name: str):
    full, twin = (load_config([CONFIGS / f"{name}{kind}.yaml"]) for kind in ("", "-lora"))
    assert (full.model.lora, full.model.weights, full.optimizer.eight_bit, full.rollout.vllm) == (
        None,
        "float32",
        False,
        None,
    )
    assert twin.model.lora
    own = {
        "model": full.model.model_copy(update={"lora": twin.model.lora}),
        "optimizer": full.optimizer.model_copy(update={"learning_rate": 1e-5}),
        "rollout": full.rollout.model_copy(update={"max_rows": 128, "vllm": twin.rollout.vllm}),
    }
    assert twin == full.model_copy(update=own)


@pytest.mark.parametrize("size", ["8B", "14B", "30B-A3B"])
def test_the_code_half_of_table_2_differs_from_the_other_in_its_tasks_alone(size: str):
    maths, code = (load_config([CONFIGS / f"table2-qwen3-{size.lower()}{half}.yaml"]) for half in ("", "-codeact"))
    assert [task.name for task in code.tasks] == ["codeact"]
    assert [task.name for task in code.evaluation.benchmarks] == ["codeact", "mint", "wtq"]
    assert code.episode is not None
    assert (code.episode.turns, code.episode.proposals) == (5, 2)
    tasks = {name: getattr(maths, name) for name in ("tasks", "evaluation", "prompt", "cold_start")}
    alike = code.model_copy(update={**tasks, "episode": None})
    assert alike == maths
    own = {name: getattr(maths.evaluation, name) for name in ("benchmarks", "max_new_tokens")}
    assert code.evaluation.model_copy(update=own) == maths.evaluation


def trials_of(name: str) -> list[Trial]:
    return load_sweep(CONFIGS / "sweeps" / f"{name}.yaml", [], runs_dir=Path("no-runs"))


def grids_of(trials: list[Trial]) -> dict[str, set]:
    """Return the pairs (τ_neg, τ_pos) or (ε_low, ε_high) by method, and for SSPO by gate."""
    grids: dict[str, set] = {}
    for trial in trials:
        objective = trial.options.objective
        name = objective.gate if objective.method == "sspo" else objective.method
        pair = (objective.tau_neg, objective.tau_pos) if objective.tau_neg else (objective.eps_low, objective.eps_high)
        grids.setdefault(str(name), set()).add(pair)
    return grids


EPS = {(0.1, 0.1), (0.2, 0.2), (0.3, 0.3)}
TAU = {(0.3, 0.2), (0.6, 0.5)}
SAPO = {(1.0, 1.05), (3.0, 4.0), (7.0, 8.0)}
GSPO = {(3e-4, 4e-4)}


@pytest.mark.parametrize(("name", "seeds"), [("table1", 3), ("study-grid", 4)])
def test_the_sweeps_of_table_1_and_of_the_study_are_the_appendix_s_grid(name, seeds):
    trials = trials_of(name)
    gates = dict.fromkeys(("expsig", "expatan", "siglog", "atanlog"), TAU)
    expected = {"grpo": EPS, "gmpo": EPS, "gspo": GSPO, "sapo": SAPO, **gates, "gumbel": {(None, None)}}
    assert grids_of(trials) == expected
    assert len(trials) == 19 * seeds
    assert len({trial.name for trial in trials}) == len(trials)


def test_the_sweep_of_the_family_has_every_other_objective_and_option_on_the_setting_of_table_1():
    trials = [trial.options for trial in trials_of("table1-family")]
    objectives = [options.objective for options in trials]
    assert {objective.method for objective in objectives} == {"cispo", "pspo", "cegppo", "luspo", "grpo", "sspo"}
    assert {objective.normalizer for objective in objectives if objective.method == "sspo"} == set(NORMALIZERS)
    assert {(o.method, o.normalizer, options.learning.std) for o, options in zip(objectives, trials, strict=True)} >= {
        ("grpo", "token", "sample"),  # DAPO
        ("grpo", "constant", "none"),  # Dr. GRPO
    }
    for method in ("grpo", "sspo"):
        of_method = [options for options in trials if options.objective.method == method]
        corrections = {(o.learning.importance_level, o.learning.importance_beyond) for o in of_method}
        assert corrections == {(level, beyond) for level in ("sequence", "token") for beyond in ("truncate", "mask")}
        assert {options.rollout.lag for options in of_method} == {0, 1, 2, 4}
        assert {options.learning.kl for options in of_method} == {0, 1e-3, 1e-2, 4e-2}
    assert {options.learning.entropy_range for options in trials} == {None, (0.95, 1.05), (0.9, 1.1)}
    table1 = load_config([CONFIGS / "table1.yaml"])
    for options in trials:
        rollout = options.rollout.model_copy(update={"lag": 0, "equal_groups": "keep"})
        learning = options.learning
        assert (rollout, options.optimizer, learning.mu) == (table1.rollout, table1.optimizer, table1.learning.mu)


@pytest.mark.parametrize(
    ("name", "twin", "seeds"), [("table1", "table1-swapped", 3), ("study-grid", "study-swapped", 4)]
)
def test_the_swapped_twin_exchanges_the_two_temperatures_of_every_pair_and_nothing_else(name, twin, seeds):
    printed, swapped = trials_of(name), trials_of(twin)
    with_taus = [trial for trial in printed if trial.options.objective.tau_neg]

    def exchanged(options: RunOptions) -> RunOptions:
        objective = options.objective
        taus = {"tau_neg": objective.tau_pos, "tau_pos": objective.tau_neg}
        return options.model_copy(update={"objective": objective.model_copy(update=taus)})

    assert [trial.options for trial in swapped] == [exchanged(trial.options) for trial in with_taus]
    assert len(swapped) == (3 + 4 * 2) * seeds


@pytest.mark.parametrize("half", ["", "-codeact"])
def test_the_sweep_of_table_2_has_its_models_and_methods(half: str):
    trials = trials_of(f"table2{half}")
    for size in ("8B", "14B", "30B-A3B"):
        config = load_config([CONFIGS / f"table2-qwen3-{size.lower()}{half}.yaml"])
        of_it = [trial for trial in trials if trial.options.model.name == config.model.name]
        assert grids_of(of_it) == {"grpo": EPS, "gspo": GSPO, "sapo": SAPO, "atanlog": TAU}
        assert len(of_it) == 9 * 3
        for trial in of_it:
            as_in_the_config = {"objective": config.objective, "seed": config.seed}
            assert trial.options.model_copy(update=as_in_the_config) == config
    assert len(trials) == 3 * 9 * 3


@pytest.fixture(scope="module")
def qwen2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small Qwen2 in Hugging Face format: grouped-query attention, untied embeddings, several end ids."""
    folder = tmp_path_factory.mktemp("model") / "qwen2"
    tokenizer = tiny_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("method", "rows"), [("sspo", "published"), ("gspo", "made up")])
def test_table_1_runs_on_a_small_qwen2_and_rows_as_published(
    qwen2_folder: Path, tmp_path: Path, small_data: Path, method: str, rows: str
):
    """Run the config with another model, other paths and, to save time, fewer steps, rows and tokens."""
    data = small_data if rows == "made up" else published("gsm8k/train.jsonl").parents[1]
    tasks = [{"name": name, "path": str(data / name), "limit": 200} for name in ("gsm8k", "deepmath")]
    tasks[1]["path"] = str(data / "deepmath" / "sample.jsonl")
    benchmarks = [
        {"name": name, "path": str(data / name / "test.jsonl"), "split": "test", "limit": 4}
        for name in ("gsm8k", "math500", "aime25")
    ]
    benchmarks[2]["max_new_tokens"] = 12
    changed = {
        "model.name": qwen2_folder,
        "tasks": json.dumps(tasks),
        "evaluation.benchmarks": json.dumps(benchmarks),
        "evaluation.validation": 6,
        "evaluation.max_new_tokens": 18,
        "steps": 3,
        "rollout.prompts": 4,
        "rollout.max_new_tokens": 24,
        "cold_start.steps": 3,
        "cold_start.batch_size": 4,
        "wandb.mode": "disabled",
    }
    sets = [part for key, value in changed.items() for part in ("-s", f"{key}={value}")]
    config = CONFIGS / "table1.yaml"
    done = sspo("train", "-c", config, "--method", method, "--runs-dir", tmp_path, "--run", "table1", *sets)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "perfect 2, respelt 2, wrong answer 1, broken format 0.25, empty 0" in done.stdout
    assert "<think> </think>" in done.stdout  # the rendered prompt asks for the format
    metrics = [json.loads(line) for line in (tmp_path / "table1" / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 3
    assert all(row["sampler/mismatch_max"] < 1e-3 for row in metrics)
    summary = json.loads((tmp_path / "table1" / "eval" / "summary.json").read_text())
    expected = {("validation", 6, 18), ("gsm8k", 4, 18), ("math500", 4, 18), ("aime25", 4, 12)}
    assert {(row["benchmark"], row["n"], row["max_new_tokens"]) for row in summary} == expected
    assert all(row["truncated"] for row in summary)  # a random model does not end its completions
    completions = [json.loads(line) for line in (tmp_path / "table1" / "completions.jsonl").read_text().splitlines()]
    assert {row["problem"] for row in completions}
