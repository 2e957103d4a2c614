"""Preparation of a run from its config, and recording of how it ended."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sspo_cli import ranks
from sspo_cli.config import EpisodeOptions, RunOptions, differences, flatten
from sspo_cli.environments.environment import Environment
from sspo_cli.errors import UserError, command_line
from sspo_cli.evaluation.identity import SAME_FILES, hash_of, problems_fingerprint
from sspo_cli.examination import Rendered, examine, objective_of, render_all
from sspo_cli.forks import check_resumable, checkpoint_to_fork, load_moments, origin_of
from sspo_cli.interruption import Interrupted, Interruption
from sspo_cli.model_check import check_model, check_reach, check_structure
from sspo_cli.policy.checkpoint import latest_whole, load_optimizer, load_state, set_damaged_aside, usable_state
from sspo_cli.policy.cold_start import cold_start
from sspo_cli.policy.kernels import explained_compiler_errors
from sspo_cli.policy.model import Policy, load_policy, resolve_device
from sspo_cli.policy.optimizer import adamw, describe_new_end
from sspo_cli.rewards import AnswerChecker
from sspo_cli.rollout import open_engine, samples_by_torch
from sspo_cli.rollout.engine import Engine
from sspo_cli.rollout.episodes import Stage, open_environments
from sspo_cli.rollout.torch_engine import TorchEngine
from sspo_cli.run.failures import explained_end, explained_full_memory
from sspo_cli.run.reference import keep_reference, read_reference
from sspo_cli.run.saving import save
from sspo_cli.run.state import Run, RunState
from sspo_cli.tasks.contamination import question_keys
from sspo_cli.tracking.console import NoteSink, PlainSink
from sspo_cli.tracking.health import health
from sspo_cli.tracking.run_folder import RunFolder, check_free
from sspo_cli.tracking.tracker import Tracker, open_tracker
from sspo_cli.train import train

COLD_STARTS = "cold-starts"  # folder next to the runs, which share it


def start_run(options: RunOptions, path: Path, command: Sequence[str], keep_going: bool = False) -> None:
    """Check a new run, create its folder at `path` and train it.

    options     options of the run; `resolve_fork` must have resolved a fork
    keep_going  True to continue even if nothing is learned

    Raises UserError if the run exists, if a check refuses the run (no folder remains then) or if the run cannot continue.
    Raises Interrupted if the run is stopped.
    """
    _require_same_options(options)
    ranks.on_first(lambda: check_free(path))
    torch.set_num_threads(options.threads)
    with _opened(options) as opened:
        notes: list[str] = []
        sinks = [PlainSink(Console()), NoteSink(notes.append)] if ranks.is_first() else []
        rendered = _examine_new(options, path, opened, Tracker(sinks))
        if opened.interruption.requested:
            raise Interrupted("stopped before the run began; nothing is written")
        with RunFolder.create(path, options, command, origin_of(options)) as folder:
            folder.begun = False  # until the checks that need the weights have passed
            _run(folder, options, opened, keep_going, rendered, notes)


def resume_run(path: Path, options: RunOptions | None, command: Sequence[str], keep_going: bool = False) -> None:
    """Resume a run from its last complete checkpoint, or from the start if there is none.

    options  the recorded options with changes that `fixed_differences` allows; None: the recorded options

    Raises UserError if there is no such run, or if the run is finished and `steps` is not raised.
    """
    with RunFolder.resume(path) as folder:
        options = options or folder.config
        _require_same_options(options)
        check_resumable(folder, options)
        torch.set_num_threads(options.threads)
        with _opened(options) as opened:
            _run(folder, options, opened, keep_going, resumed_by=command)


def preview_run(options: RunOptions, path: Path, is_resumed: bool, note: Callable[[str], object]) -> None:
    """Run the checks of `start_run` or, if `is_resumed`, of `resume_run`, and write nothing.

    Raises UserError in the same cases as these functions.
    """
    tracker = Tracker([NoteSink(note)])
    with _opened(options) as opened:
        if is_resumed:
            RunFolder(path).check_unwritten()
            checkpoint, _ = latest_whole(RunFolder(path).checkpoints)
            source = checkpoint or checkpoint_to_fork(options, path.parent)
            needs_cold_start = checkpoint is None and options.cold_start.steps > 0
            examine(options, tracker, opened.checker, opened.environments, source, needs_cold_start)
        else:
            check_free(path)
            _examine_new(options, path, opened, tracker)


@dataclass(frozen=True, slots=True)
class _Opened:
    """The components that a run needs until its end, opened before gold answers are loaded."""

    interruption: Interruption
    checker: AnswerChecker
    environments: Mapping[str, Environment]


def _require_same_options(options: RunOptions) -> None:
    values = dict(flatten(options.model_dump(mode="json")))
    ranks.require_agreement("other options", values, "give all machines the same config files")


@contextmanager
def _opened(options: RunOptions) -> Iterator[_Opened]:
    with (
        Interruption(speaks=ranks.is_first()) as interruption,  # stays active until the run's status is written
        AnswerChecker(timeout=options.answer_timeout) as checker,
        open_environments(options.environments, options.episode or EpisodeOptions(), checker) as environments,
    ):
        yield _Opened(interruption, checker, environments)


def _examine_new(options: RunOptions, path: Path, opened: _Opened, tracker: Tracker) -> Rendered | None:
    source = ranks.on_first(lambda: checkpoint_to_fork(options, path.parent))
    needs_cold_start = options.cold_start.steps > 0
    return _examine(options, tracker, opened, source, needs_cold_start)


def _examine(
    options: RunOptions, tracker: Tracker, opened: _Opened, source: Path | None, needs_cold_start: bool
) -> Rendered | None:
    """Call `examine` on all ranks, and compare what they have read."""
    rendered = examine(options, tracker, opened.checker, opened.environments, source, needs_cold_start)
    _require_same_data(rendered)
    return rendered


def _require_same_data(rendered: Rendered | None) -> None:
    if ranks.size() > 1:
        ranks.require_agreement("other data or another tokenizer", rendered.hashes() if rendered else {}, SAME_FILES)


def _run(
    folder: RunFolder,
    options: RunOptions,
    opened: _Opened,
    keep_going: bool,
    rendered: Rendered | None = None,
    notes: Sequence[str] = (),
    resumed_by: Sequence[str] | None = None,
) -> None:
    """Prepare and train a run, and report to every sink how it ended.

    notes       notes from the checks of a new run
    resumed_by  command line of a resumed run
    """
    with explained_end(folder), open_tracker(folder, options, earlier=notes) as tracker:
        lost = ranks.explained_loss("the others cannot continue without it")
        with lost, explained_full_memory(folder, options), explained_compiler_errors():
            run = prepare(folder, options, tracker, opened, rendered, resumed_by)
            train(replace(run, keep_going=keep_going))
        with suppress(UserError):  # a damaged metrics file must not fail the run; `sspo report` names it
            for sign in health(folder.metrics()):
                tracker.note(f"health: {sign}")
        tracker.note(
            f"run folder: {folder.path}; {command_line('sspo', 'report', folder.name_in_commands)} writes a report, "
            f"{command_line('sspo', 'eval', folder.name_in_commands)} measures Pass@1"
        )


@dataclass(frozen=True, slots=True)
class Loaded:
    """The starting point of a run.

    policy      policy of the checkpoint, or of the config if there is none
    checkpoint  checkpoint from which a resumed run continues
    forked      checkpoint of another run from which a new run starts
    saved       state of the optimizer and the run in `checkpoint` or `forked`
    rendered    problems of the run
    stage       environments and limits of episodes
    """

    policy: Policy
    checkpoint: Path | None
    forked: Path | None
    saved: dict[str, Any] | None
    rendered: Rendered
    stage: Stage

    @property
    def continued(self) -> dict[str, Any] | None:
        """State of the optimizer and the run from which a resumed run continues; None for a new run."""
        return self.saved if self.checkpoint else None


def prepare(
    folder: RunFolder,
    options: RunOptions,
    tracker: Tracker,
    opened: _Opened,
    rendered: Rendered | None = None,
    resumed_by: Sequence[str] | None = None,
) -> Run:
    """Load or resume everything, and run the cold start if it is not done yet.

    options     options of the run; a resumed run may change how it is computed, and the folder records the change
    rendered    problems, if the checks of a new run have rendered them
    resumed_by  command line of a resumed run

    If a new run is refused before its cold start, the run is not marked as begun.
    """
    loaded = _load(folder, options, tracker, opened, rendered)
    policy, rendered, stage = loaded.policy, loaded.rendered, loaded.stage
    state = RunState()
    if loaded.checkpoint and loaded.continued:
        with usable_state(loaded.checkpoint):
            state = RunState.from_state_dict(loaded.continued["run"])
    lost = folder.truncate(state.step, loaded.continued.get("files") if loaded.continued else None)
    if resumed_by is not None:
        tracker.start(options.steps, state.step)
    if loaded.checkpoint:
        tracker.note(f"resuming from {loaded.checkpoint}")
    if loaded.forked:
        tracker.note(f"starting from {loaded.forked}, {'with' if loaded.saved else 'without'} its optimizer state")
    for sentence in lost:
        tracker.note(sentence)
    if resumed_by is not None:
        checkpoint = loaded.checkpoint.name if loaded.checkpoint else None
        if moved := folder.note_resume(resumed_by, checkpoint, lost):
            tracker.note(
                f"program or packages have changed since the last start, so results may differ: {'; '.join(moved)}"
            )
    engine = _open_engine(options, loaded, tracker)
    if resumed_by is None:
        tracker.start(options.steps, state.step)
        folder.begun = True
    if changes := list(differences(folder.config, options).values()):
        tracker.note(f"changed options from here on: {', '.join(changes)}")
        if new_rate := describe_new_end(options.optimizer, state.step, folder.config.steps, options.steps):
            tracker.note(new_rate)
        folder.change(options, loaded.checkpoint.name if loaded.checkpoint else None, changes)
    _note_data(folder, rendered, tracker, is_resumed=loaded.checkpoint is not None)
    if rendered.demonstrations:
        policy = _start_cold(folder, options, policy, rendered, tracker, opened.interruption)
    reference = None
    if options.learning.kl:
        reference = (read_reference if loaded.checkpoint else keep_reference)(folder.path, policy)
    optimizer = adamw(
        policy.parameters, options.optimizer.betas, options.optimizer.weight_decay, options.optimizer.eight_bit
    )
    if loaded.checkpoint and loaded.continued:
        load_optimizer(loaded.checkpoint, loaded.continued, policy, optimizer)
    elif loaded.forked and loaded.saved:
        load_moments(loaded.forked, loaded.saved, policy, optimizer)
    run = Run(
        options=options,
        folder=folder,
        policy=policy,
        objective=objective_of(options),
        optimizer=optimizer,
        engine=engine,
        stage=stage,
        prompts=rendered.prompts,
        benchmarks=rendered.benchmarks,
        checker=opened.checker,
        tracker=tracker,
        interruption=opened.interruption,
        state=state,
        reference=reference,
    )
    if loaded.forked:
        save(run)  # at once, because the other run may be deleted
    return run


def _load(
    folder: RunFolder, options: RunOptions, tracker: Tracker, opened: _Opened, rendered: Rendered | None
) -> Loaded:
    """Load the last complete checkpoint, a fork or the config's model; run the checks if `rendered` is None."""
    checkpoint, damaged = ranks.on_first(lambda: set_damaged_aside(folder.checkpoints))
    for path in damaged:
        tracker.note(f"checkpoint {path.name.removeprefix('damaged-')} is damaged; it is renamed to {path}")
    forked = None if checkpoint else ranks.on_first(lambda: checkpoint_to_fork(options, folder.path.parent))
    source, needs_cold_start = checkpoint or forked, checkpoint is None and options.cold_start.steps > 0
    if rendered is None:
        rendered = _examine(options, tracker, opened, source, needs_cold_start)
    policy = load_policy(options.model, resolve_device(options.device), source, options.chat.template)
    for note in policy.notes:
        tracker.note(note)
    stage = Stage.of(opened.environments, options.episode or EpisodeOptions(), policy)
    if rendered is None:
        rendered = render_all(options, policy, stage, opened.checker, tracker, needs_cold_start)
        _require_same_data(rendered)
    config = {"hash of config.json": hash_of(policy.model.config.to_json_string())}
    ranks.require_agreement("another model", config, SAME_FILES)
    needs_state = source is not None and (source == checkpoint or (options.fork and options.fork.optimizer))
    saved = load_state(source) if source and needs_state else None
    return Loaded(policy, checkpoint, forked, saved, rendered, stage)


