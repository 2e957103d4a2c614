"""Options of the sampling phase: rollouts, the vLLM engine and episodes."""

from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from sspo_cli.config.base import Options, PositiveFloat, PositiveInt


class VllmOptions(Options):
    """The vLLM engine, which runs in this process, or in a server that is already running (`server`)."""

    # A GPU of 139 GiB has room for 0.3, next to 85 GiB of a 7B policy and its Adam state, but not for 0.4.
    gpu_memory_utilization: float = Field(
        0.3, gt=0, le=1, description="share of the GPU's memory for vLLM's weights and cache"
    )
    kv_cache_gib: PositiveFloat | None = Field(
        None, description="size of the key-value cache in GiB; null: the rest of gpu_memory_utilization, or 1 on a CPU"
    )
    enforce_eager: bool = Field(
        False, description="run without CUDA graphs, which starts sooner but samples more slowly; always true on a CPU"
    )
    sleep: bool = Field(True, description="free vLLM's memory while the learner learns")
    tolerance: PositiveFloat | None = Field(
        None,
        description="mean difference between the log-probabilities of vLLM and of the policy above which the run "
        "stops; null: 0.1, or 0.001 in float32",
    )
    server: str | None = Field(
        None,
        description="address of a running `vllm serve`, such as http://node7:8000; put credentials into the "
        "environment variable SSPO_VLLM_CREDENTIALS",
    )
    exchange: str | None = Field(
        None, description="folder through which the server receives the weights; both processes must see it"
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
            raise ValueError("rollout.vllm.exchange applies to rollout.vllm.server, which is not set; leave it out")
        return values

    @model_serializer(mode="wrap")
    def _only_what_applies(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        left_out = OF_THE_PROCESS if self.server else ("server", "exchange")
        return {name: value for name, value in write(self).items() if name not in left_out}


OF_THE_PROCESS = ("gpu_memory_utilization", "kv_cache_gib", "enforce_eager", "sleep")


class RolloutOptions(Options):
    """The sampling phase. Top-k and top-p are not available, because the objectives assume the full softmax."""

    engine: Literal["auto", "torch", "vllm"] = Field(
        "auto",
        description="sampler; auto: vllm if a named model runs on a GPU and vLLM is installed and supports it, "
        "otherwise torch",
    )
    prompts: int = Field(16, gt=0, le=10**6, description="P, number of prompts in a rollout batch")
    group_size: int = Field(8, ge=2, le=10**5, description="G, number of completions per prompt")
    max_new_tokens: int = Field(64, gt=0, le=10**7, description="token limit of a completion, or of a turn in episodes")
    temperature: PositiveFloat = Field(
        1.0, description="sampling temperature, which also applies to the policy's log-probabilities"
    )
    max_rows: PositiveInt = Field(1024, description="number of completions that are sampled at the same time")
    lag: int = Field(
        0,
        ge=0,
        le=100,
        description="number of rollout batches by which the sampler's weights are older than the policy, as with an "
        "asynchronous sampler; the ratios refer to these weights",
    )
    equal_groups: Literal["keep", "drop"] = Field(
        "keep",
        description="treatment of groups whose rewards are all equal, which have no gradient: keep them, or drop them "
        "and sample further prompts in their place",
    )
    equal_in: Literal["reward", "answer"] = Field(
        "reward",
        description="with equal_groups=drop: a group is dropped if all of its rewards are equal (reward), or all of "
        "its r_answer (answer)",
    )
    most_sampled: int = Field(
        4,
        ge=2,
        le=1000,
        description="with equal_groups=drop: at most this many times `prompts` prompts are sampled for a rollout "
        "batch; after that, groups of equal rewards fill it",
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
    """Limits of episodes, which are the completions of multi-turn tasks. `rollout.max_new_tokens` limits a turn."""

    turns: int = Field(5, gt=0, le=1000, description="k, largest number of turns of the policy")
    proposals: int = Field(2, gt=0, le=1000, description="largest number of turns that propose a solution")
    max_tokens: int = Field(
        4096,
        gt=0,
        le=10**7,
        description="token limit of an episode, including the text that the policy reads between its turns",
    )
    thinking: bool = Field(
        False, description="let the policy think before each turn, for chat templates that have this choice"
    )
    observation_chars: PositiveInt = Field(
        2000, description="number of characters of a program's output that the policy reads"
    )
    call_timeout: float = Field(30.0, gt=0, le=86_400, description="time limit of a program in a turn, in seconds")
    memory_mib: int = Field(512, gt=0, le=2**22, description="memory limit of a program in MiB")
    parallel: PositiveInt | None = Field(
        None, description="number of programs that run at the same time; null: the number of cores"
    )
