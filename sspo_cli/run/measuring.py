"""Evaluation of a run on its benchmarks during training."""

from sspo_cli import ranks
from sspo_cli.evaluation.benchmark import Benchmark, Conditions
from sspo_cli.evaluation.identity import Identity
from sspo_cli.evaluation.partial import partial_path
from sspo_cli.evaluation.sampling import evaluate
from sspo_cli.evaluation.summary import record
from sspo_cli.interruption import Interrupted
from sspo_cli.policy.model import fingerprint
from sspo_cli.run.saving import checkpoint_path, drop_old_checkpoints, save
from sspo_cli.run.state import Run
from sspo_cli.tracking.dead import evaluation_signs


def measure_if_due(run: Run) -> None:
    """Measure Pass@1 on every benchmark before the first step, every `evaluation.every` steps, and after the last step.

    Results are written to the run folder and passed to the tracker. Benchmarks that are already measured at the current step,
    as after a resume, are skipped. If the run has validation problems, a checkpoint is saved at each measured step, and the
    best checkpoint so far is not deleted.

    If the user asks to stop, saves the state and the finished problems, and raises Interrupted.
    """
    options, step = run.options, run.state.step
    every = options.evaluation.every
    if step not in (0, options.steps) and not (every and step % every == 0):
        return
    conditions = {benchmark.name: Conditions.of(options).on(benchmark) for benchmark in run.benchmarks}
    identities = {
        benchmark.name: Identity.of(
            benchmark.prompts, options.template, conditions[benchmark.name].sampler(run.engine.name)
        )
        for benchmark in run.benchmarks
    }
    summaries = [row for row in run.folder.evaluations() if row["step"] == step]

    def is_measured(benchmark: Benchmark) -> bool:
        name = benchmark.name
        return any(
            row["benchmark"] == name and conditions[name].matches(row, identities[name], "prompt") for row in summaries
        )

    if options.evaluation.validation and not ranks.on_first(checkpoint_path(run).exists):
        save(run)

    def advance(problems: int) -> None:
        run.tracker.advance(problems)
        if ranks.anywhere(run.interruption.requested):
            raise Interrupted

    if benchmarks := [benchmark for benchmark in run.benchmarks if not is_measured(benchmark)]:
        run.engine.sync(run.policy)
        weights = fingerprint(run.policy)
    for benchmark in benchmarks:
        under, identity = conditions[benchmark.name], identities[benchmark.name]
        partial = partial_path(run.folder.eval, benchmark, under, identity, weights)
        with run.tracker.stage(f"evaluating on {benchmark.name}", len(benchmark.prompts)):
            try:
                answers = evaluate(run.engine, benchmark, run.checker, under, identity, advance, partial, run.stage)
            except Interrupted:
                save(run)
                raise
        measured = benchmark.measured_on(run.folder)
        summary = record(run.folder.eval, answers, measured, under, identity, step, f"step-{step}", weights)
        if ranks.is_first():
            partial.unlink()
        run.tracker.evaluation(step, benchmark.name, summary)
        for sign in evaluation_signs(answers, options.silent_template):
            run.tracker.note(f"health: {benchmark.name}: {sign}")
    run.engine.sleep()
    drop_old_checkpoints(run)
