"""Data types that the packages exchange. This module imports no torch, because tasks and rewards work on text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """One item of a data set.

    id             unique within its task, stable between runs
    question       plain text or LaTeX, the user turn of the prompt
    answer         the bare gold answer: no `####`, no `\\boxed{}`, no tags
    task           name of its task
    demonstration  a worked completion for the cold start, tags included, or None
    environment    name of the environment for its episodes; None: a single turn without calls
    setup          code that prepares an episode's variables, without the gold answer, or None
    check          name of the rule by which a proposal is compared with the gold answer (`environments.checks`)
    episode        a worked episode for the cold start: the policy's turns and the observations alternate; empty: none
    part           part of its benchmark that is also reported separately, such as MINT's `gsm8k`; empty: none
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
    part: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem, rendered through the chat template.

    opening  start of the completion that the chat template has already written (`<think>` or nothing); rewards read it as
             part of the completion
    """

    problem: Problem
    text: str
    token_ids: list[int]
    opening: str = ""


@dataclass(frozen=True, slots=True)
class Reward:
    """r = r_answer + r_format, in [0, 2] (appendix A), unless a run has other weights or its own reward function.

    extracted  the text between the answer tags, or None
    status     how the answer check ended: "ok", "timeout", "error" or "no answer"
    own        value of the user's function; 0 if there is none
    weights    weights of answer, format and own in the sum
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
class Turn:
    """One turn of the policy in an episode, and the environment's answer. All values can be stored as JSON.

    text            the policy's text, beginning with the text (`<think>`) that the chat template may have written
    action          "call", "proposal" or "nothing"
    content         the code or the solution
    well_formed     the turn has exactly one action and ends with it
    status          for a call "ok", "timeout", "memory" or "crashed"; for a proposal "solved", "wrong" or, if the check failed,
                    "timeout" or "error"; otherwise "nothing"
    answer          text that the policy reads next; None if the episode is over
    variables_lost  the interpreter has ended, so that the next cell has no variables of earlier cells
    """

    text: str
    action: str
    content: str
    well_formed: bool
    status: str
    answer: str | None
    variables_lost: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of an episode.

    solved     a proposal was accepted, number `proposals`
    proposals  number of proposals, accepted or not
    turns      number of turns of the policy
    calls      number of turns that ran code
    timeouts   number of calls that ran out of time
    crashes    number of calls that ended their interpreter in another way, including out of memory
    ended      reason of the end: "solved", "proposals", "turns", or "tokens" (the completion is truncated)
    """

    solved: bool
    proposals: int
    turns: int
    calls: int
    timeouts: int
    crashes: int
    ended: str


@dataclass(frozen=True, slots=True)
class Played:
    """A finished episode: its turns, its outcome and its reward."""

    turns: tuple[Turn, ...]
    outcome: Outcome
    reward: Reward


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer: all tokens after the prompt. For an episode, the policy's turns and the text that it read between.

    token_ids          tokens, including an end-of-sequence token that the policy wrote
    sampling_logprobs  log-probability of each token by the sampler at the sampling temperature; 0 for tokens that were read
    text               decoded text, without the last end-of-sequence token
    truncated          True if the completion ended at the token limit
    read               for an episode, True for each token that the policy read; empty if it wrote all of them
    episode            the episode; None for a single turn
    routes             experts that the sampler chose for each token in L layers: a numpy array [T, L], int32, in which a
                       number stands for a set of experts; None if the sampler does not report them
    """

    token_ids: list[int]
    sampling_logprobs: list[float]
    text: str
    truncated: bool
    read: Sequence[bool] = ()
    episode: Played | None = None
    routes: Any = field(default=None, compare=False)

    @property
    def own_tokens(self) -> int:
        """|y_i|, the number of tokens that the policy wrote."""
        return len(self.token_ids) - sum(self.read)


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt with its G sampled completions and, once graded, one reward for each."""

    prompt: Prompt
    completions: list[Completion]
    rewards: list[Reward] = field(default_factory=list)
