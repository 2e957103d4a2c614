"""The protocol of environments, and their common part: reading turns, checking proposals, recording the episode."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from sspo_cli.environments.actions import CALL, NOTHING, PROPOSAL, STOP, Action, read_action
from sspo_cli.environments.checks import check_proposals
from sspo_cli.environments.episode import Episode, EpisodeLimits
from sspo_cli.environments.result import Result
from sspo_cli.errors import UserError
from sspo_cli.rewards import AnswerChecker
from sspo_cli.types import Problem, Turn


class Environment(Protocol):
    """Answers the policy's turns for `rollout.episodes.play`. Text in, text out."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a turn of the policy and are part of it."""
        ...

    @property
    def system_prompt(self) -> str | None:
        """System turn of the prompts, which states the episode's limits; None for no system turn."""
        ...

    def open(self, problem: Problem, seed: int, turns: Sequence[Turn] = ()) -> Episode:
        """Begin an episode, or continue one from the record of its turns."""
        ...

    def step(self, moves: Sequence[tuple[Episode, str]]) -> list[str | None]:
        """Take one turn in each episode; return the text that the policy reads next, or None if the episode is over.

        moves  (episode, text of the turn)
        """
        ...

    def close(self, episodes: Iterable[Episode]) -> None:
        """Free the resources of episodes. When an episode is over, `step` has already freed its resources."""
        ...


class ActingEnvironment:
    """An environment in which turns run code or propose solutions. Subclasses run the code and write the answers."""

    stop = STOP
    system_prompt: str | None = None

    def __init__(self, checker: AnswerChecker, limits: EpisodeLimits) -> None:
        self._checker, self.limits = checker, limits

    def open(self, problem: Problem, seed: int, turns: Sequence[Turn] = ()) -> Episode:
        """Begin an episode; if `turns` are given, continue the episode that they record.

        Recorded answers are kept, even if the same code would behave differently now. The next call restores the variables.
        Raises UserError for a record with more turns or proposals than the limits allow.
        """
        episode = Episode(problem, seed, self.limits, list(turns))
        if episode.turns_left < 0 or episode.proposals_left < 0:
            raise UserError(
                f"the recorded episode of problem {problem.id} has {episode.outcome.turns} turns and "
                f"{episode.outcome.proposals} proposals, more than episode.turns={self.limits.turns} and "
                f"episode.proposals={self.limits.proposals} allow; resume the run with its original episode options"
            )
        self._begin(episode)
        return episode

    def step(self, moves: Sequence[tuple[Episode, str]]) -> list[str | None]:
        """Take one turn in each episode of `moves`; proposals are checked in parallel, and code runs in parallel.

        Returns for each episode the text that the policy reads next, or None if the episode is over. If an exception is
        raised, no episode has taken its turn.
        """
        actions = [read_action(text) for _, text in moves]
        calls = [i for i, action in enumerate(actions) if action.kind == CALL]
        proposals = [i for i, action in enumerate(actions) if action.kind == PROPOSAL]
        verdicts = check_proposals([(actions[i].content, moves[i][0].problem) for i in proposals], self._checker)
        statuses = {
            i: "solved" if verdict.equal else "wrong" if verdict.status in ("ok", "no answer") else verdict.status
            for i, verdict in zip(proposals, verdicts, strict=True)
        }
        ran = self._run([(moves[i][0], actions[i].content) for i in calls])
        results = dict(zip(calls, ran, strict=True))
        answers = []
        for i, (episode, text) in enumerate(moves):
            self._record(episode, text, actions[i], results.get(i), statuses.get(i, NOTHING))
            answers.append(episode.turns[-1].answer)
        self.close(episode for episode, _ in moves if episode.over)
        return answers

    def close(self, episodes: Iterable[Episode]) -> None:
        """Free the resources of episodes; by default, there is nothing to free."""

    def _record(self, episode: Episode, text: str, action: Action, result: Result | None, status: str) -> None:
        lost = result is not None and result.variables_lost
        status = result.status if result else status
        turn = Turn(text, action.kind, action.content, action.well_formed, status, answer=None, variables_lost=lost)
        episode.turns.append(turn)
        if not episode.over:
            answer = self._answer(episode, turn, result.text if result else "")
            episode.turns[-1] = replace(turn, answer=answer)

    def _begin(self, episode: Episode) -> None:
        """Prepare a new or continued episode."""

    def _run(self, calls: Sequence[tuple[Episode, str]]) -> list[Result]:
        """Run code in episodes, given as (episode, code), and return the results in order."""
        raise NotImplementedError

    def _answer(self, episode: Episode, turn: Turn, output: str) -> str:
        """Return the text that the policy reads after this turn; not called after the last turn.

        output  output of the turn's code, or an empty string
        """
        raise NotImplementedError
