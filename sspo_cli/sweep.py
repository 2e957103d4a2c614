"""A grid of trials, each a run in a process of its own; what is finished is skipped, what was begun is resumed."""

import ctypes
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from filelock import FileLock, Timeout
from pydantic import Field, NonNegativeInt, ValidationError, model_validator
from rich.console import Console
from rich.table import Table

from sspo_cli.config import Options, RunOptions
from sspo_cli.config_files import explain, flatten, merge_config, merge_layers, nest, read_yaml, validate
from sspo_cli.errors import UserError
from sspo_cli.interruption import Interrupted, Interruption
from sspo_cli.tracking.files import write_text_atomic
from sspo_cli.tracking.run_folder import RunFolder

POLL_SECONDS = 0.5
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
NAMED = ("objective.method", "objective.gate", "seed")  # always in a trial's name


class Block(Options):
    """Part of a sweep: `options` for all of its trials, `grid` lists crossed, lists of one `zip` group taken in step."""

    options: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    zip: list[dict[str, list[Any]]] = []

    @model_validator(mode="after")
    def _lists_make_sense(self) -> "Block":
        for group in self.zip:
            if len({len(values) for values in group.values()}) > 1:
                raise ValueError(f"the lists of the zip group {', '.join(group)} differ in length")
        for key, values in [*self.grid.items(), *(item for group in self.zip for item in group.items())]:
            if not values:
                raise ValueError(f"the list of {key} is empty, so that there is nothing to run")
        if "seed" in {*self.options, *self.grid, *(key for group in self.zip for key in group)}:
            raise ValueError("seed is not an option of a sweep; list the seeds under `seeds`")
        return self

    def points(self) -> Iterator[dict[str, Any]]:
        """Every combination, as dotted options."""
        axes = [[{key: value} for value in values] for key, values in self.grid.items()]
        axes += [
            [dict(zip(group, values, strict=True)) for values in zip(*group.values(), strict=True)]
            for group in self.zip
        ]
        for combination in itertools.product(*axes):
            yield {**self.options, **{key: value for part in combination for key, value in part.items()}}


class SweepOptions(Block):
    """A sweep file: a base config, and what varies. Each of `blocks` (a method with its own grid, say) is crossed with
    the sweep's own grid and with `seeds`."""

    base: list[Path] = Field([], description="config files, relative to the sweep file")
    seeds: list[NonNegativeInt] = Field([0], min_length=1)
    blocks: list[Block] = [Block()]


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a sweep. `name` says what varies, and ends in a hash of the resolved options."""

    name: str
    varied: dict[str, Any]
    options: RunOptions


def load_sweep(file: Path, overrides: Sequence[str]) -> list[Trial]:
    """The trials of a sweep file, in its order, each distinct. Raises UserError where the file or a trial does not validate."""
    try:
        sweep = SweepOptions.model_validate(read_yaml(file))
    except ValidationError as error:
        raise UserError(f"{file}: {'; '.join(explain(error, SweepOptions))}") from None
    base = merge_config([file.parent / path for path in sweep.base], [])
    over = merge_config([], overrides)
    points = [
        {**shared, **point, "seed": seed}
        for shared, block, seed in itertools.product(sweep.points(), sweep.blocks, sweep.seeds)
        for point in block.points()
    ]
    keys = {key for point in points for key in point if len({json.dumps(other.get(key)) for other in points}) > 1}
    trials: dict[str, Trial] = {}
    for point in points:
        options = validate(merge_layers([base, nest(point), over]))
        # An override may have won over what varies, or have chosen a method without it.
        resolved = dict(flatten(options.model_dump(mode="json")))
        lost = set(dict(flatten(over))) | {
            k for k in point if k.startswith("objective.") and resolved.get(k) != point[k]
        }
        varied = {key: value for key, value in point.items() if key in keys - lost}
        trial = Trial(_trial_name(varied, options), varied, options)
        trials.setdefault(trial.name, trial)
    return list(trials.values())


def print_trials(trials: Sequence[Trial]) -> None:
    """What differs between the trials, a row each."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.varied))
    table = Table(title=f"{len(trials)} trials")
    for column in ("trial", *keys):
        table.add_column(column, overflow="fold")
    for trial in trials:
        table.add_row(trial.name, *(str(trial.varied.get(key, "")) for key in keys))
    Console().print(table)


