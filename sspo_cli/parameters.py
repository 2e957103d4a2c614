"""Parameters of the command line that several commands share."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

Config = Annotated[
    list[Path] | None,
    typer.Option(
        "-c", "--config", help="Config file (YAML) or preset of `sspo configs`; later ones override earlier ones."
    ),
]
Set = Annotated[list[str] | None, typer.Option("-s", "--set", help="One option, as section.option=value.")]
Method = Annotated[str | None, typer.Option()]  # described by ObjectiveCommand
Gate = Annotated[str | None, typer.Option()]
AnyGate = Annotated[bool, typer.Option("--allow-any-gate")]
AnyMethod = Annotated[bool, typer.Option("--allow-any-method")]
Seed = Annotated[int | None, typer.Option(help="Seed of problems, sampling and minibatches.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check the options and print what would run; run nothing.")]
EngineName = Annotated[Literal["auto", "torch", "vllm"] | None, typer.Option(help="Sampler; overrides rollout.engine.")]
Nproc = Annotated[
    int | None,
    typer.Option(
        "--nproc",
        min=1,
        max=1024,
        help="Number of ranks on this machine, one per GPU. For several machines, use torchrun.",
    ),
]
RunsDir = Annotated[Path, typer.Option(envvar="SSPO_RUNS", help="Folder that contains the run folders.")]


class ObjectiveCommand(TyperCommand):
    """A command whose help describes the objective's flags with the descriptions of `ObjectiveOptions`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from sspo_cli.config import ObjectiveOptions  # here, because it imports torch

        flags: list[Any] = self.params
        for flag in flags:
            if field := ObjectiveOptions.model_fields.get(flag.name):
                description = field.description or ""
                flag.help = f"{description[0].upper()}{description[1:]}."
        super().format_help(ctx, formatter)
