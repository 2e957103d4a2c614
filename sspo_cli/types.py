"""The nouns that travel between the rooms. No torch here: tasks and rewards work on text."""

from collections.abc import Sequence
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
    part           the part of its benchmark that is reported on its own as well, such as MINT's `gsm8k`; empty: none
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

    opening  what the template has already written of the completion (`<think>`, or nothing); rewards read it as part of
             the completion's text
    """

    problem: Problem
    text: str
    token_ids: list[int]
    opening: str = ""


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
class Turn:
    """One turn of the policy in an episode, and the environment's answer. Plain values, so it is stored as JSON.

    text            the policy's own, with what the chat template opened of it
    action          "call", "proposal" or "nothing"
    content         the code or the solution
    well_formed     exactly one action, at the end
    status          of a call "ok", "timeout", "memory" or "crashed"; of a proposal "solved", "wrong" or, where the check did
                    not end, "timeout" or "error"; else "nothing"
    answer          what the policy reads next; None: the episode is over
    variables_lost  the interpreter was ended, and its next cell finds no variables of earlier ones
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
    """What became of an episode.

    solved     a proposal was accepted; `proposals` says which
    proposals  of the policy, accepted or not
    turns      of the policy
    calls      of them that ran code
    timeouts   calls that ran out of time
    crashes    calls that ended their interpreter by other means, memory included
    ended      "solved", "proposals", "turns", or "tokens" (out of tokens: the completion is truncated)
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
    """What an episode was, turn by turn, and how its environment has judged it."""

    turns: tuple[Turn, ...]
    outcome: Outcome
    reward: Reward


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer: all tokens after the prompt. Of an episode, the turns of the policy and what it read between them.

    token_ids          an end-of-sequence token included where the policy wrote one
    sampling_logprobs  by the sampler, at the sampling temperature, one for each token; 0 for those that the policy read
    text               decoded, without the last end-of-sequence token
    truncated          cut at the token limit
    read               of an episode, for each token, whether the policy read it; empty: it wrote all of them
    episode            the episode; None: a single turn
    """

    token_ids: list[int]
    sampling_logprobs: list[float]
    text: str
    truncated: bool
    read: Sequence[bool] = ()
    episode: Played | None = None

    @property
    def own_tokens(self) -> int:
        """|y_i|: the tokens that the policy wrote."""
        return len(self.token_ids) - sum(self.read)


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt with its G sampled completions and, once graded, one reward for each."""

    prompt: Prompt
    completions: list[Completion]
    rewards: list[Reward] = field(default_factory=list)
