"""All options of a run as frozen pydantic models; `files.py` reads them from YAML files and dotted overrides.

An option is documented in its declaration. Sections that a run does not need stay at their defaults. An option that the
chosen method does not have is refused and never ignored.
"""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sspo_cli.config.base import NonNegativeFloat, NonNegativeInt, Options, PositiveInt, Seed
from sspo_cli.config.data import (
    ENVIRONMENTS,
    BenchmarkOptions,
    ChatOptions,
    RewardOptions,
    TaskOptions,
    task_from_text,
)
from sspo_cli.config.learning import (
    LARGEST_BETA2_IN_BFLOAT16,
    ColdStartOptions,
    LearningOptions,
    ObjectiveOptions,
    OptimizerOptions,
)
from sspo_cli.config.model import ModelOptions
from sspo_cli.config.named import named_model_defaults
from sspo_cli.config.sampling import EpisodeOptions, RolloutOptions
from sspo_cli.tasks.prompts import Template

VALIDATION = "validation"  # name of the held-out training problems in results


class EvaluationOptions(Options):
    """Pass@1 during training: before the first step, every `every` steps, and after the last; greedy as in the paper."""

    benchmarks: list[BenchmarkOptions] = Field(
        [BenchmarkOptions(name="arithmetic", split="test", limit=512)], description="data sets to measure on"
    )
    every: PositiveInt | None = Field(
        40,
        description="number of optimizer steps between two evaluations; null: only before the first step and after "
        "the last",
    )
    max_new_tokens: int | None = Field(
        None,
        gt=0,
        le=10**7,
        description="token limit of a completion, for benchmarks without their own limit; null: rollout.max_new_tokens",
    )
    samples: int = Field(
        1, gt=0, le=10**5, description="number of completions per problem; Pass@1 is their mean (avg@n)"
    )
    temperature: NonNegativeFloat = Field(0.0, description="sampling temperature; 0: greedy")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="sample only from the smallest set of most probable tokens with at least this total probability",
    )
    top_k: PositiveInt | None = Field(
        None, description="sample only from this many most probable tokens; null: from all"
    )
    validation: NonNegativeInt = Field(
        0, description="number of problems held out of the training tasks, to choose and keep the best checkpoint"
    )
    decontaminate: bool = Field(
        True,
        description="exclude training problems whose normalized text is also in a benchmark; they are reported in any "
        "case",
    )

    def limits(self, rollout: RolloutOptions) -> list[int]:
        """Return the token limits of the validation problems, if there are any, and of each benchmark."""
        of_all = self.max_new_tokens or rollout.max_new_tokens
        limits = [benchmark.max_new_tokens or of_all for benchmark in self.benchmarks]
        return [of_all, *limits] if self.validation else limits

    @field_validator("benchmarks", mode="before")
    @classmethod
    def _test_split_by_default(cls, benchmarks: Any) -> Any:
        if not isinstance(benchmarks, list):
            return benchmarks  # the validation of the fields reports the error
        given = [task_from_text(task, "test") if isinstance(task, str) else task for task in benchmarks]
        return [{"split": "test", **task} if isinstance(task, dict) else task for task in given]

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        labels = [benchmark.label for benchmark in self.benchmarks]
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise ValueError(
                f"evaluation.benchmarks lists {twice[0]} twice, so the results would overwrite each other; leave one out"
            )
        if VALIDATION in labels:
            raise ValueError(
                f"evaluation.benchmarks lists a benchmark called {VALIDATION}, the name of the problems held out of the training "
                "tasks; rename the file"
            )
        return self

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.samples > 1 and not self.temperature:
            raise ValueError(
                f"evaluation.samples = {self.samples} greedy completions would all be the same; set evaluation.temperature, "
                "such as 0.6"
            )
        if not self.temperature and (self.top_p < 1 or self.top_k):
            raise ValueError(
                "evaluation.top_p and evaluation.top_k do not apply to greedy completions; set evaluation.temperature, e.g. 0.6"
            )
        return self


class CheckpointOptions(Options):
    """Checkpoints of a run."""

    every: PositiveInt = Field(20, description="number of optimizer steps between two checkpoints")
    keep: PositiveInt = Field(
        2, description="number of latest checkpoints that are kept; the best checkpoint by validation is also kept"
    )


class WandbOptions(Options):
    """Logging of a run to Weights & Biases."""

    mode: Literal["disabled", "offline", "online"] = Field(
        "disabled",
        description="disabled, online (uploads during the run) or offline (needs no login, and prints the command "
        "that uploads the run)",
    )
    project: str = Field("sspo", description="project of the run")
    entity: str | None = Field(None, description="user or team; null: the default of the login")
    group: str | None = Field(None, description="group of the run; null: method and gate")
    tags: list[str] = Field([], description="tags of the run")


class ForkOptions(Options):
    """The checkpoint of another run from which this run starts, instead of the model's own weights."""

    run: str = Field(min_length=1, description="name or folder of the other run")
    step: NonNegativeInt | None = Field(None, description="step of the other run's checkpoint; null: the last")
    optimizer: bool = Field(False, description="also load the optimizer state, which otherwise starts at 0")
    fingerprint: str | None = Field(
        None,
        description="fingerprint (hash) of the checkpoint, which is filled in at the start; a checkpoint with another "
        "fingerprint is rejected",
    )


