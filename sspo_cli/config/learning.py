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
        description=f"method: {', '.join(NAMED_METHODS)}; an aggregation: {', '.join(AGGREGATIONS)}; or your own as "
        "module:function",
    )
    gate: str | None = Field(
        None,
        description=f"gate; sspo takes {', '.join(SSPO_GATES)}, aggregations take any gate; or your own as module:function",
    )
    normalizer: Literal[tuple(NORMALIZERS)] | None = Field(  # type: ignore[valid-type]
        None,
        description="factor of each completion: 1/N (sequence), its share of the minibatch's tokens (token), its length over N "
        "times the token limit (constant), or its length over N (length); null: the method's own",
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
    """The method and its hyperparameters; options that the method does not have are refused."""

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


class LearningOptions(Options):
    """The learning phase: optimizer steps on a rollout batch."""

    mu: PositiveInt = Field(2, description="μ, disjoint minibatches of a rollout batch, with one optimizer step each")
    epochs: PositiveInt = Field(1, le=1000, description="passes over the same rollout batch")
    std: Literal["sample", "population", "none"] = Field(
        "sample", description="standard deviation that divides group advantages (eq. 4): with G - 1, with G, or none"
    )
    token_budget: PositiveInt = Field(16384, description="tokens of a micro-batch, including prompts and padding")
    mask_truncated: bool = Field(False, description="exclude completions that reach the token limit from the loss")
    kl: NonNegativeFloat = Field(
        0.0,
        description="β, weight of a penalty on the KL divergence from the policy that RL starts from (k3); the paper has none",
    )
    entropy_range: Annotated[tuple[PositiveFloat, PositiveFloat], Strict(False)] | None = Field(
        None,
        description="a token whose entropy has changed within a rollout batch by a factor outside of it, such as [0.95, 1.05], "
        "has no gradient; null: all have",
    )
    importance_cap: PositiveFloat | None = Field(
        None, description="multiply by the ratio of the policy to the sampler, up to this cap; null: do not"
    )
    importance_level: Literal["sequence", "token"] = Field(
        "sequence", description="level of this ratio: one for a completion, or one for the gradient of each token"
    )
    importance_beyond: Literal["truncate", "mask"] = Field(
        "truncate", description="a ratio beyond the cap becomes the cap (truncate) or 0 (mask)"
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

    learning_rate: PositiveFloat = Field(2e-4, description="the highest, after the warm-up")
    warmup_steps: NonNegativeInt = Field(10, description="steps in which the rate rises linearly from 0")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="of the rate after the warm-up: constant, or decaying to 0 at the last step"
    )
    betas: Annotated[tuple[Beta, Beta], Strict(False)] = Field(
        (0.9, 0.99), description="decay of the first and of the second moments"
    )
    weight_decay: NonNegativeFloat = Field(0.0, description="decoupled, of matrices only")
    max_grad_norm: PositiveFloat = Field(1.0, description="a gradient of a larger norm is scaled down to it")
    max_bad_steps: PositiveInt = Field(
        5, description="consecutive steps with a NaN loss or gradient before the run stops"
    )
    eight_bit: bool = Field(
        False,
        description="8-bit moments (torchao), except for small tensors; also in the cold start",
    )


class ColdStartOptions(Options):
    """The supervised stage before RL, which teaches the format; `steps: 0` skips it."""

    steps: NonNegativeInt = Field(700, description="optimizer steps; 0 skips the stage")
    batch_size: PositiveInt = Field(48, le=10**6, description="demonstrations in a step")
    learning_rate: PositiveFloat = Field(3e-3, description="the highest, after the warm-up")
    warmup_steps: NonNegativeInt = Field(50, description="steps in which the rate rises linearly from 0")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="of the rate after the warm-up: constant, or decaying to 0 at the last step"
    )
    weight_decay: NonNegativeFloat = Field(0.0, description="decoupled, of matrices only")
    max_grad_norm: PositiveFloat = Field(1.0, description="a gradient of a larger norm is scaled down to it")
    tasks: list[TaskOptions] = Field(
        [], description="tasks whose worked demonstrations are used; none: those of the run"
    )
    checkpoint_every: PositiveInt = Field(200, description="steps between two checkpoints of an unfinished stage")
    seed: TorchSeed = Field(
        0, description="seed of the order of demonstrations; not the run's seed, so that all seeds share a cold start"
    )
