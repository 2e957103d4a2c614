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
    conditions = Conditions.of(options)
    summaries = [row for row in run.folder.evaluations() if row["step"] == step and conditions.matches(row, "prompt")]
    measured = {row["benchmark"] for row in summaries}
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
        partial = partial_path(run.folder.eval, benchmark, conditions, model)
        with run.tracker.stage(f"evaluating on {benchmark.name}", len(benchmark.prompts)):
            answers = evaluate(run.engine, benchmark, run.checker, conditions, advance, partial, run.stage)
        summary = record(run.folder.eval, answers, benchmark, conditions, step, f"step-{step}")
        partial.unlink()
        run.tracker.evaluation(step, benchmark.name, summary)
    run.engine.sleep()
    drop_old_checkpoints(run)
