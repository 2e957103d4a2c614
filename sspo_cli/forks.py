"""Start of a run from the checkpoint of another run: find the checkpoint, check that it fits, describe it for config.json."""

import json
from pathlib import Path
from typing import Any

import torch
import xxhash

from sspo_cli.config import ForkOptions, Given, RunOptions, fixed_differences, flatten, merge_config
from sspo_cli.errors import UserError, command_line
from sspo_cli.named_runs import checkpoint_of, find_run, step_of, whole
from sspo_cli.policy.checkpoint import MANIFEST, checkpoint_folders, holds_optimizer, load_optimizer
from sspo_cli.policy.model import Policy
from sspo_cli.tracking.run_folder import RunFolder

# Model options that set how the model is computed; the other model options determine its weights.
HOW_COMPUTED = ("model.dtype", "model.weights", "model.kernels", "model.attention", "model.gradient_checkpointing")
DIGITS = 12


def options_to_resume(path: Path, given: Given) -> RunOptions:
    """Apply the given options on top of the options that a run was started with.

    Raises UserError if a given option changes what the run computes, and not only how. The message then has a command that
    forks the run. Also raises UserError if the run is finished and `steps` is not raised.
    """
    folder = RunFolder.open(path)
    recorded = folder.config
    options = given.over(recorded)
    if fixed := fixed_differences(recorded, options):
        runs_dir = [] if path.parent == Path("runs") else ["--runs-dir", str(path.parent)]
        fork = command_line("sspo", "train", "--from", folder.name_in_commands, *given.words, *runs_dir)
        instead = f"{fork} starts a new run from its last checkpoint" if checkpoint_folders(folder.checkpoints) else ""
        raise UserError(
            f"run {path} was started with other options ({'; '.join(fixed)}), but a resumed run may only change how it is "
            f"computed and raise its steps; {instead or 'it has no checkpoint yet, so start a new run with these options'}"
        )
    check_resumable(folder, options)
    return options


def check_resumable(folder: RunFolder, options: RunOptions) -> None:
    """Raise UserError if the run is finished, unless `options` raises its number of steps."""
    if folder.status.get("state") == "finished" and options.steps == folder.config.steps:
        more = command_line(*folder.resume_command, "-s", f"steps={2 * options.steps}")
        measure = command_line("sspo", "eval", folder.name_in_commands)
        raise UserError(f"run {folder.path} is finished; {more} extends it, {measure} measures it")


def load_fork(source: str, with_optimizer: bool, given: Given, runs_dir: Path) -> RunOptions:
    """Return the options for `--from RUN[@STEP]`: RUN's options without the cold start, overridden by the given options.

    Raises UserError in the same cases as `load_config` and `resolve_fork`, and if the given options name a checkpoint, too.
    """
    named = find_run(source, runs_dir)
    _refuse_second_fork(source, with_optimizer, given)
    if named is None:
        raise UserError(
            f"--from {source}: there is no run {source.rpartition('@')[0] or source} in {runs_dir}; for a model outside "
            "a run, use -s model.name=MODEL"
        )
    folder = RunFolder.open(named.folder)
    checkpoint = named.checkpoint or checkpoint_of(folder, "last")
    recorded = folder.config
    cold_start = recorded.cold_start.model_copy(update={"steps": 0})
    fork = ForkOptions(run=str(named.folder), step=step_of(checkpoint), optimizer=with_optimizer)
    base = recorded.model_copy(update={"cold_start": cold_start, "fork": fork})
    return resolve_fork(given.over(base), runs_dir)


def _refuse_second_fork(source: str, with_optimizer: bool, given: Given) -> None:
    """Raise UserError if the given options contradict `--from` and `--with-optimizer`."""
    fork = merge_config(given.files, given.overrides).get("fork")
    if not isinstance(fork, dict):
        return
    if twice := fork.keys() & {"run", "step"}:
        raise UserError(
            f"fork.{min(twice)} is given, but --from {source} names the run and its checkpoint; leave out one of the two"
        )
    if with_optimizer and fork.get("optimizer") is False:
        raise UserError("fork.optimizer = false contradicts --with-optimizer; leave out one of the two")


