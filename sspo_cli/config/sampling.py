"""Options of the sampling phase: rollouts, the vLLM engine and episodes."""

from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from sspo_cli.config.base import NonNegativeInt, Options, PositiveFloat, PositiveInt


class VllmOptions(Options):
    """The vLLM engine: in this process, or with `server` in a separate process that is already running."""

    # A GPU of 139 GiB has room for 0.3 in addition to a 7B policy and its Adam, 85 GiB; not for 0.4.
    gpu_memory_utilization: float = Field(0.3, gt=0, le=1, description="share of the GPU for vLLM's weights and cache")
    kv_cache_gib: PositiveFloat | None = Field(
        None, description="size of the cache of keys and values; null: the rest of the share above, on a CPU 1"
    )
    enforce_eager: bool = Field(
        False, description="run without CUDA graphs: starts sooner, samples slower; always so on a CPU"
    )
    sleep: bool = Field(True, description="free vLLM's memory while the learner learns")
    tolerance: PositiveFloat | None = Field(
        None,
        description="mean difference from the policy's log-probabilities that stops the run; null: 0.1, or 0.001 in float32",
    )
    server: str | None = Field(
        None,
        description="address of a running `vllm serve`, such as http://node7:8000; put credentials into SSPO_VLLM_CREDENTIALS",
    )
    exchange: str | None = Field(
        None, description="folder through which the server gets the weights; both processes must see it"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_one_kind(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if values.get("server"):
            if not values.get("exchange"):
                raise ValueError("rollout.vllm.server needs rollout.vllm.exchange, a folder that the server can read")
            if own := [name for name in OF_THE_PROCESS if name in values]:
                raise ValueError(
                    f"rollout.vllm.{own[0]} does not apply with rollout.vllm.server; give it to `vllm serve`"
                )
        elif values.get("exchange"):
            raise ValueError("rollout.vllm.exchange is for rollout.vllm.server, which is not given")
        return values

    @model_serializer(mode="wrap")
    def _only_what_applies(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        left_out = OF_THE_PROCESS if self.server else ("server", "exchange")
        return {name: value for name, value in write(self).items() if name not in left_out}


OF_THE_PROCESS = ("gpu_memory_utilization", "kv_cache_gib", "enforce_eager", "sleep")


class RolloutOptions(Options):
    """The sampling phase. There is no truncated sampling (top-k, top-p): the objectives assume the full softmax."""

    engine: Literal["auto", "torch", "vllm"] = Field(
        "auto",
        description="sampler; auto: vllm for a named model on a GPU if vLLM is installed and supports it, otherwise torch",
    )
    prompts: PositiveInt = Field(16, le=10**6, description="P, prompts of a rollout batch")
    group_size: int = Field(8, ge=2, le=10**5, description="G, completions of each prompt")
    max_new_tokens: PositiveInt = Field(64, le=10**7, description="token limit of a completion; in episodes, of a turn")
    temperature: PositiveFloat = Field(
        1.0, description="temperature of the sampler and of the policy's log-probabilities"
    )
    max_rows: PositiveInt = Field(1024, description="completions sampled at the same time")
    lag: NonNegativeInt = Field(
        0,
        le=100,
        description="sample with the weights of so many rollout batches ago, as an asynchronous sampler does; ratios refer to "
        "these weights",
    )
    equal_groups: Literal["keep", "drop"] = Field(
        "keep",
        description="groups whose rewards are all equal, which have no gradient; drop: sample further prompts in their place",
    )
    equal_in: Literal["reward", "answer"] = Field(
        "reward", description="drop: what must differ within a group, the whole reward or r_answer alone"
    )
    most_sampled: int = Field(
        4,
        ge=2,
        le=1000,
        description="drop: limit of the prompts sampled for a rollout batch, in multiples of `prompts`; then equal ones fill it",
    )
    vllm: VllmOptions | None = Field(None, description="options of vLLM; null: their defaults")

    @model_validator(mode="after")
    def _options_of_dropping(self) -> Self:
        if self.equal_groups == "keep" and (self.equal_in, self.most_sampled) != ("reward", 4):
            raise ValueError(
                "rollout.equal_in and rollout.most_sampled apply to dropped groups, but rollout.equal_groups = keep; set it to "
                "drop, or leave them out"
            )
        return self

    @model_validator(mode="after")
    def _options_of_the_engine(self) -> Self:
        if self.vllm is not None and self.engine == "torch":
            raise ValueError(
                "rollout.vllm is given, but rollout.engine = torch; set rollout.engine=vllm or leave it out"
            )
        return self


class EpisodeOptions(Options):
    """Episodes of several turns, for tasks with an environment. `rollout.max_new_tokens` limits a turn."""

    turns: PositiveInt = Field(5, le=1000, description="k, most turns of the policy")
    proposals: PositiveInt = Field(2, le=1000, description="most turns that may propose a solution")
    max_tokens: PositiveInt = Field(
        4096,
        le=10**7,
        description="token limit of an episode, including the text that the policy reads between its turns",
    )
    thinking: bool = Field(
        False, description="let the policy think before a turn, for chat templates that have this choice"
    )
    observation_chars: PositiveInt = Field(2000, description="characters of a program's output that the policy reads")
    call_timeout: PositiveFloat = Field(30.0, le=86_400, description="seconds that a program may run in a turn")
    memory_mib: PositiveInt = Field(512, le=2**22, description="memory of a program")
    parallel: PositiveInt | None = Field(None, description="programs that run at the same time; null: number of cores")
