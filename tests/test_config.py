"""The configs that a user may write, and the messages about wrong ones."""

import pytest

from sspo_cli.config import RunOptions, differences, flatten, load_config, may_change, to_yaml
from sspo_cli.errors import UserError, border


def test_defaults_are_sspo_atanlog_with_the_printed_temperatures():
    objective = load_config().objective.model_dump()
    assert objective == {
        "method": "sspo",
        "gate": "atanlog",
        "normalizer": "sequence",
        "tau_neg": 0.3,
        "tau_pos": 0.2,
        "allow_any_gate": False,
        "allow_any_method": False,
    }


def test_files_are_merged_in_order_and_overrides_win(tmp_path):
    (tmp_path / "a.yaml").write_text("seed: 1\noptimizer: {learning_rate: 1e-6, warmup_steps: 3}\n")
    (tmp_path / "b.yaml").write_text("optimizer: {learning_rate: 2e-6}\n")
    options = load_config([tmp_path / "a.yaml", tmp_path / "b.yaml"], ["seed=7", "rollout.temperature=0.8"])
    assert (options.seed, options.optimizer.learning_rate, options.optimizer.warmup_steps) == (7, 2e-6, 3)
    assert options.rollout.temperature == 0.8


def test_another_method_does_not_inherit_the_options_of_the_former(tmp_path):
    (tmp_path / "a.yaml").write_text("seed: 3\nobjective: {method: sspo, gate: atanlog, tau_neg: 0.6}\n")
    options = load_config([tmp_path / "a.yaml"], ["objective.method=gspo"])
    objective = options.objective.model_dump()
    assert objective["eps_high"] == 4e-4
    assert "tau_neg" not in objective
    assert options.seed == 3


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective.gate=gumbel", "objective.method=sspo"],
        ["objective.method=sspo", "objective.gate=gumbel"],
        ["objective.tau_neg=7", "objective.tau_pos=8", "objective.method=sapo"],
    ],
)
def test_overrides_hold_in_whatever_order_they_stand(tmp_path, overrides):
    (tmp_path / "a.yaml").write_text("objective: {gate: atanlog}\n")
    for files in ([], [tmp_path / "a.yaml"]):
        if files and "sapo" in overrides[-1]:
            continue  # the gate of SAPO is not atanlog
        objective = load_config(files, overrides).objective.model_dump()
        for override in overrides:
            key, value = override.removeprefix("objective.").split("=")
            assert str(objective[key]).removesuffix(".0") == value


def test_a_gate_from_a_file_goes_when_another_method_is_named(tmp_path):
    # A gate of the default method, which the file does not name.
    (tmp_path / "a.yaml").write_text("objective: {gate: gumbel}\n")
    assert load_config([tmp_path / "a.yaml"], ["objective.method=gspo"]).objective.gate == "clip"


def test_a_gate_from_a_file_stays_when_the_method_is_named(tmp_path):
    (tmp_path / "a.yaml").write_text("objective: {gate: gumbel}\n")
    assert load_config([tmp_path / "a.yaml"], ["objective.method=sspo"]).objective.gate == "gumbel"


def test_the_printed_config_gives_the_same_run(tmp_path):
    options = load_config([], ["objective.method=gmpo", "objective.clip_space=log", "model.lora={rank: 4}"])
    (tmp_path / "printed.yaml").write_text(to_yaml(options))
    assert load_config([tmp_path / "printed.yaml"]) == options
    assert RunOptions.model_validate(options.model_dump(mode="json")) == options


def test_moments_in_bfloat16_that_would_never_fall_are_refused():
    eight_bit = ["model.weights=bfloat16", "optimizer.eight_bit=true"]
    load_config([], [*eight_bit, "optimizer.betas=[0.9, 0.99]"])
    with pytest.raises(UserError, match=r"bfloat16 and would never decrease if the second beta exceeds 0.995"):
        load_config([], [*eight_bit, "optimizer.betas=[0.9, 0.999]"])


def test_differences_name_the_dotted_option():
    assert differences(load_config(), load_config([], ["optimizer.learning_rate=0.5"])) == {
        "optimizer.learning_rate": f"optimizer.learning_rate: {load_config().optimizer.learning_rate} -> 0.5"
    }


