"""The commands: parse, call, print. Heavy imports are inside the functions, so that `sspo --help` is fast."""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from sspo_cli import __version__
from sspo_cli.errors import UserError, check_name, command_line, first_line, says_memory_is_full
from sspo_cli.interruption import Interrupted
from sspo_cli.launchers import is_first_rank, is_rank, refuse_several_ranks, refuse_wrong_ranks, starting_words
from sspo_cli.parameters import (
    AnyGate,
    AnyMethod,
    Config,
    DryRun,
    EngineName,
    Gate,
    Method,
    Nproc,
    ObjectiveCommand,
    RunsDir,
    Seed,
    Set,
)
from sspo_cli.redaction import redacted
from sspo_cli.small_commands import configs_command, export_command, ls_command, options_command
from sspo_cli.starting import start_ranks
from sspo_cli.usage import UsageError, explain_usage

app = typer.Typer(
    help="Soft Sequence Policy Optimization: train, evaluate, sweep and report on the GRPO family on equal terms.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"sspo {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the `sspo` script. After a user's mistake, print one sentence and exit with 1; if interrupted, with 130."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # otherwise tokenizers warns at every fork of a checker
    try:
        if code := app(prog_name="sspo", standalone_mode=False):
            sys.exit(code)
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help has been printed
            sys.exit(2)
        _end(str(explain_usage(error)), 1)
    except UserError as error:
        _end_rank(error, 1)
    except Interrupted as error:
        _end_rank(error, 130)
    except Exception as error:
        if not says_memory_is_full(error):
            if _is_reported_by_lower_rank(error):
                _end(None, 1)
            raise
        reason = first_line(error)[:200]
        less = f"out of memory ({reason}); free some memory, or use less, for example with a lower rollout.max_rows"
        _end_rank(UserError(less), 1)


def _is_reported_by_lower_rank(error: Exception) -> bool:
    """Report an unexpected exception of a rank. Return True if a lower rank has the same one, so that it is printed once."""
    if not is_rank(os.environ):
        return False
    from sspo_cli import ranks

    return not ranks.report_bug(error)


def _end_rank(error: UserError | Interrupted, code: int) -> NoReturn:
    """Print an error and exit. If there are several ranks, each prints only errors that no other rank prints."""
    sentence: str | None = redacted(str(error))
    if is_rank(os.environ):
        from sspo_cli import ranks

        sentence = ranks.sentence_to_print(error, str(sentence))
    _end(sentence, code)


def _end(sentence: str | None, code: int) -> NoReturn:
    if sentence is not None:
        with suppress(OSError):  # the terminal may be closed
            print(f"sspo: {redacted(sentence)}", file=sys.stderr, flush=True)
    sys.exit(code)


@app.command("train", cls=ObjectiveCommand)
def train_command(
    config: Config = None,
    set_: Set = None,
    method: Method = None,
    gate: Gate = None,
    seed: Seed = None,
    run: Annotated[
        str | None, typer.Option("--run", help="Name of the run's folder; default: METHOD-GATE-seedN.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run given by --run from its last checkpoint.")
    ] = False,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN[@STEP]",
            help="Start a new run from a checkpoint of RUN (its last, @best or @STEP), with the options of RUN.",
        ),
    ] = None,
    with_optimizer: Annotated[
        bool, typer.Option("--with-optimizer", help="With --from: also load the optimizer state.")
    ] = False,
    keep_going: Annotated[
        bool,
        typer.Option("--keep-going", help="Do not stop if nothing is learned because all groups have equal rewards."),
    ] = False,
    dry_run: DryRun = False,
    device_memory: Annotated[
        float | None,
        typer.Option(
            min=0.1, max=10**6, metavar="GB", help="With --dry-run: memory of a GPU that is not in this machine."
        ),
    ] = None,
    allow_any_gate: AnyGate = False,
    allow_any_method: AnyMethod = False,
    nproc: Nproc = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Train a policy; with no options, the embedded task with SSPO-atanlog on this machine."""
    refuse_wrong_ranks(os.environ, nproc)
    shortcuts: dict[str, Any] = {"objective.method": method, "objective.gate": gate, "seed": seed}
    shortcuts["objective.allow_any_gate"] = allow_any_gate or None
    shortcuts["objective.allow_any_method"] = allow_any_method or None
    flags = {key: value for key, value in shortcuts.items() if value is not None}
    if run is not None and not resume:
        check_name("--run", run)
    if resume and run is None:
        raise UserError("--resume needs the run's name or folder: --run RUN")
    if resume and source is not None:
        raise UserError(
            "--resume and --from exclude each other; use --resume to continue a run, or --from to start a new one"
        )
    if with_optimizer and source is None:
        raise UserError("--with-optimizer needs --from RUN, the run whose optimizer state is loaded")
    if device_memory is not None and not dry_run:
        raise UserError("--device-memory applies only to --dry-run; a run measures its device")

    from sspo_cli.config import Given
    from sspo_cli.forks import load_fork, options_to_resume, resolve_fork
    from sspo_cli.named_runs import free_name, require_run

    given = Given(config or [], set_ or [], flags)
    path = runs_dir / run if run else None
    if resume:
        path = require_run(str(run), runs_dir)
        options = options_to_resume(path, given)
    else:
        is_fork = source is not None
        options = load_fork(str(source), with_optimizer, given, runs_dir) if is_fork else given.options()
        options = resolve_fork(options, runs_dir)
    if dry_run and not is_first_rank(os.environ):
        return
    if dry_run:
        from sspo_cli.preview import print_preview

        path = path or runs_dir / free_name(runs_dir, options)
        print_preview(options, given, path, resume, source is not None, device_memory, nproc or 1)
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))  # before torch starts its thread pool
    if start_ranks(nproc, options.device):
        return

    from sspo_cli import ranks
    from sspo_cli.session import resume_run, start_run

    with ranks.explained_loss("start the command again"):
        if resume and path:
            resume_run(path, options, sys.argv, keep_going)
        else:
            path = path or runs_dir / ranks.on_first(lambda: free_name(runs_dir, options))
            start_run(options, path, sys.argv, keep_going)
    ranks.stop()


@app.command("eval")
def eval_command(
    context: typer.Context,
    target: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN[@STEP]_OR_MODEL...",
            help="Runs, checkpoints or Hugging Face models; all are compared with the first.",
        ),
    ] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            "-b",
            "--benchmark",
            help="arithmetic, gsm8k, math500, aime24, aime25, any as NAME=PATH:SPLIT, or a file of {question, answer}.",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, max=10**5, help="Number of completions per problem, for avg@n and pass@k.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Sampling temperature; 0 is greedy.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=1e-6, max=1, help="Sample only from the fewest tokens with this total probability."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, max=10**9, help="Sample only from this number of most probable tokens.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, max=10**7, help="Token limit of a completion.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Seed of the sampling.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Checkpoint of a run: last (the default), best, or a step.")
    ] = None,
    engine: EngineName = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, max=10**9, help="Measure only the first problems, this many; results are not recorded."),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Repeat measurements that are recorded for the same weights and conditions.")
    ] = False,
    completions: Annotated[
        Path | None, typer.Option(help="Grade a file of recorded {gold, completion} rows; no model is sampled.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output file of --completions.")] = None,
    config: Config = None,
    set_: Set = None,
    nproc: Nproc = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Measure Pass@1 with its 95 % interval, with the prompt, extraction and check of training; greedy by default.

    A run is measured with its own options; -c and -s are for models outside a run. Without them, such a model is measured like
    the first run that is named with it.
    """
    refuse_wrong_ranks(os.environ, nproc)
    if bool(target) == bool(completions):
        raise UserError("give runs or models to measure, or --completions FILE with recorded outputs")
    if checkpoint == "":
        raise UserError("--checkpoint is empty; use last, best or a step")
    if out and not completions:
        raise UserError("--out applies only to --completions; a model's results are stored in its eval folder")
    if again and limit:
        raise UserError("results with --limit are never recorded, so they are always measured again; leave out --again")

    from sspo_cli.config import merge_config, refuse_unread, validate, with_episodes

    refuse_unread(set_ or [], bool(completions))
    given = with_episodes(merge_config(config or [], set_ or []), benchmark or []) if config or set_ else None
    conditions = {"samples": samples, "temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
    conditions |= {"top_p": top_p, "top_k": top_k}
    changes = {name: value for name, value in conditions.items() if value is not None}
    if completions:
        if is_rank(os.environ) or nproc:
            raise UserError("recorded outputs are graded by one process; leave out --nproc and torchrun")
        if changes or benchmark or checkpoint or engine or limit or again:
            raise UserError("nothing is sampled with --completions; leave out sampling options")
        if str(context.get_parameter_source("runs_dir")).endswith("COMMANDLINE"):  # not from SSPO_RUNS
            raise UserError("--completions reads no runs; leave out --runs-dir")

        from sspo_cli.evaluation.recorded import grade_file

        grade_file(completions, out, validate(given or {}).answer_timeout)
        return

    from sspo_cli import ranks
    from sspo_cli.evaluation.command import measure
    from sspo_cli.evaluation.targets import find_targets

    devices = {each.options.device for each in find_targets(target or [], checkpoint, given, runs_dir)}
    if start_ranks(nproc, "cpu" if devices == {"cpu"} else max(devices - {"cpu"}), is_training=False):
        return

    with _naming_the_command(), ranks.explained_loss("the same command continues from what is done"):
        measure(target or [], benchmark or [], changes, checkpoint, limit, given, runs_dir, engine, again, set_ or [])
    ranks.stop()


@app.command("sweep")
def sweep_command(
    config: Annotated[
        Path, typer.Option("-c", "--config", help="The sweep's YAML file, or a preset of `sspo configs`.")
    ],
    set_: Set = None,
    jobs: Annotated[
        int,
        typer.Option(
            min=1, max=1024, help="Number of parallel trials on each GPU, or on this machine if it has no GPU."
        ),
    ] = 1,
    nproc: Annotated[
        int,
        typer.Option(
            "--nproc", min=1, max=1024, help="Number of ranks of each trial, one per GPU of the same machine."
        ),
    ] = 1,
    retries: Annotated[int, typer.Option(min=0, max=1000, help="Number of times that a failed trial is retried.")] = 1,
    ray: Annotated[
        str | None, typer.Option(metavar="auto|local|ADDRESS", help="Run the trials on a Ray cluster.")
    ] = None,
    max_trials: Annotated[int, typer.Option(min=1, help="Maximum number of trials.")] = 5000,
    name: Annotated[str | None, typer.Option(help="Name of the sweep's folder; default: the file's name.")] = None,
    dry_run: DryRun = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Run a grid of trials in processes; the same command continues a stopped sweep."""
    refuse_several_ranks(os.environ)
    if name is not None:
        check_name("--name", name)
    if ray == "":
        raise UserError("--ray is empty; give auto, local or an address")

    from sspo_cli.config.presets import SWEEPS, find_config
    from sspo_cli.examination import examine_trials
    from sspo_cli.sweep import load_sweep, machine_for, place_for, print_trials, refuse_shared_servers, run_sweep

    config = find_config(config, SWEEPS)

    trials, folder = load_sweep(config, set_ or [], runs_dir, max_trials), runs_dir / (name or config.stem)
    examine_trials([trial.options for trial in trials], nproc, here=ray is None)
    if ray is not None:
        refuse_shared_servers(trials)
    if dry_run:
        machine = machine_for(trials, jobs, nproc) if ray is None else None
        places = f", {machine.layout}" if machine else ", each on one node"
        print_trials(trials, folder, f" of {nproc} ranks{places}" if nproc > 1 else "")
        if machine and (note := machine.note(trials)):
            print(note)
        return
    with _naming_the_command(), place_for(trials, jobs, nproc, ray) as place:
        run_sweep(trials, folder, place, retries)


@contextmanager
def _naming_the_command() -> Iterator[None]:
    """Append the command line to an error that says that the same command continues."""
    try:
        yield
    except (Interrupted, UserError) as error:
        if "the same command" not in str(error):
            raise
        program, _ = starting_words(os.environ)
        raise type(error)(f"{error}: {redacted(command_line(*program, *sys.argv[1:]))}") from None


@app.command("report")
def report_command(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_OR_FOLDER...", help="Runs and measured models by name or folder, or folders of them."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for tables and figures.")] = Path("report"),
    paper: Annotated[bool, typer.Option("--paper", help="Add the numbers printed in the paper.")] = False,
    select: Annotated[
        Literal["last", "best"],
        typer.Option(help="Checkpoint of each run in the tables: the last, or the best by validation."),
    ] = "last",
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Write tables, figures and a page from run folders."""
    from sspo_cli.named_runs import require_sources
    from sspo_cli.report import write_report

    command = ["sspo", *sys.argv[1:]]
    page, *others = write_report(require_sources(runs, runs_dir), out, paper=paper, select=select, command=command)
    print(page)
    kinds = Counter(path.suffix.removeprefix(".") for path in others)
    print(f"next to it: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}")


app.command("options")(options_command)
app.command("configs")(configs_command)
app.command("ls")(ls_command)
app.command("export")(export_command)
