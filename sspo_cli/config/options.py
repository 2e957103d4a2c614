"""All options of a run as frozen pydantic models; `files.py` reads them from YAML files and dotted overrides.

An option is documented in its declaration. Sections that a run does not need stay at their defaults. An option that the
chosen method does not have is refused and never ignored.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    Strict,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)

from sspo_cli.config.base import NonNegativeFloat, NonNegativeInt, Options, PositiveFloat, PositiveInt, Seed, TorchSeed
from sspo_cli.config.data import (
    ENVIRONMENTS,
    BenchmarkOptions,
    ChatOptions,
    RewardOptions,
    TaskOptions,
    task_from_text,
)
from sspo_cli.config.named import named_model_defaults
from sspo_cli.config.sampling import EpisodeOptions, RolloutOptions
from sspo_cli.objectives import DEFAULT_METHOD, METHODS, NORMALIZERS, OPTIONS, SSPO_GATES, resolve_options
from sspo_cli.tasks.prompts import Template

AGGREGATIONS = [name for name, method in METHODS.items() if method.default is None]
NAMED_METHODS = [name for name in METHODS if name not in AGGREGATIONS]


class MethodOptions(Options):
    """The method and its gate."""

    method: str = Field(
        DEFAULT_METHOD,
        description=f"a method: {', '.join(NAMED_METHODS)}; an aggregation for any gate: {', '.join(AGGREGATIONS)}; "
        "or your own method as module:function",
    )
    gate: str | None = Field(
        None,
        description=f"gate, a function of the token ratio: with sspo {', '.join(SSPO_GATES)}; "
        "with an aggregation any gate; or your own gate as module:function",
    )
    normalizer: Literal[tuple(NORMALIZERS)] | None = Field(  # type: ignore[valid-type]
        None,
        description="factor of each completion in the loss of a minibatch with N completions: 1/N (sequence), its "
        "share of the tokens (token), its length / (N · token limit) (constant), or its length / N "
        "(length); null: the default of the method",
    )


# A field for each option that the gates declare, see `sspo_cli/objectives/gates.py`.
GATE_FIELDS: dict[str, Any] = {
    name: (
        (Literal[option.choices] if option.choices else PositiveFloat) | None,
        Field(None, description=option.description),
    )
    for name, option in OPTIONS.items()
}
GateOptions: Any = create_model("GateOptions", __base__=MethodOptions, **GATE_FIELDS)


class ObjectiveOptions(GateOptions):
    """The method and its hyperparameters. An option that the method does not have is rejected."""

    allow_any_gate: bool = Field(False, description="accept your own gate even if it breaks the paper's conditions")
    allow_any_method: bool = Field(False, description="accept your own method even if it breaks the paper's conditions")

    @property
    def words(self) -> list[str]:
        """Names of the method and of its gate, if it has one."""
        return [word for word in (self.method, self.gate) if word is not None]

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Fill in the method's defaults, so that the run folder records what was run."""
        if not isinstance(values, dict) or not values.keys() <= cls.model_fields.keys():
            return values  # the field validation says what is wrong
        if values.get("method", DEFAULT_METHOD) is None:
            raise ValueError(f"objective.method = null names no method; choose from {', '.join(METHODS)}")
        return resolve_options(**{"method": DEFAULT_METHOD, **values})

    @model_serializer
    def _only_what_applies(self) -> dict[str, Any]:
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


class TinyModelOptions(Options):
    """A Qwen2-shaped model with random weights and the embedded character tokenizer, used if `model.name` is null."""

    hidden_size: PositiveInt = Field(64, le=2**16, description="width of the residual stream")
    layers: PositiveInt = Field(3, le=1000, description="number of transformer layers")
    heads: PositiveInt = Field(2, le=2**12, description="number of attention heads per layer")
    intermediate_size: PositiveInt = Field(192, le=2**20, description="width of the feed-forward layers")
    seed: TorchSeed = Field(
        0,
        description="seed of the initial weights; independent of the run's seed, so that runs with different seeds "
        "share a cold start",
    )
    action_tags: bool = Field(
        False,
        description="encode `<execute>`, `<solution>` and their closing tags as single tokens, for multi-turn tasks",
    )
    context: PositiveInt = Field(
        1024,
        le=2**20,
        description="largest number of tokens of a prompt and its completion together; does not affect the weights",
    )

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"model.tiny.hidden_size = {self.hidden_size} cannot be split into model.tiny.heads = {self.heads} heads of "
                "even width"
            )
        return self


class LoraOptions(Options):
    """Low-rank adapters (peft), which are trained instead of all weights."""

    rank: PositiveInt = Field(16, le=2**16, description="rank of the adapters")
    alpha: PositiveFloat = Field(32.0, description="scale: the update is multiplied by alpha / rank")
    targets: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="names of the layers that get an adapter, or all linear layers"
    )
    seed: TorchSeed = Field(0, description="seed of the adapters' initial weights")


