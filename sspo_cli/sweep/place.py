"""Say what the scheduler asks of a machine or a cluster, and make a trial's process."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from sspo_cli.launchers import ending_with_parent, without_ranks
from sspo_cli.sweep.grid import Trial
from sspo_cli.tracking.files import write_text_atomic


class PlaceLost(Exception):
    """Says that a place can run no more trials, and why; those that are not finished can be continued later."""


class Running(Protocol):
    """Represent a trial that was started."""

    @property
    def slot(self) -> str:
        """Return where it runs, for people: `GPU 1`, `slot 2`."""

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs; a trial that was lost with its worker counts as failed."""

    def stop(self) -> None:
        """Ask it to save its state and end, without waiting for that."""

    def wait(self) -> None:
        """Wait until it has ended."""


class Place(Protocol):
    """Hold running trials."""

    def start(self, trial: Trial, folder: Path) -> Running | None:
        """Start the trial, or resume it if it has a run folder; returns None if nothing is free now.

        Raises PlaceLost if nothing can be free again.
        """


def command_of(trial: Trial, folder: Path, ranks: int = 1) -> list[str]:
    """Return the command that runs a trial in `folder`/its name, from the start or from its last checkpoint.

    A trial of several ranks has a process that starts them, passes its SIGTERM on to them and ends with their exit code.
    """
    command = [sys.executable, "-m", "sspo_cli", "train", "--runs-dir", str(folder), "--run", trial.name]
    if ranks > 1:
        command += ["--nproc", str(ranks)]
    if (folder / trial.name / "config.json").exists():
        return [*command, "--resume"]
    config = folder / f"{trial.name}.json"
    write_text_atomic(config, trial.options.model_dump_json(indent=2))
    return [*command, "-c", str(config)]


def log_of(trial: Trial, folder: Path) -> Path:
    """Return the file of what the trial prints, over all of its attempts."""
    return folder / f"{trial.name}.log"


def spawn(
    command: Sequence[str], environment: Mapping[str, str], log: Path, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a trial's process, with `environment` over this one's, in the folder `cwd`, by default this one's.

    It is no rank of a job, even if this process is one. It gets a SIGTERM when the process that calls dies.
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
