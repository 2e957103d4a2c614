"""What a reader would miss in a report, told in sentences."""

from collections.abc import Iterator, Sequence

import pandas as pd

from sspo_cli.config import flatten
from sspo_cli.report.measurements import base_of, by, measurement_of, tests_of, with_headings
from sspo_cli.report.runs import BareModel, Collection, Group, Run, Select, distinguish, method_name


def missing(collection: Collection, select: Select = "last") -> list[str]:
    """What a reader would miss in the tables, in a sentence each that names the run, the configuration or the benchmark."""
    return [
        *(sentence for run in collection.runs for sentence in _missing_of(run, select)),
        *(sentence for bare in collection.bare_models if (sentence := _missing_of_bare(bare))),
        *(sentence for setting in collection.settings for sentence in _missing_in(collection, setting, select)),
        *_measured_in_several_ways(collection),
        *(f"{sentence}; left out." for sentence in collection.left_out),
    ]


def _named(run: Run) -> str:
    return f"`{run.path}` (seed {run.options.seed})"


def _missing_of(run: Run, select: Select) -> Iterator[str]:
    if not run.finished:
        reason = f": {run.reason}" if run.reason else ""
        yield (
            f"{_named(run)} is {run.state} at step {run.step} of {run.options.steps}{reason}; "
            "its evaluations are not counted."
        )
        return
    step = run.selected_step(select)
    measured = {evaluation["step"] for evaluation in tests_of(run)}
    if step is None:
        yield (
            f"{_named(run)} has no validation to choose a checkpoint by, so that it is in no table; train with "
            "`evaluation.validation`, or report with `--select last`."
        )
    elif not measured:
        yield f"{_named(run)} is finished, but has no evaluation."
    elif step not in measured:
        when = "after its last step" if select == "last" else f"at step {step}, its best by validation"
        yield f"{_named(run)} was not evaluated {when}; `sspo eval {run.path} --checkpoint {select}` does it."


def _missing_of_bare(bare: BareModel) -> str | None:
    return None if tests_of(bare) else f"`{bare.path}` holds no evaluation of {bare.name}."


def _missing_in(collection: Collection, setting: str, select: Select) -> Iterator[str]:
    """What some runs of a setting have and others have not."""
    groups = [group for group in collection.groups if group.setting == setting]
    base = base_of(groups)
    if not base:
        yield f"No run of {setting} was evaluated before its first step, so that there is no base and no Δ Avg."
    for benchmark, same in by(base, lambda measured: measured.evaluation["benchmark"]).items():
        for _, alike in by(same, lambda measured: measurement_of(measured.evaluation)).items():
            if len(alike) > 1:
                shares = sorted(100 * measured.evaluation["pass_at_1"] for measured in alike)
                yield (
                    f"The base of {setting} is the mean over runs that do not agree on {benchmark} before their first step: "
                    f"{shares[0]:.1f} to {shares[-1]:.1f} %."
                )
    at_step = {
        run.path: {e["benchmark"] for e in tests_of(run) if e["step"] == run.selected_step(select)}
        for group in groups
        for run in group.runs
        if run.finished
    }
    everywhere = sorted(set().union(*at_step.values()))
    for run in (run for group in groups for run in group.runs if at_step.get(run.path)):
        if lacking := [name for name in everywhere if name not in at_step[run.path]]:
            yield f"{_named(run)} was not measured on {', '.join(lacking)} at the step that the tables show."
    seeds = {run.options.seed for group in groups for run in group.runs if run.finished}
    for group in groups:
        finished = {run.options.seed for run in group.runs if run.finished}
        if lacking := sorted(seeds - finished):
            yield (
                f"{group.label} in {setting} has no finished run of seed{'s' * (len(lacking) > 1)} "
                f"{', '.join(map(str, lacking))}, "
                "which other configurations have."
            )
    yield from _seeds_that_differ(groups)


def _seeds_that_differ(groups: Sequence[Group]) -> Iterator[str]:
    """Runs that look like seeds of one configuration but differ in an option; seeds whose evaluations were set up differently."""
    for same in by(groups, lambda group: (group.method, group.gate)).values():
        seeds = [run.options.seed for group in same for run in group.runs]
        if len(same) > 1 and len(seeds) == len(set(seeds)):
            runs = "; ".join(f"{_named(group.runs[0])}: {group.details}" for group in same)
            name = f"{method_name(same[0].method)} {same[0].gate}"
            yield f"The runs of {name} differ in more than the seed, and are not averaged: {runs}."
    for group in groups:
        flat = [dict(flatten(run.options.evaluation.model_dump(mode="json"), "evaluation.")) for run in group.runs]
        details = distinguish([group.label] * len(flat), flat)
        if any(details):
            runs = "; ".join(f"{_named(run)}: {detail}" for run, detail in zip(group.runs, details, strict=True))
            yield f"The seeds of {group.label} in {group.setting} are evaluated differently: {runs}."


def _measured_in_several_ways(collection: Collection) -> Iterator[str]:
    sources: list[Run | BareModel] = [*collection.runs, *collection.bare_models]
    rows = [{**evaluation, "path": source.path} for source in sources for evaluation in tests_of(source)]
    if not rows:
        return
    frame = with_headings(pd.DataFrame(rows))
    for benchmark, same in frame.groupby("benchmark", sort=False):
        if same["column"].nunique() > 1:
            ways = []
            for column, alike in same.groupby("column", sort=False):
                first, *others = alike["path"].unique()
                more = f" and {len(others)} more" if others else ""
                ways.append(f"{str(column).removeprefix(f'{benchmark} ')} in `{first}`{more}")
            yield f"{benchmark} was measured in several ways, which share no column: {'; '.join(ways)}."