class ModelOptions(Options):
    """The model: a Hugging Face model (`name`), or a tiny model that is built from scratch."""

    name: str | None = Field(
        None, description="name or folder of a Hugging Face causal language model; null: the tiny model"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a model on the hub; null: its main branch")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="dtype of the computation; auto: bfloat16 if the GPU supports it, otherwise float32"
    )
    weights: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="dtype of fully trained weights and their gradients; bfloat16 needs half the memory, and requires "
        "optimizer.eight_bit",
    )
    kernels: Literal["torch", "liger", "compiled"] = Field(
        "torch",
        description="kernels of the layers: torch, liger (fused kernels, on a GPU) or compiled (torch.compile, for "
        "learning); the results are equal up to rounding",
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa",
        description="implementation of attention: sdpa (fused, part of torch), eager (plain) or flash_attention_2 (on "
        "a GPU)",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass, which needs less memory and more time"
    )
    lora: LoraOptions | None = Field(None, description="options of low-rank adapters; null: train all weights")
    tiny: TinyModelOptions = Field(TinyModelOptions(), description="the model if name is null")

    @model_validator(mode="after")
    def _weights_fit_the_computation(self) -> Self:
        if self.weights == "bfloat16" and self.dtype == "float32":
            raise ValueError(
                "model.weights = bfloat16 cannot be computed with in model.dtype = float32; leave that out"
            )
        if self.weights == "bfloat16" and self.lora:
            raise ValueError(
                "model.weights does not apply with model.lora: the frozen weights have model.dtype, the adapters are float32"
            )
        return self


class LearningOptions(Options):
    """The learning phase: optimizer steps on a rollout batch."""

    mu: PositiveInt = Field(
        2, description="μ, number of disjoint minibatches of a rollout batch, with one optimizer step on each"
    )
    epochs: PositiveInt = Field(1, le=1000, description="number of passes over the same rollout batch")
    std: Literal["sample", "population", "none"] = Field(
        "sample",
        description="divisor of the advantages within a group (eq. 4): the standard deviation with G - 1 (sample) or "
        "with G (population), or none",
    )
    token_budget: PositiveInt = Field(
        16384, description="largest number of tokens in a micro-batch, including prompts and padding"
    )
    mask_truncated: bool = Field(False, description="exclude completions that reach the token limit from the loss")
    kl: NonNegativeFloat = Field(
        0.0,
        description="β, weight of a penalty on the KL divergence from the policy at the start of RL (estimator k3); "
        "the paper has no penalty",
    )
    entropy_range: Annotated[tuple[PositiveFloat, PositiveFloat], Strict(False)] | None = Field(
        None,
        description="a token has no gradient if its entropy, divided by its entropy at rollout time, is outside this "
        "range, such as [0.95, 1.05]; null: there is no such condition",
    )
    importance_cap: PositiveFloat | None = Field(
        None,
        description="correct for differences between the trainer's and the sampler's probabilities by their ratio, "
        "which is limited to this cap; null: no correction",
    )
    importance_level: Literal["sequence", "token"] = Field(
        "sequence",
        description="with importance_cap: the ratio is that of a completion and multiplies its advantage (sequence), "
        "or that of a token and multiplies its gradient (token)",
    )
    importance_beyond: Literal["truncate", "mask"] = Field(
        "truncate", description="with importance_cap: a ratio above the cap becomes the cap (truncate) or 0 (mask)"
    )

    @model_validator(mode="after")
    def _an_unchanged_entropy_is_in_the_range(self) -> Self:
        if self.entropy_range and not self.entropy_range[0] < 1 < self.entropy_range[1]:
            raise ValueError(
                f"learning.entropy_range = {list(self.entropy_range)} leaves out an entropy that has not changed; give a number "
                "below 1 and one above it"
            )
        return self

    @model_validator(mode="after")
    def _options_of_the_cap(self) -> Self:
        if self.importance_cap is None and (self.importance_level, self.importance_beyond) != ("sequence", "truncate"):
            raise ValueError(
                "learning.importance_level and learning.importance_beyond determine how learning.importance_cap is applied, "
                "which is null; set it, for example learning.importance_cap=2"
            )
        return self


Beta = Annotated[float, Field(ge=0, lt=1)]
LARGEST_BETA2_IN_BFLOAT16 = 0.995  # larger decays are lost in rounding to steps of 1/256 or 1/128


