"""Options of learning: the objective, the optimizer steps on a rollout batch, the optimizer, the cold start."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, Strict, create_model, model_serializer, model_validator

from sspo_cli.config.base import NonNegativeFloat, NonNegativeInt, Options, PositiveFloat, PositiveInt, TorchSeed
from sspo_cli.config.data import TaskOptions
from sspo_cli.objectives import DEFAULT_METHOD, METHODS, NORMALIZERS, OPTIONS, SSPO_GATES, resolve_options

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


# A field for each option that the gates declare. See `sspo_cli/objectives/gates.py`.
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
            return values  # the validation of the fields reports the error
        if values.get("method", DEFAULT_METHOD) is None:
            raise ValueError(f"objective.method = null is not a method; choose from {', '.join(METHODS)}")
        return resolve_options(**{"method": DEFAULT_METHOD, **values})

    @model_serializer
    def _only_what_applies(self) -> dict[str, Any]:
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


class LearningOptions(Options):
    """The learning phase: optimizer steps on a rollout batch."""

    mu: PositiveInt = Field(
        2, description="μ, number of disjoint minibatches of a rollout batch, with one optimizer step on each"
    )
    epochs: int = Field(1, gt=0, le=1000, description="number of passes over the same rollout batch")
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
                f"learning.entropy_range = {list(self.entropy_range)} excludes 1, an unchanged entropy; give a number "
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
        description="store the optimizer state in 8 bits (torchao), except for small tensors; also in the cold start",
    )


class ColdStartOptions(Options):
    """The cold start: supervised training on demonstrations before RL, which teaches the format."""

    steps: NonNegativeInt = Field(700, description="number of optimizer steps; 0 skips the cold start")
    batch_size: int = Field(48, gt=0, le=10**6, description="number of demonstrations per step")
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