def _open_engine(options: RunOptions, loaded: Loaded, tracker: Tracker) -> Engine:
    """Open the engine. Raises UserError if the weights reveal that the model or the engine cannot be used for the run."""
    policy, longest = loaded.policy, loaded.rendered.longest
    engine = open_engine(options.rollout, policy, named=options.model.name is not None)
    engine.check_capacity(longest)
    by_torch = isinstance(engine, TorchEngine)
    if by_torch and not samples_by_torch(options.rollout, policy.device):  # `auto` could not use vLLM for this model
        folder = loaded.checkpoint or loaded.forked
        check_reach(
            check_structure(options.model, tracker.note, samples=True, folder=folder), longest, str(options.model.name)
        )
    check_model(policy, samples=by_torch)
    if loaded.rendered.demonstrations:
        engine.sync(policy)  # so that a failing sync is found before the cold start
    engine.sleep()
    tracker.note(f"sampler: {engine.name}")
    return engine


def _note_data(folder: RunFolder, rendered: Rendered, tracker: Tracker, is_resumed: bool) -> None:
    """Record the training problems. For a resumed run, note if they differ from the problems at its start."""
    problems = [prompt.problem for prompt in itertools.chain(*rendered.prompts)]
    left_out, fingerprint = rendered.left_out, problems_fingerprint(problems)
    data = {
        "problems": len(problems),
        "fingerprint": fingerprint,
        "overlaps": [asdict(overlap) for overlap in rendered.overlaps],
        "left_out": {"problems": len(left_out), "fingerprint": problems_fingerprint(left_out)} if left_out else None,
    }
    if is_resumed and (before := folder.data):
        data = before
        if before["fingerprint"] != fingerprint:
            tracker.note("the training problems have changed since the start of the run, so results may differ")
    folder.note_data(data, question_keys(problems))


def _start_cold(
    folder: RunFolder,
    options: RunOptions,
    policy: Policy,
    rendered: Rendered,
    tracker: Tracker,
    interruption: Interruption,
) -> Policy:
    """Run the cold start on demonstrations of `cold_start.tasks` or, if this list is empty, of the run's tasks."""
    if rendered.demonstrated:
        shared = [
            asdict(replace(overlap, task=f"the cold start's {overlap.task}")) for overlap in rendered.their_overlaps
        ]
        data = folder.data
        folder.note_data({**data, "overlaps": [*data["overlaps"], *shared]}, question_keys(rendered.demonstrated))
    cache = folder.path.parent / COLD_STARTS
    with tracker.stage("cold start", options.cold_start.steps):
        policy, result = cold_start(
            policy, rendered.demonstrations, options, cache, interruption, tracker.advance, tracker.note
        )
    tracker.note(f"cold start: {result}")
    return policy
