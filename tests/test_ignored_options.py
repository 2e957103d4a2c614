"""An option that would have no effect next to others is refused if it is set explicitly, with the option that decides it."""

from pathlib import Path

import pytest

from sspo_cli.config import Given, load_config, to_yaml
from sspo_cli.config.ignored import RULES
from sspo_cli.config.presets import presets
from sspo_cli.errors import UserError

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
]


@pytest.mark.parametrize(("overrides", "said"), IGNORED)
def test_an_option_without_effect_is_refused(tmp_path: Path, overrides: list[str], said: str) -> None:
    given = [text.replace("FOLDER", str(tmp_path)) for text in overrides]
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
        ],  # for `sspo eval`
        [*CALCULATOR, "chat.system=Be brief.", "episode.memory_mib=99"],
    ],
)
def test_the_same_options_with_an_effect_are_taken(overrides: list[str]) -> None:
    assert Given(overrides=overrides).options()


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
        if "/" not in preset.name:  # not of a sweep
            assert Given([Path(preset.name)]).options()
    complete = load_config([], ["cold_start.steps=0", "cold_start.seed=1", NAMED, "wandb.project=mine"])
    (tmp_path / "all.yaml").write_text(to_yaml(complete))
    assert Given([tmp_path / "all.yaml"]).options() == complete
