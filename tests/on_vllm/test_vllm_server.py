"""A real vLLM server that is sampled from over HTTP and updated through a folder."""

import os
import shlex
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from vllm_cases import PADDED, PROMPTS, differences, disturb, needs_vllm, sample, tiny_policy, unknown

from sspo_cli.config import RolloutOptions, VllmOptions
from sspo_cli.errors import UserError
from sspo_cli.rollout import open_engine
from sspo_cli.rollout.engine import Request, Sampling
from sspo_cli.rollout.vllm_server import HOW_TO_START, VllmServer

sys.path.insert(0, str(Path(__file__).parents[1]))
from commands import assert_error, sspo
from small_runs import rows, without_times

pytestmark = needs_vllm
START_SECONDS = 240
ROOM = 150  # maximum length of a sequence in tokens


def free_port() -> int:
    with socket.socket() as at:
        at.bind(("127.0.0.1", 0))
        return at.getsockname()[1]


@contextmanager
def serving(folder, *options, **settings):
    """Yield the address of a server of the model in `folder`, and stop the server at the end of the context."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--port", port]
    command += ["--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", 1 << 26]
    command += [*shlex.split(HOW_TO_START.partition("MODEL")[2]), "--max-num-seqs", 64, *options]
    settings |= {"TORCH_COMPILE_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
    log_path = folder.parent / f"log-{port}"
    with log_path.open("w") as log:
        process = subprocess.Popen(list(map(str, command)), env=os.environ | settings, stdout=log, stderr=log)
    address, began = f"http://127.0.0.1:{port}", time.monotonic()
    try:
        while True:
            try:
                httpx.get(f"{address}/health").raise_for_status()
                break
            except httpx.HTTPError:
                late = time.monotonic() > began + START_SECONDS
                alive = process.poll() is None and not late
                assert alive, log_path.read_text()[-3000:]
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=60)


def served_policy():
    return tiny_policy(tied=False, vocabulary=PADDED)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "model"
    policy = served_policy()
    policy.model.generation_config.update(do_sample=True, top_k=5)  # training must ignore this recommendation
    policy.save(folder)
    return folder


@pytest.fixture(scope="module")
def server(model):
    """Yield the address of a server of an untied policy with the weights before all updates."""
    with serving(model, "--max-model-len", ROOM, VLLM_SERVER_DEV_MODE="1") as address:
        yield address


def test_updates_reach_the_server_and_the_log_probabilities_agree(server, tmp_path):
    policy = served_policy()
    options = RolloutOptions(engine="vllm", vllm=VllmOptions(server=server, exchange=str(tmp_path)))
    engine = open_engine(options, policy, named=True)
    for update in range(3):
        disturb(policy, update)
        assert engine.sync(policy)["sampler/probe_drift"] < 1e-4
        for temperature in (1.0, 0.7):
            groups = sample(engine, temperature=temperature)
            assert differences(policy, groups, temperature).median() <= 1e-4
            assert unknown(policy, groups)
    for completion in (c for group in sample(engine, stop=("7", "e"), max_new_tokens=60) for c in group):
        text, last = completion.text, policy.tokenizer.decode(completion.token_ids[-1:])  # no token is cut
        found = [text.find(string) + 1 for string in ("7", "e") if string in text]
        assert not found or len(text) - len(last) < min(found) <= len(text)
        assert completion.truncated == (not found and completion.token_ids[-1] not in policy.end_ids)
    reported = []
    groups = engine.generate(Request(PROMPTS, 4, Sampling(1.0, 24, 1)), lambda *done: reported.append(done))
    assert groups == engine.generate(Request(PROMPTS, 4, Sampling(1.0, 24, 1)))
    expected = [(i, member, c) for i, group in enumerate(groups) for member, c in enumerate(group)]
    assert sorted(reported, key=lambda done: done[:2]) == expected
    assert all(len({tuple(c.token_ids) for c in group}) == 4 for group in groups)
    assert [path.name for path in (tmp_path / "sspo-weights").iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            {"vocabulary": PADDED},
            "log-probabilities differ from the policy's",
        ),  # tied, so the server keeps its output projection
        (
            {"tied": False},
            r"answers 500 to /collective_rpc .*; it must serve the policy's model and be able to read /.*-weights",
        ),
    ],
    ids=["tied", "of a smaller vocabulary"],
)
def test_a_server_of_another_model_is_noticed_at_the_first_sync(server, tmp_path, other, said):
    policy = tiny_policy(**other)
    engine = VllmServer(policy, VllmOptions(server=server, exchange=str(tmp_path)), 64, 1.0)
    with pytest.raises(UserError, match=said):
        engine.sync(policy)


def of_an_evaluation(address, runs):
    return {
        "prompt": "plain",
        "rollout__vllm__server": address,
        "rollout__vllm__exchange": runs,
        "evaluation__benchmarks": "[{name: arithmetic, split: test, limit: 4}]",
    }


def of_a_run(address, model, runs):
    return of_an_evaluation(address, runs) | {
        "model__name": model,
        "tasks": "[arithmetic]",
        "rollout__max_new_tokens": 64,
        "cold_start__steps": 5,
    }


@pytest.mark.parametrize("which", ["rollout", "evaluation"])
def test_a_server_s_room_is_compared_with_what_may_be_needed_before_the_cold_start(server, model, tmp_path, which):
    options = of_a_run(server, model, tmp_path) | {f"{which}__max_new_tokens": ROOM}
    done = sspo("train", "--run", "a", "--runs-dir", tmp_path, **options)
    assert done.returncode == 1
    assert f"accepts sequences of {ROOM} tokens, but 1" in done.stderr.splitlines()[-1]
    assert "start the server with --max-model-len 1" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "cold-starts").exists()


def test_weights_that_do_not_arrive_are_reported_before_the_cold_start(server, model, tmp_path):
    (tmp_path / "file").touch()
    options = of_a_run(server, model, tmp_path) | {"rollout__vllm__exchange": tmp_path / "file" / "folder"}
    done = sspo("train", "--run", "a", "--runs-dir", tmp_path, **options)
    assert done.returncode == 1
    assert (
        f"the weights for the vLLM server cannot be written to {tmp_path}/file/folder" in done.stderr.splitlines()[-1]
    )
    assert not (tmp_path / "cold-starts").exists()


def test_a_server_s_room_is_compared_with_what_an_evaluation_may_need(server, model, tmp_path):
    options = of_an_evaluation(server, tmp_path) | {"evaluation__max_new_tokens": ROOM}
    assert_error(sspo("eval", model, "--runs-dir", tmp_path, **options), f"accepts sequences of {ROOM} tokens, but 1")
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_not_in_dev_mode_is_reported_before_the_cold_start(model, tmp_path):
    with serving(model) as address:
        done = sspo("train", "--run", "a", "--runs-dir", tmp_path, **of_a_run(address, model, tmp_path))
        reported = sspo("eval", model, "--runs-dir", tmp_path, **of_an_evaluation(address, tmp_path))
    assert done.returncode == 1
    assert "was started without VLLM_SERVER_DEV_MODE=1" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "cold-starts").exists()
    assert_error(reported, f"the server {address} was started without VLLM_SERVER_DEV_MODE=1")


@pytest.mark.long
def test_two_ranks_sample_from_a_server_and_the_first_alone_updates_it(server, model, tmp_path):
    """Two ranks update the server as often as one process; completions and metrics agree up to rounding."""
    options = of_a_run(server, model, tmp_path) | {
        "rollout__prompts": 4,
        "rollout__group_size": 4,
        "rollout__max_new_tokens": 24,
        "learning__mu": 2,
        "steps": 4,
    }
    log = model.parent / f"log-{server.rpartition(':')[2]}"
    updates, completions, metrics = {}, {}, {}
    for name, more in {"alone": [], "two": ["--nproc", 2]}.items():
        before = log.read_text().count("POST /collective_rpc")
        done = sspo("train", "--run", name, "--runs-dir", tmp_path, *more, **options)
        assert done.returncode == 0, done.stderr
        updates[name] = log.read_text().count("POST /collective_rpc") - before
        completions[name] = [row["completion"] for row in rows(tmp_path / name / "completions.jsonl")]
        metrics[name] = without_times(tmp_path / name)
    assert updates["two"] == updates["alone"] > 2
    same = [one == other for one, other in zip(completions["alone"], completions["two"], strict=True)]
    assert sum(same) >= 0.75 * len(same)  # each run has a separate cold start, and logits depend on batch sizes
    for one, two in zip(metrics["alone"], metrics["two"], strict=True):
        assert one.keys() == two.keys()
        assert abs(two["sampler/mismatch_mean"]) < 1e-4
    assert [path.name for path in (tmp_path / "sspo-weights").iterdir()] == ["model.safetensors"]
