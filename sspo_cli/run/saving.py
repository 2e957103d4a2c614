"""When a run is saved, and which checkpoints stay."""

from pathlib import Path

from sspo_cli.errors import UserError
from sspo_cli.interruption import Interrupted
from sspo_cli.policy.checkpoint import keep_last, save_checkpoint
from sspo_cli.run.state import Run


def save_if_due(run: Run) -> None:
    """Save the run every so many steps, after the last one, and before it ends early.

    Raises UserError after `optimizer.max_bad_steps` bad steps in a row, and Interrupted when asked to stop; the state is
    saved before. Raises UserError if the checkpoint cannot be written.
    """
    options, state = run.options, run.state
    done = state.step >= options.steps
    gave_up = state.bad_steps >= options.optimizer.max_bad_steps
    stopping = run.interruption.requested  # read once: a signal may come at any time
    if done or gave_up or stopping or state.step % options.checkpoint.every == 0:
        save(run)
    if gave_up:
        raise UserError(
            f"the loss or its gradient was not finite in {state.bad_steps} steps in a row, at step {state.step}; "
            "the state is saved; lower optimizer.learning_rate and start anew"
        )
    if stopping and not done:
        raise Interrupted


def save(run: Run) -> None:
    """Write a checkpoint of the weights, the optimizer and the state, the rest of the rollout batch included."""
    state = {"run": run.state.state_dict(), "optimizer": run.optimizer.state_dict()}
    save_checkpoint(checkpoint_path(run), run.policy, state)
    drop_old_checkpoints(run)


def drop_old_checkpoints(run: Run) -> None:
    """Delete all checkpoints except the last `checkpoint.keep` and the best by validation, which is chosen anew."""
    keep_last(run.folder.checkpoints, run.options.checkpoint.keep, run.folder.choose_best())


def checkpoint_path(run: Run) -> Path:
    """Name the checkpoint of the current step."""
    return run.folder.checkpoints / f"step-{run.state.step}"
