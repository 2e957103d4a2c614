"""The small commands in addition to the main four: lists of options, presets and runs, and the export of a model."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from sspo_cli.errors import UserError
from sspo_cli.parameters import RunsDir
from sspo_cli.redaction import redacted

WIDE = 240  # characters, if no terminal reports its width


def options_command(
    section: Annotated[
        str | None,
        typer.Argument(metavar="[SECTION]", help="A section or option, such as rollout, model.lora or limit."),
    ] = None,
) -> None:
    """List every option of a run with its values, its default and its description."""
    from sspo_cli.config.listing import list_options

    print("\n".join(line for option in list_options(section) for line in option.lines).strip("\n"))


def configs_command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The preset to print.")] = None,
) -> None:
    """List the presets for `-c NAME`, or print one of them."""
    from sspo_cli.config.presets import find_preset, presets

    if name is not None:
        print(find_preset(name).text, end="")
        return
    for preset in presets():
        hardware, what = preset.comments
        print(f"{preset.name}\n    {what}\n    {hardware}")


def ls_command(
    folder: Annotated[
        Path,
        typer.Argument(envvar="SSPO_RUNS", metavar="[FOLDER]", help="Folder that contains run folders, at any depth."),
    ] = Path("runs"),
) -> None:
    """List the runs of a folder with state, step, remaining time and last score."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name the folder of the runs")
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from sspo_cli.tracking.listing import list_runs

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("run", "state", "step", "left", "last Pass@1"):
        table.add_column(column, overflow="fold", justify="right" if column in ("step", "left") else "left")
    for run in list_runs(folder):
        table.add_row(*map(redacted, (run.name, run.state, run.step, run.left, run.score)))
    if not table.row_count:
        raise UserError(f"there are no runs in {folder}")
    Console(width=None if sys.stdout.isatty() else WIDE, highlight=False, markup=False, emoji=False).print(table)


def export_command(
    run: Annotated[
        str, typer.Argument(metavar="RUN[@STEP]", help="A run or a checkpoint of a run, by name or folder.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder for the model.")],
    checkpoint: Annotated[
        str | None, typer.Option(help="Checkpoint of the run: last (the default), best, or a step.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None, typer.Option(help="Dtype of the weights; default: as in the checkpoint.")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Write a run's model to a folder for publication: weights with merged adapters, tokenizer, model card."""
    from sspo_cli.export import export_model

    exported = export_model(run, folder, checkpoint, runs_dir, dtype)
    print(f"{folder}: the model of {exported}, its tokenizer and a model card (README.md)")
