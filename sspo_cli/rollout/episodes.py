"""Episodes. An episode is a single completion in which the policy's turns and an environment's answers alternate."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Self

from sspo_cli import ranks
from sspo_cli.config import EpisodeOptions
from sspo_cli.environments.calculator import CalculatorEnvironment
from sspo_cli.environments.codeact import CodeActEnvironment
from sspo_cli.environments.environment import Environment
from sspo_cli.environments.episode import Episode, EpisodeLimits
from sspo_cli.environments.sandbox import Sandbox, SandboxLimits
from sspo_cli.errors import UserError
from sspo_cli.policy.dialogue import Dialogue
from sspo_cli.policy.model import Policy
from sspo_cli.rewards import AnswerChecker
from sspo_cli.rollout.engine import Engine, OnCompletion, Request, Sampling
from sspo_cli.seeds import derive_seed
from sspo_cli.tasks.prompts import THINKING, Template, reads_option, render, render_episode
from sspo_cli.types import Completion, Played, Problem, Prompt


@contextmanager
def open_environments(
    names: Collection[str], episode: EpisodeOptions, checker: AnswerChecker
) -> Iterator[dict[str, Environment]]:
    """Start the environments with these names and yield them by name.

    Enter the block before gold answers are loaded, so that programs run by `codeact` cannot read them. Raises UserError if
    `codeact` is requested but this machine cannot confine programs.
    """
    limits = EpisodeLimits(episode.turns, episode.proposals)
    with ExitStack() as stack:
        environments: dict[str, Environment] = {}
        if "calculator" in names:
            environments["calculator"] = CalculatorEnvironment(checker, limits)
        if "codeact" in names:
            sandbox_limits = SandboxLimits(
                call_timeout=episode.call_timeout,
                memory_mib=episode.memory_mib,
                output_chars=episode.observation_chars,
                parallel=episode.parallel,
            )
            sandbox = stack.enter_context(Sandbox(sandbox_limits))
            environments["codeact"] = CodeActEnvironment(sandbox, checker, limits)
        yield environments


@dataclass(frozen=True)
class Stage:
    """The environments in which episodes are played, and the policy's dialogue format.

    environments  environments by name; empty if there are no episodes
    dialogue      dialogue format of the policy's chat template; None if there are no environments
    """

    environments: Mapping[str, Environment]
    dialogue: Dialogue | None
    options: EpisodeOptions

    @classmethod
    def of(cls, environments: Mapping[str, Environment], episode: EpisodeOptions, policy: Policy) -> Self:
        """Create the stage for a policy.

        Raises UserError if the policy's chat template cannot render episodes, or does not have the choice `episode.thinking`.
        """
        if environments and episode.thinking and not reads_option(policy.tokenizer, THINKING):
            raise UserError(
                f"episode.thinking = true would be ignored: the chat template of {policy.tokenizer.name_or_path or 'the model'} "
                f"has no option {THINKING}; leave it out"
            )
        return cls(environments, Dialogue.of(policy, episode.thinking) if environments else None, episode)

    def render(self, problem: Problem, template: Template, tokenizer: object) -> Prompt:
        """Render a problem with the prompt template, or as the first turn of an episode if the problem has an environment.

        Raises UserError in the same cases as `tasks.prompts.render` and `render_episode`.
        """
        if problem.environment is None:
            return render(problem, template, tokenizer)
        system = self.environments[problem.environment].system_prompt
        return render_episode(problem, system, self.options.thinking, tokenizer)

    def longest(self, prompt: Prompt, max_new_tokens: int) -> int:
        """Return the maximum number of tokens of a completion of the prompt.

        max_new_tokens  maximum for a single turn; an episode has the maximum `max_tokens` of the episode options
        """
        return self.options.max_tokens if prompt.problem.environment else max_new_tokens


NO_STAGE = Stage({}, None, EpisodeOptions())


def sandbox_metrics(stage: Stage) -> dict[str, float]:
    """Return the metric `sandbox/failures`, the number of sandbox restarts on all ranks since the process started.

    Returns an empty dict if there is no sandbox.
    """
    environment = stage.environments.get("codeact")
    if not isinstance(environment, CodeActEnvironment):
        return {}
    return {"sandbox/failures": int(ranks.total(environment.sandbox_failures))}


def play(
    engine: Engine,
    prompts: Sequence[Prompt],
    group_size: int,
    sampling: Sampling,
    stage: Stage = NO_STAGE,
    on_completion: OnCompletion | None = None,
    time_environment: Callable[[], AbstractContextManager[None]] = nullcontext,
    order: Sequence[int] | None = None,
) -> list[list[Completion]]:
    """Sample `group_size` completions of each prompt, in the order of the prompts.

    Prompts of problems with an environment are played as episodes, in which `sampling.max_new_tokens` limits each turn.

    on_completion     called with each completion as soon as it is done
    time_environment  returns a context manager that is entered while an environment works
    order             index of each prompt among all prompts that share the seed; None: 0, 1, and so on

    Random numbers depend only on a prompt's index and, in an episode, also on the index in the group and the turn. They do
    not depend on the other prompts.

    Raises UserError if an environment fails; the interpreters of unfinished episodes are closed first.
    """
    groups: list[list[Completion]] = [[] for _ in prompts]
    for name in dict.fromkeys(prompt.problem.environment for prompt in prompts):
        places = [place for place, prompt in enumerate(prompts) if prompt.problem.environment == name]
        seeds = [sampling.seed_of(place if order is None else order[place]) for place in places]
        chosen = [prompts[place] for place in places]

        def report(index: int, member: int, completion: Completion, places: Sequence[int] = places) -> None:
            if on_completion:
                on_completion(places[index], member, completion)

        if name is None:
            request = Request([prompt.token_ids for prompt in chosen], group_size, sampling, seeds)
            completed = engine.generate(request, report)
        else:
            acts = _Acts(engine, stage, stage.environments[name], sampling, time_environment)
            completed = acts.play(chosen, group_size, seeds, report)
        for place, group in zip(places, completed, strict=True):
            groups[place] = group
    return groups


@dataclass(eq=False)
class _Player:
    """An episode in progress, with the tokens that follow its prompt."""

    prompt: Prompt
    seed: int
    episode: Episode
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    read: list[bool] = field(default_factory=list)

    def write(self, turn: Completion) -> None:
        self.token_ids += turn.token_ids
        self.logprobs += turn.sampling_logprobs
        self.read += [False] * len(turn.token_ids)

    def observe(self, bridge: list[int]) -> None:
        self.token_ids += bridge
        self.logprobs += [0.0] * len(bridge)
        self.read += [True] * len(bridge)


@dataclass(frozen=True)
class _Acts:
    """Plays all live episodes of one environment together, turn by turn."""

    engine: Engine
    stage: Stage
    environment: Environment
    sampling: Sampling
    time_environment: Callable[[], AbstractContextManager[None]]

    def play(
        self, prompts: Sequence[Prompt], group_size: int, seeds: Sequence[int], on_completion: OnCompletion
    ) -> list[list[Completion]]:
        """Play `group_size` episodes of each prompt; `seeds` has the random seed of each prompt."""
        live = [
            _Player(
                prompt,
                seed := derive_seed(seed_of_prompt, "episode", member),
                self.environment.open(prompt.problem, seed),
            )
            for prompt, seed_of_prompt in zip(prompts, seeds, strict=True)
            for member in range(group_size)
        ]
        by_row = dict(enumerate(live))
        rows = {player: row for row, player in by_row.items()}
        completions: dict[int, Completion] = {}
        try:
            first = self._sample([prompt.token_ids for prompt in prompts], group_size, seeds)
            turns = [turn for group in first for turn in group]
            while live:
                played, live = live, self._step(live, turns)
                for row in sorted({rows[player] for player in played} - {rows[player] for player in live}):
                    completions[row] = self._completion(by_row[row])
                    on_completion(row // group_size, row % group_size, completions[row])
                contexts = [player.prompt.token_ids + player.token_ids for player in live]
                later = [derive_seed(player.seed, "turn", len(player.episode.turns)) for player in live]
                turns = [turn for (turn,) in self._sample(contexts, 1, later)] if live else []
        finally:
            self.environment.close([player.episode for player in live])
        return [
            [completions[index * group_size + member] for member in range(group_size)] for index in range(len(prompts))
        ]

    def _sample(self, contexts: list[list[int]], group_size: int, seeds: Sequence[int]) -> list[list[Completion]]:
        sampling = replace(self.sampling, stop=self.environment.stop)
        return self.engine.generate(Request(contexts, group_size, sampling, seeds))

    def _step(self, live: Sequence[_Player], turns: Sequence[Completion]) -> list[_Player]:
        """Add a turn to each episode, let the environment answer, and return the episodes that continue."""
        dialogue = self.stage.dialogue
        assert dialogue is not None, "a stage with environments has a dialogue"
        openings = [dialogue.opening if player.token_ids else player.prompt.opening for player in live]
        texts = [opening + turn.text for opening, turn in zip(openings, turns, strict=True)]
        for player, turn in zip(live, turns, strict=True):
            player.write(turn)
        with self.time_environment():
            moves = [(player.episode, text) for player, text in zip(live, texts, strict=True)]
            answers = self.environment.step(moves)
        going_on = []
        for player, turn, answer in zip(live, turns, answers, strict=True):
            if answer is None:
                continue
            bridge = dialogue.bridge(turn.token_ids, answer)
            if len(player.token_ids) + len(bridge) + self.sampling.max_new_tokens > self.stage.options.max_tokens:
                self.environment.close([player.episode])
                continue
            player.observe(bridge)
            going_on.append(player)
        return going_on

    def _completion(self, player: _Player) -> Completion:
        assert self.stage.dialogue is not None
        dialogue, outcome = self.stage.dialogue, player.episode.outcome
        written = player.token_ids[:-1] if player.token_ids[-1] in dialogue.end_ids else player.token_ids
        return Completion(
            token_ids=player.token_ids,
            sampling_logprobs=player.logprobs,
            text=dialogue.tokenizer.decode(written, skip_special_tokens=False),
            truncated=outcome.ended == "tokens",
            read=player.read,
            episode=Played(tuple(player.episode.turns), outcome, player.episode.reward),
        )
