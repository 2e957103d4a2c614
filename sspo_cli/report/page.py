"""A report: tables, figures and the page that puts them together."""

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import pandas as pd
from jinja2 import Environment

from sspo_cli.report.figures import entropy_figure, gates_figure, reward_figure, save, training_figure
from sspo_cli.report.runs import Collection, Group, Run, collect
from sspo_cli.report.tables import before_and_after, for_reading, to_latex, to_markdown
from sspo_cli.tracking.files import explain_os_errors, write_text_atomic


def write_report(paths: Sequence[Path], out: Path) -> list[Path]:
    """Writes tables, figures and report.md in `out`, over those of an earlier report, and returns their paths.

    Each of `paths` is a run folder or a folder of them. Raises UserError where there is no run to read, or where `out`
    cannot be written.
    """
    collection = collect(paths)
    groups = collection.groups
    with explain_os_errors("write", out):
        out.mkdir(parents=True, exist_ok=True)
        figures = [("Reward", "reward"), ("Entropy", "entropy"), ("The gates against clip", "gates")]
        written = [
            *save(reward_figure(groups), out, "reward"),
            *save(entropy_figure(groups), out, "entropy"),
            *save(gates_figure(), out, "gates"),
        ]
        for name, group in _training_names(groups):
            figures.append((f"Training: {group.label}, {group.setting}", name))
            written += save(training_figure(group), out, name)

    table = before_and_after(groups)
    texts = {"pass_at_1.csv": table.to_csv(index=False)}
    if len(table):
        readable = for_reading(table)
        texts |= {"pass_at_1.md": to_markdown(readable), "pass_at_1.tex": to_latex(readable)}
    template = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True).from_string(
        resources.files("sspo_cli.report").joinpath("page.md.jinja").read_text(encoding="utf-8")
    )
    texts["report.md"] = template.render(
        table=texts.get("pass_at_1.md"),
        conditions=_conditions(table),
        warnings=_warnings(collection),
        figures=figures,
        runs=_runs_table(groups).to_markdown(index=False),
    )
    for name, text in texts.items():
        write_text_atomic(out / name, text)
    return [out / "report.md", *(out / name for name in texts if name != "report.md"), *written]


def _training_names(groups: Sequence[Group]) -> list[tuple[str, Group]]:
    """`training` where there is one configuration, else a name for each."""
    if len(groups) == 1:
        return [("training", groups[0])]
    names = [re.sub(r"[^a-z0-9.]+", "-", f"training-{g.setting}-{g.label}".lower()).strip("-") for g in groups]
    return list(zip(names, groups, strict=True))


def _conditions(table: pd.DataFrame) -> str:
    """What every measurement in the table was made with, in a sentence each."""
    sentences = []
    for row in table.drop_duplicates("column").to_dict("records"):
        decoding = "greedy" if row["temperature"] == 0 else f"temperature {row['temperature']}"
        sentences.append(
            f"{row['column']}: {row['split']} split, n = {row['n']} problems, {decoding}, "
            f"at most {row['max_new_tokens']} new tokens, prompt `{row['prompt']}`."
        )
    return " ".join(sentences)


def _warnings(collection: Collection) -> list[str]:
    """Every run that is not wholly in the table, by name."""
    warnings = [sentence for run in collection.runs if (sentence := _shortfall(run))]
    return warnings + [f"{sentence}; left out." for sentence in collection.left_out]


def _shortfall(run: Run) -> str | None:
    where = f"`{run.path}` (seed {run.options.seed})"
    if not run.finished:
        reason = f": {run.reason}" if run.reason else ""
        return f"{where} is {run.state} at step {run.step} of {run.options.steps}{reason}; its evaluations are not counted."
    measured = {evaluation["step"] for evaluation in run.evaluations}
    if run.options.steps not in measured:
        return f"{where} is finished, but was not evaluated after its last step."
    if 0 not in measured:
        return f"{where} was not evaluated before its first step."
    return None


def _runs_table(groups: Sequence[Group]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "run": f"`{run.path}`",
            "method": group.label,
            "model and data": group.setting,
            "seed": run.options.seed,
            "state": run.state,
            "steps": f"{run.step}/{run.options.steps}",
        }
        for group in groups
        for run in group.runs
    )