def resolve_fork(options: RunOptions, runs_dir: Path) -> RunOptions:
    """Return the options with the absolute path, the step and the fingerprint of the forked checkpoint filled in.

    Options without a fork are returned unchanged. Raises UserError if the run or the checkpoint does not exist, if the
    checkpoint is damaged or has another fingerprint than recorded, or if its weights or optimizer state do not fit the options.
    """
    fork = options.fork
    if fork is None:
        return options
    named = find_run(fork.run, runs_dir)
    if named is None:
        raise UserError(
            f"fork.run = {fork.run}: there is no such run; if it has moved, set fork.run to its folder, or choose another run"
        )
    folder = RunFolder.open(named.folder)
    if named.checkpoint:
        if fork.step not in (None, step_of(named.checkpoint)):
            raise UserError(
                f"fork.run = {fork.run} and fork.step = {fork.step} name different checkpoints; leave one of them out"
            )
        checkpoint = whole(named.checkpoint)
    else:
        checkpoint = checkpoint_of(folder, "last" if fork.step is None else str(fork.step))
    fingerprint = _fingerprint(checkpoint, fork.optimizer)
    if fork.fingerprint not in (None, fingerprint):
        raise UserError(
            f"checkpoint {checkpoint} does not have the fingerprint fork.fingerprint = {fork.fingerprint}; leave out the "
            "fingerprint to start from this checkpoint"
        )
    _check_fit(folder, options)
    update = {"run": str(named.folder.resolve()), "step": step_of(checkpoint), "fingerprint": fingerprint}
    return options.model_copy(update={"fork": fork.model_copy(update=update)})


def checkpoint_to_fork(options: RunOptions, runs_dir: Path) -> Path | None:
    """Return the checkpoint that the options fork, or None if they fork none.

    Raises UserError in the same cases as `resolve_fork`.
    """
    fork = resolve_fork(options, runs_dir).fork
    return Path(fork.run) / "checkpoints" / f"step-{fork.step}" if fork else None


def origin_of(options: RunOptions) -> dict[str, Any]:
    """Describe the forked run for config.json, because it may be deleted later."""
    if options.fork is None:
        return {}
    about = RunFolder.open(Path(options.fork.run)).origin
    return {"origin": {**options.fork.model_dump(mode="json"), **about}}


def load_moments(checkpoint: Path, state: dict[str, Any], policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    """Load the optimizer state of another run, but keep the hyperparameters of `optimizer`, such as the betas."""
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    load_optimizer(checkpoint, state, policy, optimizer)
    for group, options in zip(optimizer.param_groups, own, strict=True):
        group.update(options)


def _check_fit(source: RunFolder, options: RunOptions) -> None:
    """Raise UserError if the weights of `source`, or its optimizer state if the fork loads it, do not fit the options."""
    theirs, ours = (dict(flatten(o.model_dump(mode="json", include={"model"}))) for o in (source.config, options))
    names = [name for name in sorted(theirs | ours) if theirs.get(name) != ours.get(name) and name not in HOW_COMPUTED]
    if names:
        changed = "; ".join(f"{name}: {theirs.get(name)} -> {ours.get(name)}" for name in names)
        raise UserError(
            f"the options specify another model than run {source.path} ({changed}); a fork keeps the model and the adapters of "
            "the run that it starts from, so leave these options out"
        )
    if options.chat.template is None and source.config.chat.template is not None:
        raise UserError(
            f"the tokenizer of run {source.path} stores the chat.template of that run, so chat.template = null would not restore "
            "the model's own; give a template, or leave the option out"
        )
    assert options.fork
    if options.fork.optimizer:
        kept: dict[str, tuple[object, object]] = {
            "optimizer.eight_bit": (source.config.optimizer.eight_bit, options.optimizer.eight_bit),
            "model.weights": (source.config.model.weights, options.model.weights),
        }
        if differing := [f"{name}: {a} -> {b}" for name, (a, b) in kept.items() if a != b]:
            raise UserError(
                f"the optimizer state of run {source.path} is stored in another format ({differing[0]}); fork without the "
                "optimizer, or leave this option unchanged"
            )


def _fingerprint(checkpoint: Path, with_optimizer: bool) -> str:
    """Hash the model files of a checkpoint, or all of its files if `with_optimizer` is true."""
    checksums = json.loads((checkpoint / MANIFEST).read_text())
    kept = sorted((name, digest) for name, digest in checksums.items() if with_optimizer or not holds_optimizer(name))
    return xxhash.xxh3_64_hexdigest(json.dumps(kept).encode())[:DIGITS]
