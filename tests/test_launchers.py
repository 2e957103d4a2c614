"""Several ranks of one job are refused, because each would train a copy; a single rank is an ordinary process."""

import sys
from pathlib import Path

import pytest
from commands import assert_error, sspo

from sspo_cli.launchers import VARIABLES, is_rank, refuse_several_ranks, refuse_wrong_ranks, starting_words
from sspo_cli.sweep.place import spawn

SEVERAL = {
    "torchrun, the first rank": {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
    "torchrun, another rank": {"WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1"},
    "a rank alone": {"LOCAL_RANK": "1"},
    "srun, the first task": {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"},
    "srun in a batch script": {
        "ENVIRONMENT": "BATCH",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "3",
    },
    "srun, little said": {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"},
    "Open MPI": {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
    "MPICH": {"PMI_SIZE": "2", "PMI_RANK": "1"},
}
ONE = {
    "torchrun with one process": {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
    "srun with one task": {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
    "one task of a larger job": {
        "SLURM_STEP_ID": "1",
        "SLURM_STEP_NUM_TASKS": "1",
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "0",
    },
    "a batch script of four tasks": {
        "ENVIRONMENT": "BATCH",
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "0",
    },
    "the shell of salloc": {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"},
    "a variable of something else": {"WORLD_SIZE": "large", "RANK": ""},
}
COMMANDS = {
    "train": ["train", "--dry-run"],
    "eval": ["eval", "no-run"],
    "sweep": ["sweep", "-c", "configs/sweeps/demo.yaml", "--dry-run"],
}


TORCHRUN = {"WORLD_SIZE": "16", "RANK": "3", "LOCAL_RANK": "3", "MASTER_ADDR": "node1", "MASTER_PORT": "4", "X": "y"}


@pytest.mark.parametrize(
    ("environment", "program", "several"),
    [
        ({}, "sspo", ""),
        ({**TORCHRUN, "SSPO_SUPERVISED": "1", "LOCAL_WORLD_SIZE": "16"}, "sspo", "--nproc 16"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "16"}, "torchrun --nproc-per-node 16 -m sspo_cli --", ""),
        (
            {**TORCHRUN, "LOCAL_WORLD_SIZE": "8"},
            "torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint node1:29500 --nproc-per-node 8 -m sspo_cli --",
            "",
        ),
    ],
)
def test_a_command_is_repeated_by_the_launcher_that_has_started_it(environment, program, several):
    assert starting_words(environment) == (program.split(), several.split())


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch):
    for name in (*VARIABLES, "SLURM_STEP_ID", "SLURM_STEPID", "ENVIRONMENT", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", SEVERAL)
def test_several_ranks_are_refused(monkeypatch, tmp_path, kind, command):
    for name, value in SEVERAL[kind].items():
        monkeypatch.setenv(name, value)
    done = sspo(*COMMANDS[command], "--runs-dir", tmp_path)
    assert_error(done, "this process was started as one of several")
    assert not done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ONE)
def test_one_rank_is_a_process_like_another(kind):
    refuse_wrong_ranks(ONE[kind], None)
    refuse_several_ranks(ONE[kind])
    assert not is_rank(ONE[kind])


def test_one_rank_may_train(monkeypatch, tmp_path):
    for name, value in {**ONE["torchrun with one process"], **ONE["srun with one task"]}.items():
        monkeypatch.setenv(name, value)
    assert sspo("train", "--dry-run", "--runs-dir", tmp_path).returncode == 0


def test_a_sweep_s_trial_on_a_node_that_srun_started_is_no_rank(monkeypatch, tmp_path):
    """The nodes of a Ray cluster may be tasks of a SLURM job, whose variables must not reach a trial."""
    for name, value in {**SEVERAL["torchrun, another rank"], **SEVERAL["srun in a batch script"]}.items():
        monkeypatch.setenv(name, value)
    code = f"import os, sys; sys.exit(any(name in os.environ for name in {VARIABLES}))"
    assert spawn([sys.executable, "-c", code], {}, Path(tmp_path / "log")).wait() == 0
