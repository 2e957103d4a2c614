"""The interface of the scheduler to a machine or a cluster, and the start of a trial's process."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from sspo_cli.launchers import ending_with_parent, without_ranks
from sspo_cli.sweep.grid import Trial
from sspo_cli.tracking.files import write_text_atomic
from sspo_cli.tracking.run_folder import RunFolder


class PlaceLost(Exception):
    """Raised if a place can run no more trials; unfinished trials can be continued later."""


class Running(Protocol):
    """A trial that was started."""

    @property
    def slot(self) -> str:
        """Return a readable name of where the trial runs: `GPU 1`, `slot 2`."""

    def poll(self) -> int | None:
        """Return the exit code, or None while the trial runs. If the worker was lost with the trial, the code is not 0."""

    def stop(self) -> None:
        """Ask the trial to save its state and end. Does not wait for the end."""

    def wait(self) -> None:
        """Wait until the trial has ended."""


class Place(Protocol):
    """A machine or a cluster that runs trials."""

    def start(self, trial: Trial, folder: Path) -> Running | None:
        """Start the trial, or resume it if it has a run folder; return None if no slot is free.

        Raises PlaceLost if no slot can become free again.
        """


def command_of(trial: Trial, folder: Path, ranks: int = 1) -> list[str]:
    """Return the command that runs a trial in `folder`/its name, from the start or from its last checkpoint.

    A trial of several ranks has a process that starts them, passes its SIGTERM on to them and ends with their exit code.
    """
    command = [sys.executable, "-m", "sspo_cli", "train", "--runs-dir", str(folder), "--run", trial.name]
    if ranks > 1:
        command += ["--nproc", str(ranks)]
    run = RunFolder(folder / trial.name)
    if run.config_path.exists() and not run.came_to_nothing():
        # If the number of ranks or of parallel trials has changed, each rank gets a different share of the cores.
        share = trial.options.threads
        return [*command, "--resume", *(["-s", f"threads={share}"] if share != run.config.threads else [])]
    config = folder / f"{trial.name}.json"
    write_text_atomic(config, trial.options.model_dump_json(indent=2))
    return [*command, "-c", str(config)]


def log_of(trial: Trial, folder: Path) -> Path:
    """Return the file for the output of all attempts at a trial."""
    return folder / f"{trial.name}.log"


def spawn(
    command: Sequence[str], environment: Mapping[str, str], log: Path, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a trial's process.

    environment  variables that are added to those of this process
    cwd          working directory; None: the working directory of this process

    The new process is not a rank of a job, even if this process is one. It gets a SIGTERM when this process dies.
    """
    with log.open("ab") as out:
        return subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**without_ranks(os.environ), **environment},
            start_new_session=True,  # a Ctrl-C at the sweep reaches the trials through the sweep alone, once
            preexec_fn=ending_with_parent(),
        )
