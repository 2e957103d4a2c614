"""Detection of runs that learn nothing: rollout batches without a gradient are reported and may stop the run."""

from collections.abc import Sequence

from sspo_cli.errors import UserError, command_line
from sspo_cli.policy.batch import Batch
from sspo_cli.run.saving import save
from sspo_cli.run.state import Run
from sspo_cli.tracking.dead import MOST_ALIKE, Sampled, defects, reasons
from sspo_cli.types import Group


def check_learning(run: Run, groups: Sequence[Group]) -> None:
    """Count consecutive rollout batches without a gradient, and report them or stop the run.

    - If the first batch of a run has a gradient, defects that all of its completions have are reported nevertheless.
    - If no batch has had a gradient yet, the first batch is reported. After MOST_ALIKE batches, the state is saved and
      UserError is raised, unless `keep_going` is set.
    - If an earlier batch had a gradient, MOST_ALIKE consecutive batches without a gradient are reported. The run may have
      nothing left to learn.
    """
    state, batch, options = run.state, run.state.batch, run.options
    assert batch is not None, "a rollout batch was just sampled"
    sampled = count(groups, batch)
    asked = options.silent_template, options.rollout.max_new_tokens
    if has_gradient(batch):
        state.learned, state.alike = True, 0
        for defect in defects(sampled, *asked) if state.rollout == 0 else ():
            run.tracker.note(f"health: {defect}")
        return
    state.alike += 1
    likely = "; ".join(reasons(sampled, *asked))
    if state.learned and state.alike == MOST_ALIKE:
        run.tracker.note(
            f"health: no group of the last {MOST_ALIKE} rollout batches has rewards that differ, so nothing is learned; the "
            f"run learned before and may be done: {likely}"
        )
    elif not state.learned and state.alike == 1:
        run.tracker.note(
            f"health: no group of rollout batch {state.rollout + 1} has rewards that differ, so nothing is learned from it: "
            f"{likely}"
        )
    elif not state.learned and state.alike >= MOST_ALIKE and not run.keep_going:
        save(run)
        again = command_line(*run.folder.resume_command, "--keep-going")
        raise UserError(
            f"nothing is learned: in {state.alike} rollout batches no group has had rewards that differ; {likely}; the state is "
            f"saved, and {again} continues it anyway"
        )


def has_gradient(batch: Batch) -> bool:
    """Report whether any completion has a non-zero advantage and an unmasked token."""
    return bool(((batch.advantages != 0) & batch.mask.any(dim=1)).any())


def count(groups: Sequence[Group], batch: Batch) -> Sampled:
    """Count the completions of a rollout batch, in total and with each property in `Sampled`."""
    pairs = [pair for group in groups for pair in zip(group.completions, group.rewards, strict=True)]
    return Sampled(
        count=len(pairs),
        untagged=sum(
            reward.extracted is None if completion.episode is None else not completion.episode.outcome.proposals
            for completion, reward in pairs
        ),
        truncated=sum(completion.truncated for completion, _ in pairs),
        unformed=sum(reward.format == 0 and reward.weights[1] > 0 for _, reward in pairs),
        right=sum(reward.answer == 1 for _, reward in pairs),
        timeouts=sum(reward.status == "timeout" for _, reward in pairs),
        alike=sum(
            len(group.completions)
            for group in groups
            if len({tuple(completion.token_ids) for completion in group.completions}) == 1
        ),
        masked=int((~batch.mask.any(dim=1)).sum()),
        episodes=sum(completion.episode is not None for completion, _ in pairs),
    )