class RunOptions(Options):
    """All options of a run, as recorded in `config.json`."""

    seed: Seed = Field(
        0, description="seed of the order of problems, of the sampling and of the split into minibatches"
    )
    steps: PositiveInt = Field(160, description="number of optimizer steps")
    threads: int = Field(
        1, gt=0, le=1024, description="number of OpenMP threads of the process; 1 is fastest for tiny models"
    )
    device: str = Field(
        "auto",
        description="device of the model: auto (a GPU if there is one), cpu, cuda, or a certain GPU such as cuda:1",
    )
    prompt: str = Field(
        "plain",
        description="prompt template: plain (the question alone) or think-answer (asks for `<think>` and `<answer>` "
        "tags)",
    )
    answer_timeout: float = Field(
        3.0, gt=0, le=86_400, description="time limit for the check of an answer, in seconds of processor time"
    )
    chat: ChatOptions = ChatOptions()
    objective: ObjectiveOptions = ObjectiveOptions()
    model: ModelOptions = ModelOptions()
    tasks: list[TaskOptions] = Field([TaskOptions()], min_length=1, description="data sets to train on")
    rollout: RolloutOptions = RolloutOptions()
    reward: RewardOptions = RewardOptions()
    episode: EpisodeOptions | None = Field(None, description="limits of episodes; null if no task is multi-turn")
    learning: LearningOptions = LearningOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    cold_start: ColdStartOptions = ColdStartOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    checkpoint: CheckpointOptions = CheckpointOptions()
    wandb: WandbOptions = WandbOptions()
    fork: ForkOptions | None = Field(None, description="start from a checkpoint of another run, as `--from` does")

    @model_validator(mode="before")
    @classmethod
    def _fork_needs_no_cold_start(cls, values: Any) -> Any:
        if not (isinstance(values, dict) and values.get("fork")):
            return values
        cold_start = values.get("cold_start", {})
        return {**values, "cold_start": {"steps": 0, **cold_start}} if isinstance(cold_start, dict) else values

    @model_validator(mode="after")
    def _moments_are_of_the_weights(self) -> Self:
        if self.fork and self.fork.optimizer and self.cold_start.steps:
            raise ValueError(
                f"fork.optimizer loads an optimizer state that cold_start.steps = {self.cold_start.steps} would make stale; "
                "set cold_start.steps=0, or leave out fork.optimizer"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_a_named_model(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        filled = dict(values)
        for name, value in named_model_defaults(values).items():
            section, _, option = name.rpartition(".")
            filled.update({section: {**filled.get(section, {}), option: value}} if section else {option: value})
        return filled

    @property
    def template(self) -> Template:
        """Return the template that renders problems. Raises UserError for an unknown prompt template."""
        return Template.of(self.prompt, self.chat.system, self.chat.user, self.chat.template_kwargs)

    @property
    def silent_template(self) -> str | None:
        """Return the name of the prompt template if it does not ask a named model for tags, otherwise None.

        Always returns None for the embedded model, which learns the tags in its cold start and not from the prompt.
        """
        return None if self.model.name is None or self.template.asks_for_tags else self.prompt

    @model_validator(mode="after")
    def _prompt_template_exists(self) -> Self:
        Template.of(self.prompt)
        return self

    @property
    def environments(self) -> set[str]:
        """Names of the environments that the tasks need."""
        tasks = [*self.tasks, *self.evaluation.benchmarks, *self.cold_start.tasks]
        return {ENVIRONMENTS[task.name] for task in tasks if task.name in ENVIRONMENTS}

    @model_validator(mode="after")
    def _episodes_have_an_environment(self) -> Self:
        if not self.environments:
            if self.episode:
                raise ValueError(
                    f"episode is given, but no task has episodes; the tasks with episodes are {', '.join(ENVIRONMENTS)}"
                )
            return self
        if self.reward != RewardOptions() and (played := [t.name for t in self.tasks if t.name in ENVIRONMENTS]):
            raise ValueError(
                f"reward applies to single turns, but tasks has {played[0]}, whose episodes are rewarded by their environment; "
                "leave out reward"
            )
        if self.episode is None:  # filled in, so that the run folder records it
            object.__setattr__(self, "episode", EpisodeOptions())
        longest = max(self.rollout.max_new_tokens, self.evaluation.max_new_tokens or 0)
        if self.episode and self.episode.max_tokens < longest:
            raise ValueError(
                f"episode.max_tokens = {self.episode.max_tokens} is less than the limit of a turn, max_new_tokens = {longest}; "
                "raise episode.max_tokens"
            )
        return self

    @model_validator(mode="after")
    def _minibatches_are_equal(self) -> Self:
        if self.rollout.prompts % self.learning.mu:
            raise ValueError(
                f"rollout.prompts = {self.rollout.prompts} cannot be split into learning.mu = {self.learning.mu} equal "
                "minibatches; choose a multiple of mu"
            )
        return self

    @model_validator(mode="after")
    def _bfloat16_weights_are_rounded_stochastically(self) -> Self:
        if self.model.weights == "bfloat16" and not self.optimizer.eight_bit:
            raise ValueError(
                "model.weights = bfloat16 needs optimizer.eight_bit = true, which rounds them stochastically, because "
                "rounding to the nearest would lose most updates"
            )
        if self.model.weights == "bfloat16" and self.optimizer.betas[1] > LARGEST_BETA2_IN_BFLOAT16:
            raise ValueError(
                f"optimizer.betas = {list(self.optimizer.betas)}: with model.weights = bfloat16, some second moments are stored "
                f"in bfloat16 and would never decrease if the second beta exceeds {LARGEST_BETA2_IN_BFLOAT16}; use 0.99"
            )
        return self
