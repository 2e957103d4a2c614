"""Runs that are extended, and runs that start from another run's checkpoint."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from commands import assert_error, sspo
from small_runs import SMALL, rows
from torch import allclose, load
from transformers import AutoModelForCausalLM

from sspo_cli.config import Given, OptimizerOptions, load_config
from sspo_cli.policy.optimizer import describe_new_end
from sspo_cli.report.collect import collect
from sspo_cli.sweep import load_sweep
from sspo_cli.sweep.grid import check_trials


def config(run: Path) -> dict:
    return json.loads((run / "config.json").read_text())


def tensors(checkpoint: Path) -> dict:
    return AutoModelForCausalLM.from_pretrained(checkpoint).state_dict()


def moments(checkpoint: Path) -> dict:
    return load(checkpoint / "trainer.pt", weights_only=True)["optimizer"]["state"]


@pytest.fixture(scope="module")
def family(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of runs: `whole`, a copy of it that was extended, two forks of the copy, and a fork of a fork."""
    runs = tmp_path_factory.mktemp("family")
    for name in ("whole", "extended"):
        shutil.copytree(undisturbed, runs / name)
    commands = [
        "--resume --run extended -s steps=12 -s evaluation.every=100 -s checkpoint.keep=5",
        "--from extended@10 --run bare -s steps=1 -s evaluation.every=null",
        "--from extended@10 --run primed -s steps=1 --with-optimizer -s optimizer.betas=[0.8,0.9]",
        "--from primed --run grandchild -s steps=1 --method gspo -s seed=1",
    ]
    for command in commands:
        done = sspo("train", "--runs-dir", runs, *shlex.split(command))
        assert done.returncode == 0, done.stderr
    return runs


def test_an_extended_run_continues_where_it_had_ended(family: Path, undisturbed: Path):
    extended = family / "extended"
    assert [row["step"] for row in rows(extended / "metrics.jsonl")] == list(range(1, 13))
    assert rows(extended / "metrics.jsonl")[:10] == rows(undisturbed / "metrics.jsonl")
    about = config(extended)
    assert about["extended"] == [{"after": 10, "steps": [10, 12]}]
    assert (about["options"]["steps"], about["options"]["checkpoint"]["keep"]) == (12, 5)
    assert json.loads((extended / "status.json").read_text())["state"] == "finished"


def test_a_schedule_that_ends_later_says_how_the_rate_changes():
    linear = OptimizerOptions(learning_rate=0.2, warmup_steps=0, schedule="linear")
    said = describe_new_end(linear, 5, before=10, after=20)
    assert (
        said
        == "optimizer.schedule = linear now ends at step 20 instead of 10: the learning rate of step 6 is 0.15 instead of 0.1"
    )
    warming = linear.model_copy(update={"warmup_steps": 5})  # step 7 is the first with another rate
    assert describe_new_end(warming, 2, before=10, after=20) == (
        "optimizer.schedule = linear now ends at step 20 instead of 10: the learning rate of step 7 is 0.187 instead of 0.16"
    )
    assert (
        describe_new_end(warming, 2, before=2, after=3) == "optimizer.schedule = linear now ends at step 3 instead of 2"
    )
    assert describe_new_end(linear.model_copy(update={"schedule": "constant"}), 5, before=10, after=20) is None


def test_a_fork_starts_with_the_weights_of_its_source_and_with_its_moments_only_if_asked(family: Path):
    source = family / "extended" / "checkpoints" / "step-10"
    for name in ("bare", "primed"):
        begun = family / name / "checkpoints" / "step-0"
        theirs = tensors(source)
        assert all(allclose(tensor, theirs[key], rtol=0, atol=0) for key, tensor in tensors(begun).items())
    assert moments(family / "bare" / "checkpoints" / "step-0") == {}
    ours, theirs = moments(family / "primed" / "checkpoints" / "step-0"), moments(source)
    assert ours.keys() == theirs.keys() != set()
    assert all((ours[key]["exp_avg"] == theirs[key]["exp_avg"]).all() for key in theirs)
    groups = load(family / "primed" / "checkpoints" / "step-1" / "trainer.pt", weights_only=True)["optimizer"]
    assert {tuple(group["betas"]) for group in groups["param_groups"]} == {(0.8, 0.9)}


