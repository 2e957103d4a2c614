"""The nouns that travel between the rooms. No torch here: tasks and rewards work on text."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Problem:
    """One item of a data set.

    id             unique within its task, stable over runs
    question       plain text or LaTeX, as the user turn of the prompt
    answer         the gold answer, bare: no `####`, no `\\boxed{}`, no tags
    task           name of the task that it came from
    demonstration  a worked completion for the cold start, tags included, or None
    environment    name of the environment that its episodes are played in; None: one turn, no calls
    setup          code that prepares an episode's variables, without the gold answer, or None
    check          name of the rule by which a proposal is compared with the gold answer (`environments.checks`)
    episode        a worked episode for the cold start: the policy's turns and the observations alternate; empty: none
    """

    id: str
    question: str
    answer: str
    task: str
    demonstration: str | None = None
    environment: str | None = None
    setup: str | None = None
    check: str = "math"
    episode: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem, rendered through the chat template.

    opening  what the template has already written of the completion (`<think>`, or nothing); rewards read it as part of
             the completion's text
    """

    problem: Problem
    text: str
    token_ids: list[int]
    opening: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer.

    token_ids          the tokens that the policy wrote, the end-of-sequence token included where it wrote one
    sampling_logprobs  by the sampler, at the sampling temperature, one for each token
    text               decoded, without special tokens
    truncated          cut at the token limit: no end-of-sequence token was written
    """

    token_ids: list[int]
    sampling_logprobs: list[float]
    text: str
    truncated: bool


@dataclass(frozen=True, slots=True)
class Reward:
    """r = r_answer + r_format, in [0, 2] (appendix A), unless a run has weights or a reward of its own.

    extracted  the text between the answer tags, or None
    status     how the answer check ended: "ok", "timeout", "error" or "no answer"
    own        value of the user's function; 0 without one
    weights    of answer, format and own in the sum
    """

    answer: float
    format: float
    extracted: str | None
    status: str
    own: float = 0.0
    weights: tuple[float, float, float] = (1.0, 1.0, 0.0)

    @property
    def total(self) -> float:
        answer, form, own = self.weights
        return answer * self.answer + form * self.format + own * self.own


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt with its G sampled completions and, once graded, one reward for each."""

    prompt: Prompt
    completions: list[Completion]
    rewards: list[Reward] = field(default_factory=list)