def test_options_that_only_one_of_two_methods_has_are_differences_too():
    gspo = load_config([], ["objective.method=gspo"])
    assert differences(load_config(), gspo) == {
        "objective.eps_high": "objective.eps_high: None -> 0.0004",
        "objective.eps_low": "objective.eps_low: None -> 0.0003",
        "objective.gate": "objective.gate: atanlog -> clip",
        "objective.method": "objective.method: sspo -> gspo",
        "objective.tau_neg": "objective.tau_neg: 0.3 -> None",
        "objective.tau_pos": "objective.tau_pos: 0.2 -> None",
    }


def test_what_a_resumed_run_may_change_is_how_it_is_computed():
    given = ["model.lora={}", "rollout.vllm={server: a, exchange: b}", "fork.run=a"]
    whole = load_config([], given).model_dump()
    assert {key for key, _ in flatten(whole) if may_change(key)} == {
        "threads",
        "device",
        "fork.run",
        "evaluation.every",
        "checkpoint.every",
        "checkpoint.keep",
        "wandb.mode",
        "wandb.project",
        "wandb.entity",
        "wandb.group",
        "wandb.tags",
        "model.kernels",
        "model.gradient_checkpointing",
        "rollout.engine",
        "rollout.max_rows",
        "rollout.vllm.tolerance",
        "rollout.vllm.server",
        "rollout.vllm.exchange",
        "learning.token_budget",
    }


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimiser.learning_rate=1", r"unknown option `optimiser`; did you mean `optimizer`\?"),
        (
            "optimizer.learning_rat=1",
            r"unknown option `optimizer.learning_rat`; did you mean `optimizer.learning_rate`\?",
        ),
        ("learning_rate=1", r"unknown option `learning_rate`; did you mean `optimizer.learning_rate`\?"),
        (
            "rollout.top_p=0.9",
            r"unknown option `rollout.top_p`; training samples from the full softmax, because the obj",
        ),
        ("rollout.top_k=5", r"evaluation.top_k applies to evaluations"),
        ("evaluation.top_p=0.9", r"do not apply to greedy completions; set evaluation.temperature"),
        ("evaluation={temperature: 1, top_p: 1.5}", r"`evaluation.top_p` = 1.5 is not valid"),
        ("rollout.foo=1", r"unknown option `rollout.foo`; the options here are engine, prompts"),
        ("reward.format_weight=1", r"unknown option `reward.format_weight`; did you mean `reward.format`\?$"),
        ("reward.treads=1", r"unknown option `reward.treads`; the options here are answer, format"),
        ("evaluation.seed=1", r"unknown option `evaluation.seed`; the options here are benchmarks"),
        ("learning.learning_rate=1", r"did you mean `optimizer.learning_rate` or `cold_start.learning_rate`\?"),
        ("stepz=1", r"did you mean `steps`\?"),
        ("learning_rat=1", r"did you mean `optimizer.learning_rate`\?"),
        ("optimizer.lr=1", r"did you mean `optimizer.learning_rate`\?"),
        ("num_generations=4", r"did you mean `rollout.group_size`\?"),
        ("objective.beta=0.1", r"did you mean `learning.kl`\?$"),
        ("use_kl_loss=true", r"did you mean `learning.kl`\?$"),
        ("learning.kl_coef=0.1", r"did you mean `learning.kl`\?$"),
        ("evaluation.every=None", r"None is text in YAML; write null for no value, or quote it for text"),
        ("model.name=None", r"None is text in YAML; write null"),
        ("evaluation.every=none", r"write evaluation.every=null"),
        ("model.lora=true", r"write model.lora=\{\} for its defaults, or model.lora=\{rank: 16\}"),
        ("model.lora=false", r"write model.lora=null"),
        ("episode=true", r"write episode=\{\} for its defaults, or episode=\{turns: 5\}"),
        ("wandb=offline", r"it is a section of options; did you mean wandb.mode=offline\?"),
        ("model=Qwen/Qwen2.5-7B", r"did you mean model.name=Qwen/Qwen2.5-7B\?"),
        ("cold_start=false", r"write cold_start.steps=0"),
        ("tasks.0.limit=100", r"such as -s 'tasks=\[\{name: arithmetic, limit: 100\}\]'"),
        ("tasks[0].limit=100", r"unknown option `tasks\[0\]`; give the whole list, such as -s"),
        ("evaluation.benchmarks.0.limit=3", r"'evaluation.benchmarks=\[\{name: arithmetic, limit: 3\}\]'"),
        ("tasks.limit=1", r'`tasks` = \{"limit": 1\} is not valid: it is a list; give the whole list'),
        ("seed=null", r"`seed` = null is not valid"),
        ("fork.step=2", r"`fork.run` has no default; give it a value$"),
        ("fork=siglog", r"did you mean fork.run=siglog\?"),
        ("rollout.n=8", r"did you mean `rollout.group_size`\?"),
        ("tasks=gsm8k", r"write tasks=\[gsm8k\]"),
        ("model.gradient_checkpointing=yes", r"write model.gradient_checkpointing=true"),
        ("rollout.prompts=16.0", r"write rollout.prompts=16$"),
        ("steps=10k", r"write steps=10000"),
        ("model.attention=flash", r"did you mean flash_attention_2\?"),
        ("prompt=5", r"""quote it: prompt='"5"'"""),
        ("optimizer.betas=0.9", r"write optimizer.betas=\[0.9, 0.99\]"),
        ("model.lora.rnk=1", r"did you mean `model.lora.rank`\?"),
        ("tasks=[{name: gsm8k, wieght: 2}]", r"did you mean `tasks.0.weight`\?"),
        (
            "optimizer.learning_rate=fast",
            r"`optimizer.learning_rate` = 'fast' is not valid: input should be a valid number",
        ),
        ("rollout.group_size=1", r"`rollout.group_size` = 1 is not valid: .*greater than or equal to 2"),
        ("learning.mu=3", r"rollout.prompts = 16 cannot be split into learning.mu = 3 equal minibatches"),
        ("objective.tau_neg=-1", "tau_neg"),
        ("optimizer.betas=[0.9, 1.0]", r"`optimizer.betas.1` = 1.0 is not valid: .*less than 1"),
        ("optimizer.learning_rate=.inf", "finite"),
        ("model.tiny.heads=3", "model.tiny.heads = 3"),
        ("model.tiny.heads=64", "heads of even width by model.tiny.heads = 64"),
        ("evaluation.benchmarks=[{name: gsm8k}, {name: gsm8k, split: test}]", "lists gsm8k twice"),
        (
            "evaluation.benchmarks=[{name: file, path: my/validation.jsonl}]",
            "held out of the training tasks; rename the file",
        ),
        (
            "evaluation.samples=4",
            "evaluation.samples = 4 greedy completions would all be the same; set evaluation.temp",
        ),
        ("model.weights=bfloat16", r"model.weights = bfloat16 needs optimizer.eight_bit = true"),
        ("model={weights: bfloat16, dtype: float32}", "cannot be combined with model.dtype = float32"),
        ("model={weights: bfloat16, lora: {rank: 4}}", r"model.weights does not apply with model.lora"),
        ("evaluation.temperature=-1", "`evaluation.temperature` = -1 is not valid: .*greater than or equal to 0"),
        ("evaluation.validation=-1", "`evaluation.validation` = -1 is not valid"),
        ("objective.method=gppo", "unknown method 'gppo'; did you mean"),
        ("seed", r"`-s seed` is not of the form section.option=value"),
        ("seed={", r"the value in `-s seed=\{` is not valid YAML"),
    ],
)
def test_a_wrong_option_is_reported_by_its_path(override, said):
    with pytest.raises(UserError, match=said):
        load_config([], [override])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: [1\n", r"line \d+ is not valid YAML"),
        ("- 1\n- 2\n", "must hold options as `key: value` lines, not a list"),
        ("seed: 1\nseed: 2\n", "duplicate key"),
    ],
)
def test_a_malformed_file_is_reported(tmp_path, text, said):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        load_config([tmp_path / "bad.yaml"])


def test_missing_and_binary_files_are_reported(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_config([tmp_path / "none.yaml"])
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        load_config([tmp_path / "binary.yaml"])


def test_a_word_for_nothing_may_be_quoted(tmp_path):
    (tmp_path / "a.yaml").write_text("model: {name: 'None'}\n")
    assert load_config([tmp_path / "a.yaml"]).model.name == "None"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            'load your model with the argument `attn_implementation="eager"` meanwhile',
            "with model.attention=eager meanwhile",
        ),
        ("pass torch_dtype=torch.bfloat16 instead", "pass model.dtype=bfloat16 instead"),
        ("Try increasing `gpu_memory_utilization`", "Try increasing rollout.vllm.gpu_memory_utilization"),
        ("set the option `trust_remote_code=True`", "set the option Python code of the model, which sspo never runs"),
        ("FlashAttention2 has been toggled on, but", "model.attention=flash_attention_2 was asked for, but"),
    ],
)
def test_messages_of_libraries_name_the_options_of_this_program(message, said):
    with pytest.raises(UserError) as raised, border("it cannot be loaded"):
        raise ValueError(message)
    assert said in str(raised.value)