class OptimizerOptions(Options):
    """AdamW and its learning rate."""

    learning_rate: PositiveFloat = Field(2e-4, description="highest learning rate, which is reached after the warm-up")
    warmup_steps: NonNegativeInt = Field(
        10, description="number of steps in which the learning rate rises linearly from 0"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear",
        description="learning rate after the warm-up: constant, or decaying to 0 at the last step (linear, cosine)",
    )
    betas: Annotated[tuple[Beta, Beta], Strict(False)] = Field(
        (0.9, 0.99), description="decay rates of the first and the second moments"
    )
    weight_decay: NonNegativeFloat = Field(0.0, description="decoupled weight decay, of matrices only")
    max_grad_norm: PositiveFloat = Field(
        1.0, description="largest norm of the gradient; a larger gradient is scaled down to this norm"
    )
    max_bad_steps: PositiveInt = Field(
        5,
        description="number of consecutive steps with a loss or a gradient that is not finite after which the run "
        "stops",
    )
    eight_bit: bool = Field(
        False,
        description="store the moments in 8 bits (torchao), except those of small tensors; also in the cold start",
    )


class ColdStartOptions(Options):
    """The cold start: supervised training on demonstrations before RL, which teaches the format."""

    steps: NonNegativeInt = Field(700, description="number of optimizer steps; 0 skips the cold start")
    batch_size: PositiveInt = Field(48, le=10**6, description="number of demonstrations per step")
    learning_rate: PositiveFloat = Field(3e-3, description="highest learning rate, which is reached after the warm-up")
    warmup_steps: NonNegativeInt = Field(
        50, description="number of steps in which the learning rate rises linearly from 0"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear",
        description="learning rate after the warm-up: constant, or decaying to 0 at the last step (linear, cosine)",
    )
    weight_decay: NonNegativeFloat = Field(0.0, description="decoupled weight decay, of matrices only")
    max_grad_norm: PositiveFloat = Field(
        1.0, description="largest norm of the gradient; a larger gradient is scaled down to this norm"
    )
    tasks: list[TaskOptions] = Field([], description="tasks whose demonstrations are used; empty: the tasks of the run")
    checkpoint_every: PositiveInt = Field(
        200, description="number of steps between two checkpoints of an unfinished cold start"
    )
    seed: TorchSeed = Field(
        0,
        description="seed of the order of demonstrations; independent of the run's seed, so that runs with different "
        "seeds share a cold start",
    )


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
    max_new_tokens: PositiveInt | None = Field(
        None,
        le=10**7,
        description="token limit of a completion, for benchmarks without their own limit; null: rollout.max_new_tokens",
    )
    samples: PositiveInt = Field(
        1, le=10**5, description="number of completions per problem; Pass@1 is their mean (avg@n)"
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
            return benchmarks  # the field validation says what is wrong
        given = [task_from_text(task, "test") if isinstance(task, str) else task for task in benchmarks]
        return [{"split": "test", **task} if isinstance(task, dict) else task for task in given]

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        labels = [benchmark.label for benchmark in self.benchmarks]
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise ValueError(f"evaluation.benchmarks names {twice[0]} twice; their results would overwrite each other")
        if VALIDATION in labels:
            raise ValueError(
                f"evaluation.benchmarks names one {VALIDATION}, which stands for problems held out of the training tasks; "
                "rename the file"
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
    optimizer: bool = Field(False, description="also continue with the optimizer's moments, which otherwise start at 0")
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
    threads: PositiveInt = Field(
        1, le=1024, description="number of OpenMP threads of the process; 1 is fastest for tiny models"
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
    answer_timeout: PositiveFloat = Field(
        3.0, le=86_400, description="time limit for the check of an answer, in seconds of processor time"
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
                f"fork.optimizer continues with moments that cold_start.steps = {self.cold_start.steps} would make stale; "
                "set cold_start.steps=0, or leave out the optimizer"
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
                    f"episode is given, but no task is played in episodes; those are {', '.join(ENVIRONMENTS)}"
                )
            return self
        if self.reward != RewardOptions() and (played := [t.name for t in self.tasks if t.name in ENVIRONMENTS]):
            raise ValueError(
                f"reward is of single turns, but tasks has {played[0]}, whose episodes have the reward of their environment; "
                "leave reward out"
            )
        if self.episode is None:  # filled in, so that the run folder records it
            object.__setattr__(self, "episode", EpisodeOptions())
        longest = max(self.rollout.max_new_tokens, self.evaluation.max_new_tokens or 0)
        if self.episode and self.episode.max_tokens < longest:
            raise ValueError(
                f"episode.max_tokens = {self.episode.max_tokens} is less than a single turn may have, max_new_tokens = {longest}"
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
                "model.weights = bfloat16 needs optimizer.eight_bit = true, which rounds them stochastically: rounded to the "
                "nearest, most updates would be lost"
            )
        if self.model.weights == "bfloat16" and self.optimizer.betas[1] > LARGEST_BETA2_IN_BFLOAT16:
            raise ValueError(
                f"optimizer.betas = {list(self.optimizer.betas)}: with model.weights = bfloat16 some second moments are bfloat16 "
                f"too, and above {LARGEST_BETA2_IN_BFLOAT16} they would never fall; use 0.99"
            )
        return self
