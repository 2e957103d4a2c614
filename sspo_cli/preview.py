"""The output of `sspo train --dry-run`: the options in YAML, and the results of the checks as comments."""

import json
from pathlib import Path

from sspo_cli import ranks
from sspo_cli.config import Given, RunOptions, merge_config, named_model_defaults, to_yaml
from sspo_cli.examination import check_ranks, objective_of
from sspo_cli.memory import preview_memory
from sspo_cli.redaction import redacted
from sspo_cli.session import preview_run


def print_preview(
    options: RunOptions,
    given: Given,
    path: Path,
    is_resumed: bool,
    is_forked: bool,
    device_memory: float | None,
    nproc: int,
) -> None:
    """Print the options of a run, run the checks of its start, and print their results; write no file.

    given          options of the command line; they determine which defaults of a named model are listed
    device_memory  memory in GB of another machine's GPU, for which only options and memory are examined
    nproc          ranks that the run is to have

    Raises UserError in the same cases as the start of the run.
    """
    print(redacted(to_yaml(options)), end="")
    is_new = not (is_resumed or is_forked)
    customary = named_model_defaults(merge_config(given.files, given.overrides, given.flags)) if is_new else {}
    if customary:
        values = ", ".join(f"{name}={json.dumps(value)}" for name, value in customary.items())
        _print_comment(f"defaults of a named model for options that are not set: {values}")
    if device_memory is None:
        if nproc > 1:
            ranks.check_start(nproc, options.device)
        with ranks.assuming_size(nproc):
            preview_run(options, path, is_resumed, _print_comment)
    else:
        objective_of(options)
        options.reward.scoring.check()
        with ranks.assuming_size(nproc):
            check_ranks(options)
    preview_memory(options, device_memory, _print_comment, nproc)


def _print_comment(line: str) -> None:
    print(redacted(f"# {line}"))
