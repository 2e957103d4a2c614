"""When a run is measured on its benchmarks."""

from sspo_cli.evaluation.benchmark import Conditions, evaluate, partial_path, record
from sspo_cli.interruption import Interrupted
from sspo_cli.policy.model import fingerprint
from sspo_cli.run.saving import checkpoint_path, drop_old_checkpoints, save
from sspo_cli.run.state import Run


def measure_if_due(run: Run) -> None:
    """Measure Pass@1 on every benchmark before the first step, after the last, and at the steps that the options name.

    Results go into the run folder and the tracker. What a run that is resumed here has measured already is not measured
    again. With validation problems, each measured step has a checkpoint, and the best of them so far is marked and kept.

    Raises Interrupted when asked to stop; the state is saved before, and what is done of the measurement.
    """
    options, step = run.options, run.state.step
    every = options.evaluation.every
    if step not in (0, options.steps) and not (every and step % every == 0):
        return
    conditions = {benchmark.name: Conditions.of(options).on(benchmark) for benchmark in run.benchmarks}
    measured = {
        name
        for row in run.folder.evaluations()
        if row["step"] == step and (name := row["benchmark"]) in conditions and conditions[name].matches(row, "prompt")
    }
    if options.evaluation.validation and not checkpoint_path(run).exists():
        save(run)

    def advance(problems: int) -> None:
        run.tracker.advance(problems)
        if run.interruption.requested:
            save(run)
            raise Interrupted

    if benchmarks := [benchmark for benchmark in run.benchmarks if benchmark.name not in measured]:
        run.engine.sync(run.policy)
        model = fingerprint(run.policy)
    for benchmark in benchmarks:
        under = conditions[benchmark.name]
        partial = partial_path(run.folder.eval, benchmark, under, model)
        with run.tracker.stage(f"evaluating on {benchmark.name}", len(benchmark.prompts)):
            answers = evaluate(run.engine, benchmark, run.checker, under, advance, partial)
        summary = record(run.folder.eval, answers, benchmark, under, step, f"step-{step}")
        partial.unlink()
        run.tracker.evaluation(step, benchmark.name, summary)
    run.engine.sleep()
    drop_old_checkpoints(run)
