"""Sampling of rollout batches. The option `rollout.equal_groups` determines what happens to groups with equal rewards."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import islice

from sspo_cli import ranks
from sspo_cli.config import RolloutOptions
from sspo_cli.evaluation.sampling import grade_groups
from sspo_cli.rewards import extract_answer
from sspo_cli.rollout.engine import Sampling
from sspo_cli.rollout.episodes import play
from sspo_cli.rollout.torch_engine import whole_weights
from sspo_cli.run.clock import Clock
from sspo_cli.run.state import Run
from sspo_cli.run.telemetry import Telemetry
from sspo_cli.seeds import derive_seed
from sspo_cli.types import Completion, Group, Prompt


def sample_batch(
    run: Run, upcoming: Iterator[Prompt], clock: Clock, telemetry: Telemetry
) -> tuple[list[Group], list[Group]]:
    """Sample and grade a group of completions for each of the next prompts in `upcoming`.

    Returns the groups of the rollout batch, and all groups that were sampled for the batch, including dropped groups.
    """
    graded: list[Group] = []

    def sample(count: int) -> list[Group]:
        prompts, first = list(islice(upcoming, count)), len(graded)
        mine = ranks.share(len(prompts))
        graded.extend(ranks.gather(lambda: _sample(run, prompts[mine], first + mine.start, clock, telemetry)))
        return graded[-count:]

    groups = fill(run.options.rollout, sample)
    run.engine.sleep()
    return groups, graded


def fill(options: RolloutOptions, sample: Callable[[int], list[Group]]) -> list[Group]:
    """Return the groups of a rollout batch.

    sample  function that samples and grades groups for the next `count` prompts

    If `equal_groups` is `drop`, groups with equal rewards, which have no gradient, are replaced with groups for additional
    prompts, as in DAPO (arXiv 2503.14476). At most `most_sampled` times the batch's number of prompts are sampled. If there are
    still too few groups with differing rewards, the batch is filled with groups that have equal rewards.
    """
    groups = sample(options.prompts)
    if options.equal_groups == "keep":
        return groups
    left = (options.most_sampled - 1) * options.prompts
    differing = [group for group in groups if has_differing_rewards(group, options)]
    equal = [group for group in groups if not has_differing_rewards(group, options)]
    while (missing := options.prompts - len(differing)) and left:
        more = sample(min(missing, left))
        left -= len(more)
        differing += [group for group in more if has_differing_rewards(group, options)]
        equal += [group for group in more if not has_differing_rewards(group, options)]
    return [*differing, *equal[:missing]]


def has_differing_rewards(group: Group, options: RolloutOptions) -> bool:
    """Report whether the rewards of a group differ. The option `equal_in` selects the compared reward: total or r_answer."""
    return len({reward.total if options.equal_in == "reward" else reward.answer for reward in group.rewards}) > 1


def _sample(run: Run, prompts: list[Prompt], first: int, clock: Clock, telemetry: Telemetry) -> list[Group]:
    """Sample and grade a group for each prompt. `first` is the index of the first prompt within the rollout batch."""
    options = run.options
    rollout = options.rollout

    def begin_check(index: int, _: int, completion: Completion) -> None:
        """Start the check of an answer while sampling continues, so that its verdict is available early."""
        if completion.episode is not None:  # the environment has already computed the reward of an episode
            return
        text, gold = prompts[index].opening + completion.text, prompts[index].problem.answer
        run.checker.submit(extract_answer(text, [gold]), gold)

    with ExitStack() as weights, clock.phase("sampling"):
        with clock.phase("sync"):
            weights.enter_context(whole_weights(run.engine))
        seed = derive_seed(options.seed, "sampling", run.state.rollout)
        sampling = Sampling(rollout.temperature, rollout.max_new_tokens, seed, first)
        in_environment = partial(clock.phase, "environment")
        completions = play(run.engine, prompts, rollout.group_size, sampling, run.stage, begin_check, in_environment)
        telemetry.sampled(sum(completion.own_tokens for group in completions for completion in group))
    with clock.phase("grading"):
        return grade_groups(prompts, completions, run.checker, options.reward.scoring)