def test_a_fork_has_its_source_s_options_and_says_what_it_is(family: Path):
    source, fork, grandchild = (config(family / name) for name in ("extended", "primed", "grandchild"))
    own = {"fork", "steps", "cold_start", "optimizer"}
    assert {k: v for k, v in fork["options"].items() if k not in own} == {
        k: v for k, v in source["options"].items() if k not in own
    }
    assert fork["options"]["cold_start"]["steps"] == 0
    assert fork["options"]["fork"] == {key: fork["origin"][key] for key in fork["options"]["fork"]}
    assert (fork["origin"]["run"], fork["origin"]["step"]) == (str(family / "extended"), 10)
    assert fork["origin"]["extended"] == source["extended"]
    assert grandchild["origin"]["origin"] == fork["origin"]
    assert (grandchild["options"]["objective"]["method"], grandchild["options"]["seed"]) == ("gspo", 1)


def test_the_report_pools_none_of_them_with_the_others(family: Path):
    groups = collect([family]).groups
    assert sorted(len(group.runs) for group in groups) == [1] * 5
    assert len({group.setting for group in groups}) == 5
    extended = next(group for group in groups if group.runs[0].path.name == "extended")
    assert "extended at step 10 from 10" in extended.setting


def test_seeds_that_were_forked_from_one_checkpoint_are_seeds_of_one_configuration(family: Path, tmp_path: Path):
    shutil.copytree(family / "bare", tmp_path / "bare")
    shutil.copytree(family / "bare", tmp_path / "other")
    about = config(tmp_path / "other")
    about["options"]["seed"] = 1
    (tmp_path / "other" / "config.json").write_text(json.dumps(about))
    (group,) = collect([tmp_path]).groups
    assert len(group.runs) == 2


def test_a_fork_needs_its_source_no_longer(family: Path, tmp_path: Path):
    shutil.copytree(family / "primed", tmp_path / "primed")
    about = config(tmp_path / "primed")
    about["options"]["fork"]["run"] = str(tmp_path / "deleted")
    (tmp_path / "primed" / "config.json").write_text(json.dumps(about))
    done = sspo("train", "--resume", "--run", tmp_path / "primed", steps=2)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "primed" / "checkpoints")
    done = sspo("train", "--resume", "--run", tmp_path / "primed", steps=3)
    assert_error(
        done, f"fork.run = {tmp_path / 'deleted'}: there is no such run; if it has moved, set fork.run to its folder"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--from none", "--from none: there is no run none in"),
        ("--from none@3", "--from none@3: there is no run none in"),
        ("--from whole@3", "has no checkpoint 3; use last, best or one of its steps: 9, 10"),
        ("--from whole@best", "has no best checkpoint"),
        ("--from whole@", "has no checkpoint after the @; write whole@last"),
        ("--from whole/checkpoints/step-9@10", "names two checkpoints"),
        ("--from whole --resume --run whole", "exclude each other"),
        ("--with-optimizer", "--with-optimizer needs --from"),
        ("--from whole -s model.tiny.layers=2", "whole (model.tiny.layers: 1 -> 2)"),
        ("--from whole -s model.lora.rank=4", "whole (model.lora"),
        ("--from whole -s model.name=other", "whole (model.name: None -> other)"),
        ("--from whole --with-optimizer -s optimizer.eight_bit=true", "optimizer.eight_bit: False -> True"),
        ("--from whole --with-optimizer -s cold_start.steps=3", "cold_start.steps = 3 would make stale"),
        ("--from whole -s fork.fingerprint=x", "does not have the fingerprint fork.fingerprint = "),
        ("--from whole -s fork.step=9", "fork.step is given, but --from whole names the run and its checkpoint"),
        ("--from whole -s 'fork={run: other}'", "fork.run is given, but --from whole names the run"),
        (
            "--from whole --with-optimizer -s fork.optimizer=false",
            "fork.optimizer = false contradicts --with-optimizer",
        ),
        ("--from damaged@10", "checkpoints/step-10 is damaged"),
        ("-s fork.run=damaged -s fork.step=10", "checkpoints/step-10 is damaged"),
    ],
)
def test_a_run_that_cannot_be_forked_is_refused_and_nothing_is_made(family: Path, words: str, said: str):
    damaged = family / "damaged"
    if not damaged.exists():
        shutil.copytree(family / "whole", damaged)
        (damaged / "checkpoints" / "step-10" / "config.json").write_text("{}")
    before = sorted(family.iterdir())
    assert_error(sspo("train", "--runs-dir", family, *shlex.split(words)), said)
    assert sorted(family.iterdir()) == before


