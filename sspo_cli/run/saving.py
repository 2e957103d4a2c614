"""Checkpoints of a run during training: when they are saved, and which are kept."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import torch

from sspo_cli import ranks
from sspo_cli.errors import UserError, border, command_line, quantity
from sspo_cli.interruption import Interrupted
from sspo_cli.policy.checkpoint import describe_last_good, is_whole, keep_last, latest_whole, save_checkpoint
from sspo_cli.run.state import Run, RunState
from sspo_cli.tracking.files import explain_os_errors, write_bytes_atomic

ROLLOUTS = "rollouts"  # name of a folder in the run folder


def save_if_due(run: Run) -> None:
    """Save the run every `checkpoint.every` steps, after the last step, and when the user asks to stop.

    A bad step, which has a non-finite loss or gradient and does not change the weights, is saved only if it is the last step or
    if the user asks to stop.

    Raises Interrupted after saving if the user asks to stop. Raises UserError, without saving, after `optimizer.max_bad_steps`
    consecutive bad steps, if the weights are not finite, or if the checkpoint cannot be written.
    """
    options, state = run.options, run.state
    done = state.step >= options.steps
    if state.bad_steps >= options.optimizer.max_bad_steps:
        raise UserError(
            f"the loss or its gradient was not finite in {quantity(state.bad_steps, 'consecutive step')}, at step {state.step}; "
            f"{describe_last_good(run.folder.checkpoints)}; {_with_lower_rate(run)}"
        )
    stopping = ranks.anywhere(run.interruption.requested)  # read once, because a signal may come at any time
    if done or stopping or (state.step % options.checkpoint.every == 0 and not state.bad_steps):
        save(run)
    if stopping and not done:
        raise Interrupted


def _with_lower_rate(run: Run) -> str:
    """Return a clause for an error message that suggests a lower learning rate after bad steps."""
    whole, _ = latest_whole(run.folder.checkpoints)
    rate = f"optimizer.learning_rate={run.options.optimizer.learning_rate / 2:g}"
    if whole is None:
        return f"start a new run with a lower learning rate, such as {rate}"
    command = command_line("sspo", "train", "--from", whole, "-s", rate, "--runs-dir", run.folder.path.parent)
    return f"{command} starts a new run from this checkpoint with half the learning rate"


def save(run: Run) -> None:
    """Save a checkpoint of the weights, the optimizer and the state, including the current rollout batch.

    If the current step already has a complete checkpoint, it is not written again. Old checkpoints are deleted.
    """
    folder = checkpoint_path(run)
    if not ranks.on_first(lambda: folder.exists() and is_whole(folder)):
        files = run.folder.record()  # flushed to the disk before the checkpoint gets its name
        save_checkpoint(folder, run.policy, {"run": run.state.state_dict(), "files": files}, run.optimizer)
    if ranks.is_first():
        shutil.rmtree(run.folder.path / ROLLOUTS, ignore_errors=True)
    drop_old_checkpoints(run)


@contextmanager
def saved_on_failure(run: Run) -> Iterator[None]:
    """Save the state of a run with environments if the block raises UserError, so that the run can be resumed."""
    try:
        yield
    except UserError:
        if run.stage.environments:
            save(run)
        raise


def keep_rollout(run: Run, sync_metrics: dict[str, float]) -> None:
    """Store the current rollout batch, if it consists of episodes, in the run folder until the next checkpoint.

    sync_metrics  metrics of the sync before this batch

    If the run is resumed from an earlier checkpoint, it cannot sample the same episodes again, because the results of programs
    can depend on the time.
    """
    if run.stage.environments:
        path, content = _rollout_path(run), BytesIO()
        torch.save({"run": run.state.state_dict(), "sync": sync_metrics}, content)

        def write() -> None:
            with explain_os_errors("create", path.parent):
                path.parent.mkdir(exist_ok=True)
            write_bytes_atomic(path, content.getvalue())

        ranks.on_first(write)


def take_kept_rollout(run: Run) -> dict[str, float]:
    """Restore the current rollout batch if `keep_rollout` stored it.

    Returns the metrics of the sync before this batch, or an empty dict if no batch was stored.
    """
    path = _rollout_path(run)
    if not run.stage.environments or not ranks.on_first(path.exists):
        return {}
    with border(f"the kept rollout batch {path} cannot be used; delete it to sample another one"):
        kept = torch.load(path, map_location="cpu", weights_only=True)
        state = RunState.from_state_dict(kept["run"])
    if (state.step, state.rollout) == (run.state.step, run.state.rollout):
        vars(run.state).update(vars(state))
        return kept["sync"]
    return {}


def _rollout_path(run: Run) -> Path:
    return run.folder.path / ROLLOUTS / f"rollout-{run.state.rollout}.pt"


def drop_old_checkpoints(run: Run) -> None:
    """Choose the best checkpoint by validation. Delete all checkpoints except the best and the last `checkpoint.keep`.

    After a bad step, no checkpoint is deleted, because further bad steps may show that only older checkpoints are usable.
    """
    best = run.folder.choose_best()
    if not run.state.bad_steps:
        ranks.on_first(lambda: keep_last(run.folder.checkpoints, run.options.checkpoint.keep, best))


def checkpoint_path(run: Run) -> Path:
    """Return the path of the checkpoint of the current step."""
    return run.folder.checkpoints / f"step-{run.state.step}"
