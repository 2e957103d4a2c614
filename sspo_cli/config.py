"""Every option, as frozen pydantic models, and the ways in: YAML files and dotted overrides.

An option is documented where it is declared. Sections that a run does not need stay at their defaults; an option that
the chosen method does not have is refused, never ignored.
"""

import difflib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_serializer,
    model_validator,
)
from pydantic import ValidationError as PydanticValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from sspo_cli.errors import UserError
from sspo_cli.objectives import resolve_options

DEFAULT_METHOD = "sspo"


class Options(BaseModel):
    """A section: unknown keys are errors, values cannot change after validation."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class ObjectiveOptions(Options):
    """The method and its own hyperparameters; those that it does not have are refused (see `sspo_cli.objectives`)."""

    method: str = Field(
        DEFAULT_METHOD, description="grpo, gspo, gmpo, sapo, sspo, or an aggregation: arithmetic, geometric, sequence"
    )
    gate: str | None = Field(
        None, description="clip, sigmoid, expsig, expatan, gumbel, atanlog, siglog, or module:function"
    )
    tau_neg: PositiveFloat | None = Field(None, description="temperature where the advantage is not positive")
    tau_pos: PositiveFloat | None = Field(None, description="temperature where the advantage is positive")
    eps_low: PositiveFloat | None = Field(None, description="clip: the ratio stays above 1 - eps_low where Â <= 0")
    eps_high: PositiveFloat | None = Field(None, description="clip: the ratio stays below 1 + eps_high where Â > 0")
    clip_space: Literal["ratio", "log"] | None = Field(
        None, description="gmpo: clip the ratio (eq. 7) or its logarithm"
    )
    allow_any_gate: bool = Field(False, description="run a gate of your own although it breaks the paper's conditions")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Replaces what is not given by the method's defaults, so that a run folder says what was run."""
        if not isinstance(values, dict) or not values.keys() <= cls.model_fields.keys():
            return values  # the field validation says what is wrong
        return resolve_options(**{"method": DEFAULT_METHOD, **values})

    @model_serializer
    def _only_what_applies(self) -> dict[str, Any]:
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


class TinyModelOptions(Options):
    """A Qwen2-shaped model built from scratch with the embedded character tokenizer; used where `model.name` is null."""

    hidden_size: PositiveInt = 64
    layers: PositiveInt = 3
    heads: PositiveInt = 2
    intermediate_size: PositiveInt = 192
    seed: int = Field(0, description="of the initial weights; not the run's seed, so that all seeds share a cold start")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"model.tiny.hidden_size = {self.hidden_size} cannot be split into model.tiny.heads = {self.heads} heads of "
                "even width"
            )
        return self


class LoraOptions(Options):
    """Low-rank adapters by peft instead of training every weight."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    targets: list[str] | Literal["all-linear"] = "all-linear"
    seed: int = Field(0, description="of the adapters' initial weights")


class ModelOptions(Options):
    name: str | None = Field(None, description="a Hugging Face causal LM by name or folder; null builds the tiny one")
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the computation; auto is bfloat16 where the GPU has it"
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    gradient_checkpointing: bool = False
    lora: LoraOptions | None = None
    tiny: TinyModelOptions = TinyModelOptions()


TaskName = Literal["arithmetic", "gsm8k", "deepmath", "dapo", "math500", "aime24", "aime25", "file"]


class TaskOptions(Options):
    """One data set. Several of them are mixed by weight."""

    name: TaskName = "arithmetic"
    path: str | None = Field(None, description="hub name or local folder or file instead of the published one")
    split: str = Field("train", description="train or test, as the data set names it")
    weight: PositiveFloat = 1.0
    limit: PositiveInt | None = Field(None, description="only the first so many problems")

    @property
    def label(self) -> str:
        """What results are filed under: the name, or a local file's stem."""
        return Path(self.path).stem if self.name == "file" and self.path else self.name


class RolloutOptions(Options):
    """The sampling phase. Truncated sampling (top-k, top-p) does not exist here: the objectives assume the full softmax."""

    engine: Literal["torch"] = "torch"
    prompts: PositiveInt = Field(16, description="P, prompts in a rollout batch")
    group_size: int = Field(8, ge=2, description="G, completions of each prompt")
    max_new_tokens: PositiveInt = 64
    temperature: PositiveFloat = Field(
        1.0, description="applied by the sampler and by the policy's log-probabilities alike"
    )
    max_rows: PositiveInt = Field(1024, description="completions sampled at a time")


