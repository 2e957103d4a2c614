"""A real vLLM server, sampled from over HTTP and updated through a folder."""

import os
import socket
import subprocess
import sys
import time

import httpx
import pytest
from vllm_cases import PROMPTS, differences, disturb, needs_vllm, sample, tiny_policy

from sspo_cli.config import RolloutOptions, VllmOptions
from sspo_cli.errors import UserError
from sspo_cli.rollout import open_engine
from sspo_cli.rollout.engine import Sampling
from sspo_cli.rollout.vllm_server import VllmServer

pytestmark = needs_vllm
START_SECONDS = 240


def free_port() -> int:
    with socket.socket() as at:
        at.bind(("127.0.0.1", 0))
        return at.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a server of an untied policy, its weights those before all updates."""
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    policy = tiny_policy(tied=False)
    policy.model.generation_config.update(do_sample=True, top_k=5)  # a recommendation that training must not follow
    policy.save(folder / "model")
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder / "model", "--port", port]
    command += ["--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", 1 << 26]
    command += ["--logprobs-mode", "processed_logprobs", "--max-num-seqs", 64]
    settings = {
        "VLLM_SERVER_DEV_MODE": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(list(map(str, command)), env=os.environ | settings, stdout=log, stderr=log)
    address, began = f"http://127.0.0.1:{port}", time.monotonic()
    while True:
        try:
            httpx.get(f"{address}/health").raise_for_status()
            break
        except httpx.HTTPError:
            late = time.monotonic() > began + START_SECONDS
            alive = process.poll() is None and not late
            assert alive, (folder / "log").read_text()[-3000:]
            time.sleep(0.5)
    yield address
    process.terminate()
    process.wait(timeout=60)


def test_updates_reach_the_server_and_the_log_probabilities_agree(server, tmp_path):
    policy = tiny_policy(tied=False)
    options = RolloutOptions(engine="vllm", vllm=VllmOptions(server=server, exchange=str(tmp_path)))
    engine = open_engine(options, policy, named=True)
    for update in range(3):
        disturb(policy, update)
        assert engine.sync(policy)["sampler/probe_drift"] < 1e-4
        for temperature in (1.0, 0.7):
            assert differences(policy, sample(engine, temperature=temperature), temperature).median() <= 1e-4
    told = []
    groups = engine.generate(
        PROMPTS, 4, Sampling(1.0, 24, 1), lambda prompt, completion: told.append((prompt, completion))
    )
    assert groups == engine.generate(PROMPTS, 4, Sampling(1.0, 24, 1))
    assert sorted(told, key=lambda pair: pair[0]) == [(i, c) for i, group in enumerate(groups) for c in group]
    assert all(len({tuple(c.token_ids) for c in group}) == 4 for group in groups)
    assert [path.name for path in (tmp_path / "sspo-weights").iterdir()] == ["model-0.safetensors"]


def test_a_server_of_another_model_is_noticed_at_the_first_sync(server, tmp_path):
    policy = tiny_policy()  # tied: the server's own projection stays
    engine = VllmServer(policy, VllmOptions(server=server, exchange=str(tmp_path)), 64, 1.0)
    with pytest.raises(UserError, match="log-probabilities differ from the policy's"):
        engine.sync(policy)
