"""Episodes: the record of turns, from which the outcome and the reward are computed."""

from dataclasses import dataclass, field
from typing import Any

from sspo_cli.environments.actions import CALL, PROPOSAL
from sspo_cli.types import Outcome, Problem, Reward, Turn


@dataclass(frozen=True, slots=True)
class EpisodeLimits:
    """The maximum numbers of turns and of proposals of an episode."""

    turns: int = 5
    proposals: int = 2


@dataclass(slots=True, eq=False)
class Episode:
    """An attempt at one problem.

    seed     seed of the random numbers of the episode's programs
    session  state that the environment attaches, such as an interpreter
    """

    problem: Problem
    seed: int
    limits: EpisodeLimits
    turns: list[Turn] = field(default_factory=list)
    session: Any = None

    @property
    def turns_left(self) -> int:
        return self.limits.turns - len(self.turns)

    @property
    def proposals_left(self) -> int:
        return self.limits.proposals - self._count(PROPOSAL)

    @property
    def solved(self) -> bool:
        return bool(self.turns) and self.turns[-1].status == "solved"

    @property
    def over(self) -> bool:
        return self.solved or self.turns_left <= 0 or self.proposals_left <= 0

    @property
    def outcome(self) -> Outcome:
        """Summary of an episode that is over or has no tokens left for another turn."""
        calls = [turn for turn in self.turns if turn.action == CALL]
        if self.solved:
            ended = "solved"
        elif self.proposals_left <= 0:
            ended = "proposals"
        else:
            ended = "turns" if self.turns_left <= 0 else "tokens"
        return Outcome(
            solved=self.solved,
            proposals=self._count(PROPOSAL),
            turns=len(self.turns),
            calls=len(calls),
            timeouts=sum(turn.status == "timeout" for turn in calls),
            crashes=sum(turn.status in ("memory", "crashed") for turn in calls),
            ended=ended,
        )

    @property
    def reward(self) -> Reward:
        """Reward of the episode, computed from the policy's own turns and not from the text that it read.

        r_answer  1 if a proposal was accepted, otherwise 0
        r_format  share of turns that have exactly one action and end with it; 0 if there was no proposal
        """
        proposals = [turn for turn in self.turns if turn.action == PROPOSAL]
        if not proposals:
            return Reward(0.0, 0.0, None, "no answer")
        share = sum(turn.well_formed for turn in self.turns) / len(self.turns)
        last = proposals[-1]
        status = last.status if last.status in ("timeout", "error") else "ok"
        return Reward(float(self.solved), share, last.content.strip(), status)

    @property
    def cells(self) -> list[str]:
        """Code of the turns so far that defines the interpreter's current variables, in order."""
        cells: list[str] = []
        for turn in self.turns:
            if turn.variables_lost:
                cells.clear()
            elif turn.action == CALL:
                cells.append(turn.content)
        return cells

    def _count(self, action: str) -> int:
        return sum(turn.action == action for turn in self.turns)