class LearningOptions(Options):
    mu: PositiveInt = Field(2, description="disjoint minibatches of a rollout batch, one optimizer step each")
    epochs: PositiveInt = Field(1, description="passes over the same rollout batch")
    std: Literal["sample", "population", "none"] = Field(
        "sample", description="by which group advantages are divided (eq. 4)"
    )
    token_budget: PositiveInt = Field(16384, description="tokens in a micro-batch, prompts and padding included")
    mask_truncated: bool = Field(False, description="leave completions that hit the token limit out of the loss")
    importance_cap: PositiveFloat | None = Field(
        None, description="weigh each completion by its ratio to the sampler, at most this much; null: not at all"
    )


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerOptions(Options):
    learning_rate: PositiveFloat = 2e-4
    warmup_steps: NonNegativeInt = 10
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    max_bad_steps: PositiveInt = Field(5, description="steps in a row with a NaN loss or gradient before the run stops")


class ColdStartOptions(Options):
    """The supervised stage that teaches the format before RL; `steps: 0` leaves it out."""

    steps: NonNegativeInt = 700
    batch_size: PositiveInt = 48
    learning_rate: PositiveFloat = 3e-3
    warmup_steps: NonNegativeInt = 50
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    tasks: list[TaskOptions] = Field([], description="whose worked demonstrations to learn from; none: the run's own")
    checkpoint_every: PositiveInt = 200
    seed: int = Field(
        0, description="of the order of demonstrations; not the run's seed, so that all seeds share a cold start"
    )


class EvaluationOptions(Options):
    """Greedy Pass@1 during training, before the first step and after the last, and every so many between."""

    benchmarks: list[TaskOptions] = [TaskOptions(name="arithmetic", split="test", limit=512)]
    every: PositiveInt | None = 40
    max_new_tokens: PositiveInt | None = Field(None, description="null: as in the rollout")

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        labels = [benchmark.label for benchmark in self.benchmarks]
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise ValueError(f"evaluation.benchmarks names {twice[0]} twice; their results would overwrite each other")
        return self


class CheckpointOptions(Options):
    every: PositiveInt = 20
    keep: PositiveInt = Field(2, description="the last so many stay")


class WandbOptions(Options):
    mode: Literal["disabled", "offline", "online"] = "disabled"
    project: str = "sspo"
    entity: str | None = None
    group: str | None = Field(None, description="null: method and gate")
    tags: list[str] = []


class RunOptions(Options):
    """A whole run: what `config.json` in its folder holds."""

    seed: NonNegativeInt = 0
    steps: PositiveInt = Field(160, description="optimizer steps")
    threads: PositiveInt = Field(1, description="OpenMP threads of the process; one is fastest for tiny models")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1")
    prompt: str = Field("plain", description="name of the prompt template")
    answer_timeout: PositiveFloat = Field(3.0, description="seconds that the check of one answer may take")
    objective: ObjectiveOptions = ObjectiveOptions()
    model: ModelOptions = ModelOptions()
    tasks: list[TaskOptions] = Field([TaskOptions()], min_length=1)
    rollout: RolloutOptions = RolloutOptions()
    learning: LearningOptions = LearningOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    cold_start: ColdStartOptions = ColdStartOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    checkpoint: CheckpointOptions = CheckpointOptions()
    wandb: WandbOptions = WandbOptions()

    @model_validator(mode="after")
    def _minibatches_are_equal(self) -> Self:
        if self.rollout.prompts % self.learning.mu:
            raise ValueError(
                f"rollout.prompts = {self.rollout.prompts} cannot be split into learning.mu = {self.learning.mu} equal "
                "minibatches; choose a multiple of mu"
            )
        return self


# --- the ways in -----------------------------------------------------------------------------------------------------


def load_config(files: Sequence[Path] = (), overrides: Sequence[str] = ()) -> RunOptions:
    """YAML files, later ones over earlier ones, then `dotted.key=value` overrides, validated.

    Raises UserError for an unreadable file, a malformed override and every option that does not validate.
    """
    return validate(merge_config(files, overrides))


def merge_config(files: Sequence[Path], overrides: Sequence[str]) -> dict[str, Any]:
    """The same, as plain nested dictionaries before validation."""
    over: dict[str, Any] = {}
    for override in overrides:  # in whatever order they stand, all of them are meant together
        over = merge(over, _parse_override(override))
    return merge_layers([*map(read_yaml, files), over])