def test_every_command_reads_a_checkpoint_as_run_at_step(family: Path, tmp_path: Path):
    """Commands that accept a run but no checkpoint name the run to give instead, also for a checkpoint's folder."""
    whole = ["--runs-dir", family]
    done = sspo("eval", "whole@9", "whole@last", *whole, "-b", "arithmetic", "--limit", 2)
    assert done.returncode == 0, done.stderr
    assert "whole@9: arithmetic Pass@1" in done.stderr + done.stdout
    assert_error(sspo("eval", "whole@3", *whole), "has no checkpoint 3; use last, best or one of its steps: 9, 10")
    assert_error(sspo("eval", "whole@9", *whole, "--checkpoint", "10"), "is a checkpoint already")
    done = sspo("export", "whole@9", tmp_path / "model", *whole)
    assert "checkpoints/step-9, its tokenizer" in done.stdout, done.stderr
    assert_error(sspo("export", "whole@none", tmp_path / "other", *whole), "has no checkpoint none")
    for name in ("whole@9", "whole/checkpoints/step-9"):
        assert_error(sspo("report", name, *whole), f"a report covers whole runs; name the run, {family / 'whole'}")
        resumed = sspo("train", "--resume", "--run", name, *whole)
        assert_error(resumed, f"start a new run from the checkpoint: `sspo train --from {name}`")


def test_what_may_not_change_is_refused_with_the_command_that_forks_instead(family: Path):
    done = sspo("train", "--runs-dir", family, "--run", "bare", "--resume", "--method", "gspo", "-s", "steps=2")
    assert_error(done, "objective.method: sspo -> gspo")
    assert "may only raise steps or change checkpoint, device, episode.parallel, evaluation.every" in done.stderr
    command = shlex.split(done.stderr.split("`")[1])
    assert command[:4] == ["sspo", "train", "--from", str(family / "bare")]
    done = sspo(*command[1:], "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "method: gspo" in done.stdout
    assert f"prompts: {SMALL['rollout.prompts']}" in done.stdout


def test_a_refused_extension_leaves_a_finished_run_finished(family: Path):
    status = (family / "whole" / "status.json").read_bytes()
    steps = json.loads(status)["steps"]
    resume = ("train", "--runs-dir", family, "--run", "whole", "--resume", "-s", "device=cuda:99")
    done = sspo(*resume, "-s", f"steps={steps + 1}")
    assert_error(done, "device = cuda:99 is not available here")
    assert "continues the run" not in done.stderr
    assert (family / "whole" / "status.json").read_bytes() == status


def test_options_are_laid_over_recorded_ones():
    recorded = load_config(
        overrides=["objective.tau_neg=0.7", "rollout.engine=vllm", "rollout.vllm.sleep=false", "tasks=[calculator]"]
    )
    torch = Given(overrides=["rollout.engine=torch"]).over(recorded)
    assert (torch.rollout.vllm, torch.objective.tau_neg) == (None, 0.7)
    server = Given(overrides=["rollout.vllm={server: http://a, exchange: b}"]).over(recorded)
    assert server.rollout.vllm.server == "http://a"
    assert Given(overrides=["objective.gate=siglog"]).over(recorded).objective.tau_neg == 0.3  # the default of siglog
    assert Given(overrides=["tasks=[arithmetic]"]).over(recorded).episode is None
    assert Given().over(recorded) == recorded


def test_a_trial_s_key_says_what_it_was_forked_from_and_an_extended_one_is_no_trial(family: Path, tmp_path: Path):
    def load_trials(*lines: str) -> list:
        (tmp_path / "s.yaml").write_text("\n".join([f"options: {{fork.run: {family / 'whole'}", *lines, "}"]))
        return load_sweep(tmp_path / "s.yaml", ["model.tiny={hidden_size: 32, heads: 1, layers: 1}"], family)

    keys = {
        trials[0].key
        for trials in (load_trials(), load_trials(", fork.step: 9"), load_trials(", fork.optimizer: true"))
    }
    assert len(keys) == 3
    (trial,) = load_trials()
    assert trial.options.cold_start.steps == 0
    shutil.copytree(family / "extended", tmp_path / trial.name)
    with pytest.raises(Exception, match="was extended from 10 to 12 steps, so it is no longer a trial of this sweep"):
        check_trials([trial], tmp_path)
