"""An option that others make ineffective is refused if it is set explicitly; the message names the deciding option."""

from pathlib import Path

import pytest

from sspo_cli.config import Given, load_config, to_yaml
from sspo_cli.config.ignored import RULES
from sspo_cli.config.presets import presets
from sspo_cli.errors import UserError
from sspo_cli.sweep import load_sweep

NAMED = "model.name=org/name"
NOTHING = "evaluation.benchmarks=[]"
CALCULATOR = ("tasks=[calculator]", "evaluation.benchmarks=[calculator]", "rollout.max_new_tokens=24")
IGNORED = [
    ([NAMED, "model.tiny.layers=2"], "model.tiny.layers would be ignored: model.name = org/name is used instead of"),
    (["model.revision=main"], "model.revision would be ignored: the embedded model has no revisions"),
    (
        ["model.name=FOLDER", "model.revision=main"],
        "model.revision would be ignored: model.name = .* is a local folder",
    ),
    (
        ["rollout.vllm.kv_cache_gib=1"],
        "rollout.vllm.kv_cache_gib would be ignored: rollout.engine = auto samples the emb",
    ),
    (
        ["cold_start.steps=0", "cold_start.seed=1"],
        "cold_start.seed would be ignored: cold_start.steps = 0 skips the cold",
    ),
    ([NAMED, "cold_start.learning_rate=5e-5"], "cold_start.learning_rate would be ignored: cold_start.steps = 0 skips"),
    ([NOTHING, "evaluation.every=5"], "evaluation.every would be ignored: evaluation.benchmarks is empty and"),
    ([NOTHING, "evaluation.decontaminate=false"], "evaluation.decontaminate would be ignored: there is no benchmark"),
    (["tasks=[{name: arithmetic, weight: 2}]"], "tasks.0.weight would be ignored: there is a single task"),
    (
        ["evaluation.benchmarks=[{weight: 2}]"],
        "evaluation.benchmarks.0.weight would be ignored: weights are for `tasks`",
    ),
    (["cold_start.tasks=[{}, {weight: 2}]"], "cold_start.tasks.1.weight would be ignored: weights are for `tasks`"),
    (["wandb.project=mine"], "wandb.project would be ignored: wandb.mode = disabled"),
    (["prompt=think-answer", "chat.system=Be brief."], "prompt would be ignored: chat.system replaces the system turn"),
    (["objective.allow_any_gate=true"], "objective.allow_any_gate would be ignored: objective.gate = atanlog is not a"),
    (["objective={method: gspo, allow_any_method: true}"], "objective.allow_any_method would be ignored: .* = gspo is"),
    (
        [NAMED, "device=cpu", "rollout.vllm.kv_cache_gib=1"],
        "rollout.vllm.kv_cache_gib would be ignored: rollout.engine = auto samples with torch on a CPU",
    ),
    (
        [NAMED, "device=cpu", "rollout.engine=vllm", "rollout.vllm.sleep=false"],
        "rollout.vllm.sleep would be ignored: vLLM uses it only on a GPU",
    ),
    (
        ["evaluation.benchmarks=[{name: file, path: a.jsonl, columns: {demonstration: d}}]"],
        "evaluation.benchmarks.0.columns.demonstration would be ignored: benchmarks are not used in the cold start",
    ),
    (
        ["tasks=[{name: file, path: a.jsonl, columns: {demonstration: d}}]", "cold_start.tasks=[arithmetic]"],
        "tasks.0.columns.demonstration would be ignored: the demonstrations are those of cold_start.tasks",
    ),
    (
        ["tasks=['FOLDER/a.jsonl:dev']"],
        "tasks.0.split would be ignored: .*/a.jsonl is a single file, which is read whole",
    ),
    (
        ["evaluation.benchmarks=[{name: gsm8k, path: FOLDER/a.jsonl, split: train}]"],
        "evaluation.benchmarks.0.split would be ignored: .*/a.jsonl is a single file",
    ),
]


@pytest.mark.parametrize(("overrides", "said"), IGNORED)
def test_an_option_without_effect_is_refused(tmp_path: Path, overrides: list[str], said: str) -> None:
    given = [text.replace("FOLDER", str(tmp_path)) for text in overrides]
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(UserError, match=f"^{said}"):
        Given(overrides=given).options()


def test_every_rule_is_tried() -> None:
    reasons = {rule.reason for rule in RULES}
    assert len(reasons) == len(RULES) <= len(IGNORED)


@pytest.mark.parametrize(
    "overrides",
    [
        [
            NAMED,
            "model.revision=main",
            "cold_start.steps=5",
            "cold_start.learning_rate=5e-5",
            "rollout.vllm.sleep=false",
        ],
        ["rollout.engine=vllm", "rollout.vllm.kv_cache_gib=1"],
        ["rollout.vllm={server: http://a, exchange: b}"],
        [NOTHING, "evaluation.every=5", "evaluation.validation=9"],
        [NOTHING, "evaluation.every=null"],
        ["tasks=[{weight: 2}, chains]", "wandb.mode=offline", "wandb.project=mine"],
        [
            NOTHING,
            "evaluation.temperature=0.6",
            "evaluation.samples=4",
            "evaluation.max_new_tokens=9",
        ],  # effective in `sspo eval`
        [*CALCULATOR, "chat.system=Be brief.", "episode.memory_mib=99"],
        ["tasks=[{path: data, name: gsm8k, split: dev}]", "chat.user=Say {question}", "prompt=think-answer"],
    ],
)
def test_the_same_options_with_an_effect_are_taken(overrides: list[str]) -> None:
    assert Given(overrides=overrides).options()


