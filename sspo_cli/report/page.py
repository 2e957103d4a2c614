"""Writing of a report: tables, figures and the pages that contain them."""

import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from sspo_cli import __version__
from sspo_cli.errors import UserError, command_line
from sspo_cli.redaction import redacted
from sspo_cli.report.answers import sample_answers
from sspo_cli.report.collect import Collection, collect
from sspo_cli.report.completions import sample_completions
from sspo_cli.report.figures import figures, save
from sspo_cli.report.health import signs_of_trouble
from sspo_cli.report.html import html_of, html_page, inline_svg, template
from sspo_cli.report.metrics import metrics_parquet
from sspo_cli.report.missing import missing
from sspo_cli.report.records import Select
from sspo_cli.report.tables import tables
from sspo_cli.tracking.files import (
    ABANDONED,
    explain_os_errors,
    remove_leftovers,
    write_bytes_atomic,
    write_text_atomic,
)
from sspo_cli.tracking.program import git_revision

IN_DETAIL = ("seeds", "paired", "configurations", "telemetry")  # names of long tables, which are collapsed on the page


def write_report(
    paths: Sequence[Path], out: Path, paper: bool = False, select: Select = "last", command: Sequence[str] = ()
) -> list[Path]:
    """Write tables, figures, metrics.parquet, report.md and index.html to the folder `out`.

    paths    run folders, or folders that contain run folders
    paper    add the paper's printed numbers to the tables
    select   checkpoint of each run that the tables show
    command  the user's command line, printed on the page

    Returns the paths of all files; index.html is the first. An earlier report in `out` is replaced, and its obsolete files are
    deleted. Files that no report wrote are kept. Raises UserError if there is neither a run nor a measured model, if `select`
    is `best` and no run holds out validation problems, if `out` cannot be written, or if `out` is in the folder of a run or of a
    measured model.
    """
    for folder in (out.resolve(), *out.resolve().parents):
        if (folder / "config.json").is_file() and (folder / "status.json").is_file():
            raise UserError(
                f"{out} is in the folder of run {folder}, where no report can be written; choose another --out"
            )
        if (folder / "model.json").is_file() and (folder / "eval").is_dir():
            raise UserError(
                f"{out} is in the folder of measured model {folder}, where no report can be written; choose another --out"
            )
    earlier = _files_of_report(out)
    with Console(stderr=True).status("reading runs") as status:  # shown on a terminal only
        collection = collect(paths, select)
        validated = (run for run in collection.runs if run.options.evaluation.validation or run.validations)
        if select == "best" and not any(validated):
            raise UserError(
                "--select best chooses checkpoints by held-out problems, but no run has any (evaluation.validation); leave it out"
            )
        with explain_os_errors("write", out):
            out.mkdir(parents=True, exist_ok=True)
            remove_leftovers(out, older_than=ABANDONED)
        written: list[Path] = []

        status.update("writing tables")
        all_tables = tables(collection, paper=paper)
        for table in all_tables:
            forms = {"md": table.to_markdown(), "tex": table.to_latex(), "csv": table.to_csv(), "json": table.to_json()}
            for suffix, text in forms.items():
                written.append(out / f"{table.name}.{suffix}")
                write_text_atomic(written[-1], text)

        if any(len(run.metrics) for run in collection.runs):
            written.append(out / "metrics.parquet")
            write_bytes_atomic(written[-1], metrics_parquet(collection))

        drawn: list[dict[str, str]] = []
        for figure in figures(collection):
            status.update(f"drawing figure {len(drawn) + 1}: {figure.title}")
            files = save(figure.figure, out, figure.name)
            written += files
            (svg,) = (path.read_bytes() for path in files if path.suffix == ".svg")
            texts = {"name": figure.name, "title": figure.title, "caption": figure.caption}
            drawn.append({**texts, "svg": inline_svg(svg, figure.name, figure.title)})

        status.update("writing pages")
        health, signs = signs_of_trouble(collection)
        parts = {
            "title": _title(collection),
            "summary": _summary(collection),
            "missing": missing(collection),
            "health": health,
            "signs": signs,
            "figures": drawn,
            "about": _about(command),
        }
        markdown = template("page.md.jinja").render(tables=[table.to_markdown() for table in all_tables], **parts)
        page = html_page(
            tables=html_of(table for table in all_tables if table.name not in ("runs", *IN_DETAIL)),
            details=[(table.title, html_of([table])) for table in all_tables if table.name in IN_DETAIL],
            runs=html_of(table for table in all_tables if table.name == "runs"),
            completions=sample_completions(collection.groups),
            answers=sample_answers(collection),
            files=" ".join(sorted(["index.html", "report.md", *(path.name for path in written)])),
            **parts,
        )
        pages = {"index.html": page, "report.md": markdown}
        for name, text in pages.items():
            write_text_atomic(out / name, text)
        for name in earlier - {*pages, *(path.name for path in written)}:
            with explain_os_errors("delete", out / name):
                (out / name).unlink(missing_ok=True)
    return [*(out / name for name in pages), *written]


def _title(collection: Collection) -> str:
    """Return the only setting, or the start that all settings share, or `Report`."""
    names = {group.start for group in collection.groups} if len(collection.settings) > 1 else {*collection.settings}
    return names.pop() if len(names) == 1 else "Report"


def _summary(collection: Collection) -> str:
    counts = {
        ("run", "runs"): len(collection.runs),
        ("configuration", "configurations"): len(collection.groups),
        ("setting", "settings"): len(collection.settings),
        ("model without a run", "models without a run"): len(collection.bare_models),
    }
    return ", ".join(f"{n} {singular if n == 1 else plural}" for (singular, plural), n in counts.items() if n) + "."


def _files_of_report(out: Path) -> set[str]:
    """Return the file names listed in the index.html of an earlier report, or an empty set if there is no earlier report."""
    try:
        page = (out / "index.html").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return set()
    listed = re.search(r'<meta name="sspo-files" content="([^"]*)">', page)
    return {name for name in (listed[1].split() if listed else ()) if Path(name).name == name}


def _about(command: Sequence[str]) -> str:
    """Describe the date, host, version and command of the report."""
    made = f"Made on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {platform.node()} by sspo {__version__}"
    revision = git_revision()
    made += f", revision `{revision}`" if revision else ""
    return f"{made}, with {redacted(command_line(*command))}." if command else f"{made}."