def merge_layers(layers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each over the ones before. An objective whose method changes is replaced, since another method has other options."""
    merged: dict[str, Any] = {}
    for layer in layers:
        objective, update = merged.get("objective"), layer.get("objective")
        if isinstance(objective, dict) and isinstance(update, dict):
            before = objective.get("method", DEFAULT_METHOD)
            if update.get("method", before) != before:
                merged = {**merged, "objective": {}}
        merged = merge(merged, layer)
    return merged


def merge(base: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, `update` over `base`; lists are replaced."""
    merged = dict(base)
    for key, value in update.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def nest(values: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested dictionaries."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        nested = merge(nested, value)
    return nested


def validate(values: dict[str, Any]) -> RunOptions:
    """Raises UserError that names every wrong option by its dotted path, with the nearest valid name for a misspelt one."""
    try:
        return RunOptions.model_validate(values)
    except PydanticValidationError as error:
        raise UserError("; ".join(explain(error, RunOptions))) from None


def read_yaml(file: Path) -> dict[str, Any]:
    """YAML 1.2, so `1e-6` is a number. Raises UserError for a missing, malformed or non-mapping file."""
    try:
        values = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"config file {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"config file {file} is not UTF-8 text") from None
    except YAMLError as error:
        where = (
            f", line {error.problem_mark.line + 1}" if isinstance(error, MarkedYAMLError) and error.problem_mark else ""
        )
        problem = error.problem if isinstance(error, MarkedYAMLError) else str(error)
        raise UserError(f"config file {file}{where} is not valid YAML: {problem}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"config file {file} must hold options as `key: value` lines, not a {type(values).__name__}")
    return values


def differences(left: RunOptions, right: RunOptions) -> list[str]:
    """One line for each option in which two configs differ: `optimizer.learning_rate: 0.001 -> 0.0005`."""
    a, b = dict(flatten(left.model_dump(mode="json"))), dict(flatten(right.model_dump(mode="json")))
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]


def to_yaml(options: RunOptions) -> str:
    """As a config file that gives the same run."""
    text = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.dump(options.model_dump(mode="json"), text)
    return text.getvalue()


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested dictionaries as pairs of dotted key and value."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"`-s {text}` is not of the form section.option=value, e.g. -s optimizer.learning_rate=1e-4")
    try:
        parsed = YAML(typ="safe", pure=True).load(value)
    except YAMLError:
        raise UserError(f"the value in `-s {text}` is not valid YAML; quote it") from None
    return nest({key: parsed})


def explain(error: PydanticValidationError, root: type[BaseModel]) -> Iterator[str]:
    """A sentence for each wrong option of a config of type `root`, by its dotted path."""
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            yield f"unknown option `{path}`{_did_you_mean(item['loc'], root)}"
        elif item["type"] == "value_error":  # raised by our own validators, a sentence already
            yield str(item["ctx"]["error"])
        else:
            yield f"`{path}` = {item['input']!r} is not valid: {item['msg'][0].lower()}{item['msg'][1:]}"


def _did_you_mean(location: tuple[str | int, ...], root: type[BaseModel]) -> str:
    """The same name in another section, else the nearest one in the same section, else the nearest anywhere."""
    section = root
    prefix: list[str] = []
    for part in location[:-1]:
        prefix.append(str(part))
        section = (_nested(section, part) or section) if isinstance(part, str) else section
    name = str(location[-1])
    here = {option: ".".join([*prefix, option]) for option in section.model_fields}
    everywhere: dict[str, str] = {}
    for option, path in _all_options(root):
        everywhere.setdefault(option, path)
    for known, cutoff in ((everywhere, 1.0), (here, 0.6), (everywhere, 0.75)):
        if near := difflib.get_close_matches(name, known, n=1, cutoff=cutoff):
            return f"; did you mean `{known[near[0]]}`?"
    return f"; the options here are {', '.join(here)}"


def _nested(section: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The section class that a field holds, directly, in a list or as an optional."""
    annotation = section.model_fields[name].annotation if name in section.model_fields else None
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _all_options(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name in section.model_fields:
        yield name, prefix + name
        if nested := _nested(section, name):
            yield from _all_options(nested, f"{prefix}{name}.")