def run_sweep(trials: Sequence[Trial], folder: Path, jobs: int) -> None:
    """Runs what is not finished, `jobs` trials at a time, and prints how each ended.

    Raises UserError where trials failed or another process works on this sweep, Interrupted when stopped: the trials have
    saved their state then.
    """
    console = Console(soft_wrap=True, highlight=False)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"sweep {folder} is being run by another process") from None
    with lock, Interruption() as interruption:
        waiting = [trial for trial in trials if _state(folder / trial.name) != "finished"]
        console.print(f"{len(trials)} trials in {folder}, {len(trials) - len(waiting)} finished before")
        failed = _run_all(waiting, folder, jobs, console, interruption)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(trials)} trials failed: {', '.join(failed)}; their output is in {folder}/<trial>.log"
        )


def _run_all(waiting: list[Trial], folder: Path, jobs: int, console: Console, interruption: Interruption) -> list[str]:
    """The names of the trials that failed."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed: list[str] = []
    queue, done, waited = list(waiting), 0, False
    try:
        while queue or running:
            if interruption.requested:
                raise Interrupted
            for trial in queue[:]:
                # Left by a sweep that was killed, a trial may still be saving its state; its turn comes later.
                if len(running) == jobs or RunFolder(folder / trial.name).is_being_written():
                    continue
                queue.remove(trial)
                if _state(folder / trial.name) == "finished":  # by another process, meanwhile
                    done += 1
                    continue
                running[trial.name] = _start(trial, folder)
                console.print(f"started   {trial.name}")
            if queue and not running and not waited:
                waited = True
                console.print(f"waiting for another process, which runs {queue[0].name}")
            for name, process in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    done += 1
                    if process.returncode != 0:
                        failed.append(name)
                    console.print(
                        f"{'failed' if process.returncode else 'finished':9} {name} ({done} of {len(waiting)})"
                    )
            time.sleep(POLL_SECONDS)
    finally:
        for process in running.values():
            process.terminate()  # it saves its state
        for process in running.values():
            process.wait()
    return failed


def _start(trial: Trial, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sspo_cli", "train", "--runs-dir", str(folder), "--run", trial.name]
    if (folder / trial.name / "config.json").exists():
        command.append("--resume")
    else:
        config = folder / f"{trial.name}.json"
        write_text_atomic(config, trial.options.model_dump_json(indent=2))
        command += ["-c", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(trial.options.threads)}
    with (folder / f"{trial.name}.log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a Ctrl-C at the sweep reaches the trials through the sweep alone, once
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )


def _end_with_parent() -> None:
    """A trial whose sweep is killed gets a SIGTERM, saves its state and ends."""
    sweep = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != sweep:  # killed between the two lines
        os._exit(1)


def _state(run: Path) -> str:
    return RunFolder(run).status.get("state", "new")


def _trial_name(varied: dict[str, Any], options: RunOptions) -> str:
    """`sspo-atanlog-tau_neg=0.3-tau_pos=0.2-seed0-1a2b3c4d`: what varies, and a hash of every option."""
    words = [options.objective.method, str(options.objective.gate)]
    words += [f"{key.rpartition('.')[2]}={value}" for key, value in varied.items() if key not in NAMED]
    digest = xxhash.xxh3_64_hexdigest(json.dumps(options.model_dump(mode="json"), sort_keys=True).encode())
    name = "-".join([*words, f"seed{options.seed}", digest[:8]])
    return re.sub(r"[^\w.=-]+", "_", name)