@pytest.mark.parametrize(
    "overrides",
    [
        [NAMED, "model.tiny.layers=3", "cold_start.learning_rate=1e-5", "prompt=think-answer", "chat.system=Be brief."],
        ["cold_start.steps=0", "cold_start.learning_rate=3e-3", "wandb.project=sspo", "objective.allow_any_gate=false"],
        ["tasks=[{weight: 1}]", "evaluation.benchmarks=[{weight: 1.0}]", NOTHING, "evaluation.every=40"],
        [NOTHING, "tasks=['ignored_options.jsonl:train', {path: ignored_options.jsonl, name: file}]"],
    ],
)
def test_an_option_without_effect_may_have_its_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ignored_options.jsonl").touch()
    assert Given(overrides=overrides).options()


def test_a_flag_and_an_override_may_not_contradict_each_other() -> None:
    with pytest.raises(UserError, match=r"^objective\.method is given twice, as grpo and by -s as sspo; leave out one"):
        Given(overrides=["objective.method=sspo"], flags={"objective.method": "grpo"}).options()
    assert Given(overrides=["objective.method=grpo"], flags={"objective.method": "grpo"}).options()


SWEEPS = [
    ("options: {cold_start: {steps: 0, seed: 1}}", "", "sweep.yaml: cold_start.seed would be ignored"),
    (
        "grid: {cold_start.steps: [0, 5], cold_start.seed: [0, 1]}",
        "",
        "sweep.yaml, the trial with cold_start.steps=0, cold_start.seed=1: cold_start.seed would be ignored: cold_start",
    ),
    (
        "grid: {cold_start.seed: [0, 1]}",
        "cold_start.steps=0",
        "with cold_start.seed=1: cold_start.seed would be ignored",
    ),
    ("zip: [{wandb.project: [a, b]}]", "", "the trial with wandb.project=a: wandb.project would be ignored"),
    ("{}", "wandb.project=a", "sweep.yaml: wandb.project would be ignored"),
]
TAKEN_SWEEPS = [
    ("options: {cold_start.seed: 1}\ngrid: {cold_start.steps: [0, 5]}", "", 2),
    ("grid: {cold_start.steps: [0, 5]}\nblocks: [{options: {cold_start.seed: 1}}, {}]", "", 4),
    ("options: {cold_start.seed: 1}\nblocks: [{options: {cold_start.steps: 0}}, {}]", "", 2),
    ("grid: {cold_start.steps: [0, 5]}", "cold_start.seed=1", 2),
    ("grid: {cold_start.seed: [1, 2]}", "cold_start={steps: 0, seed: 0}", 1),
]


@pytest.mark.parametrize(("text", "override", "said"), SWEEPS)
def test_no_trial_of_a_sweep_has_an_option_without_effect(tmp_path: Path, text: str, override: str, said: str) -> None:
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        load_sweep(tmp_path / "sweep.yaml", [override] * bool(override), tmp_path)


@pytest.mark.parametrize(("text", "override", "count"), TAKEN_SWEEPS)
def test_an_option_of_all_trials_needs_an_effect_only_in_some(
    tmp_path: Path, text: str, override: str, count: int
) -> None:
    (tmp_path / "sweep.yaml").write_text(text)
    assert len(load_sweep(tmp_path / "sweep.yaml", [override] * bool(override), tmp_path)) == count


def test_a_later_layer_may_make_an_option_of_a_file_irrelevant_but_one_file_may_not(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("model: {tiny: {layers: 1}}\ncold_start: {steps: 3, seed: 1}\n")
    assert Given([own], ["cold_start.steps=0", NAMED]).options().cold_start.seed == 1
    own.write_text("cold_start: {steps: 0, seed: 1}\n")
    with pytest.raises(UserError, match=r"cold_start\.seed would be ignored"):
        Given([own]).options()
    with pytest.raises(UserError, match=r"cold_start\.learning_rate would be ignored"):
        Given(overrides=["cold_start.learning_rate=1"]).over(load_config([], ["cold_start.steps=0"]))
    assert Given([own]).over(load_config([own], ["cold_start.steps=0"]))  # the file that the run was started with


def test_presets_and_printed_options_are_taken(tmp_path: Path) -> None:
    for preset in presets():
        if "/" not in preset.name:  # another test expands the sweeps
            assert Given([Path(preset.name)]).options()
    complete = load_config([], ["cold_start.steps=0", "cold_start.seed=1", NAMED, "wandb.project=mine"])
    (tmp_path / "all.yaml").write_text(to_yaml(complete))
    assert Given([tmp_path / "all.yaml"]).options() == complete
