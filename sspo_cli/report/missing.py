"""Sentences about missing or incomparable data of a report."""

from collections.abc import Iterator, Sequence

import pandas as pd

from sspo_cli.config import VALIDATION, flatten
from sspo_cli.errors import command_line, quantity
from sspo_cli.report.collect import Collection
from sspo_cli.report.frame import BARE, BASE, TRAINED, split, with_headings
from sspo_cli.report.groups import RunGroup, distinguish, grouped, method_name
from sspo_cli.report.records import RunRecord, Select
from sspo_cli.tracking.measurement import IDENTITY, MEASUREMENT, describe, has_identity


def missing(collection: Collection) -> list[str]:
    """List missing and incomparable data, in sentences that name the run, the configuration or the benchmark."""
    tests = collection.frame[collection.frame["benchmark"] != VALIDATION]
    trained = tests[tests["kind"] == TRAINED]
    measured = dict(split(trained, "source"))
    bare = set(tests.loc[tests["kind"] == BARE, "source"])
    return [
        *(sentence for run in collection.runs for sentence in _missing_of(run, measured.get(run), collection.select)),
        *(
            f"`{model.path}` holds no evaluation of {model.name}."
            for model in collection.bare_models
            if model not in bare
        ),
        *(
            sentence
            for setting, groups in grouped(collection.groups, lambda group: group.setting).items()
            for sentence in _missing_in(setting, groups, tests[tests["setting"] == setting])
        ),
        *_without_curves(collection.runs),
        *_measured_in_several_ways(tests),
        *_contaminated(tests),
        *(f"{sentence}; left out." for sentence in collection.left_out),
    ]


def _without_curves(runs: Sequence[RunRecord]) -> list[str]:
    recorded = [len(run.metrics) for run in runs if len(run.metrics)]
    if recorded and max(recorded) == 1:
        return ["No run has metrics of two steps, so there are no training curves."]
    return []


def _named(run: RunRecord) -> str:
    return f"`{run.path}` (seed {run.seed})"


def _missing_of(run: RunRecord, tests: pd.DataFrame | None, select: Select) -> Iterator[str]:
    """Yield a sentence if a run is unfinished or lacks evaluations. `tests` has its benchmark evaluations, or is None."""
    if not run.finished:
        reason = f": {run.reason}" if run.reason else ""
        yield (
            f"{_named(run)} is {run.state} at step {run.step} of {run.options.steps}{reason}; "
            "its evaluations are not counted."
        )
        return
    step = run.selected_step(select)
    if step is None:
        yield (
            f"{_named(run)} has no validation to choose a checkpoint by, so it is in no table; train with "
            "`evaluation.validation`, or report with `--select last`."
        )
    elif tests is None:
        yield f"{_named(run)} is finished, but has no evaluation."
    elif not tests["selected"].any():
        when = "after its last step" if select == "last" else f"at step {step}, its best by validation"
        command = command_line("sspo", "eval", run.path, "--checkpoint", select)
        yield f"{_named(run)} was not evaluated {when}; {command} evaluates it."


def _missing_in(setting: str, groups: Sequence[RunGroup], tests: pd.DataFrame) -> Iterator[str]:
    """Yield a sentence for each doubtful base, and for evaluations and seeds that only some runs or groups of a setting have."""
    yield from _doubts_about_the_base(setting, tests[tests["kind"] == BASE])
    at_step = {
        run: set(rows["benchmark"])
        for run, rows in split(tests[(tests["kind"] == TRAINED) & tests["selected"]], "source")
    }
    everywhere = sorted(set().union(*at_step.values()))
    for run in (run for group in groups for run in group.runs if run in at_step):
        if lacking := [name for name in everywhere if name not in at_step[run]]:
            yield f"{_named(run)} was not measured on {', '.join(lacking)} at the step that the tables show."
    seeds = {run.seed for group in groups for run in group.finished}
    for group in groups:
        if lacking := [str(seed) for seed in sorted(seeds - {run.seed for run in group.finished})]:
            yield (
                f"{group.label} in {setting} has no finished run of seed{'s' * (len(lacking) > 1)} {', '.join(lacking)}, "
                "which other configurations have."
            )
    yield from _seeds_that_differ(groups)


def _doubts_about_the_base(setting: str, base: pd.DataFrame) -> Iterator[str]:
    if base.empty:
        yield f"No run of {setting} was evaluated before its first step, so there is no base and no Δ Avg."
    for values, measured in split(base, *MEASUREMENT):
        if len(measured) > 1:
            shares = 100 * measured["pass_at_1"]
            yield (
                f"The base of {setting} is the mean over runs that do not agree on {values[0]} before their first step: "
                f"{shares.min():.1f} to {shares.max():.1f} %."
            )


def _seeds_that_differ(groups: Sequence[RunGroup]) -> Iterator[str]:
    """Yield a sentence on runs that may be mistaken for seeds of one configuration, and on seeds evaluated differently."""
    for variants in grouped(groups, lambda group: (group.method, group.gate)).values():
        seeds = [run.seed for group in variants for run in group.runs]
        if len(variants) > 1 and len(seeds) == len(set(seeds)):
            runs = "; ".join(f"{_named(group.runs[0])}: {group.details}" for group in variants)
            name = f"{method_name(variants[0].method)} {variants[0].gate}"
            yield f"The runs of {name} differ in more than the seed, and are not averaged: {runs}."
    for group in groups:
        flat = [dict(flatten(run.options.evaluation.model_dump(mode="json"), "evaluation.")) for run in group.runs]
        details = distinguish([group.label] * len(flat), flat)
        if any(details):
            runs = "; ".join(f"{_named(run)}: {detail}" for run, detail in zip(group.runs, details, strict=True))
            yield f"The seeds of {group.label} in {group.setting} are evaluated differently: {runs}."


def _measured_in_several_ways(tests: pd.DataFrame) -> Iterator[str]:
    tests = with_headings(pd.concat([tests[tests["kind"] == kind] for kind in (TRAINED, BARE)]))
    for benchmark, measured in split(tests, "benchmark"):
        if measured["column"].nunique() > 1:
            ways = []
            for column, alike in split(measured, "column"):
                first, *others = dict.fromkeys(source.path for source in alike["source"])
                more = f" and {len(others)} more" if others else ""
                ways.append(f"{str(column).removeprefix(f'{benchmark} ')} in `{first}`{more}")
            yield f"{benchmark} was measured in several ways, which have separate columns: {'; '.join(ways)}.{_why(measured)}"


def _why(measured: pd.DataFrame) -> str:
    """Explain which parts of the identity differ between these measurements of a benchmark; empty if none differ."""
    rows = measured[[*IDENTITY]].to_dict("records")
    known = [row for row in rows if has_identity(row)]
    why = describe({name for name in IDENTITY if len({row[name] for row in known}) > 1})
    if 0 < len(known) < len(rows):
        why.append("by an older version that recorded no fingerprints")
    return f" Some were measured {', some '.join(why)}." if why else ""


def _contaminated(tests: pd.DataFrame) -> Iterator[str]:
    """Yield a sentence for each benchmark that contains training problems of a run."""
    trained = tests[(tests["kind"] == TRAINED) & tests["trained_on"].fillna(0).astype(bool)]
    for (benchmark, seen, n), measured in split(trained, "benchmark", "trained_on", "n"):
        first, *others = dict.fromkeys(measured["source"])
        more = f" and {len(others)} more" if others else ""
        problems = f"{seen} of the {quantity(n, 'problem')} of {benchmark}"
        yield f"{_named(first)}{more} was trained on {problems}, so its score there is not a test result."
