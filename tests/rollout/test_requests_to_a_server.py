"""What goes to a vLLM server and what comes back, without a server."""

import time

import httpx
import pytest

from sspo_cli.config import VllmOptions
from sspo_cli.errors import UserError
from sspo_cli.rollout.engine import Sampling
from sspo_cli.rollout.vllm_server import VllmServer

MODELS = httpx.Response(200, json={"data": [{"id": "served"}]})


@pytest.fixture
def connect(policy, tmp_path, monkeypatch):
    """An engine whose requests `answer(path)` answers."""

    def connect(answer):
        monkeypatch.setattr(httpx.Client, "request", lambda client, method, path, json=None: answer(path))
        return VllmServer(policy, VllmOptions(server="http://node:8000", exchange=str(tmp_path)), 8, 1.0)

    return connect


def test_after_a_failure_no_further_request_is_made(connect):
    asked = []

    def answer(path):
        if path == "/v1/models":
            return MODELS
        asked.append(path)
        time.sleep(0.001)
        return httpx.Response(500, text="out of memory")

    engine = connect(answer)
    with pytest.raises(UserError, match=r"http://node:8000 answers 500 to /v1/completions \(out of memory\)"):
        engine.generate([[2, 10]] * 1000, 4, Sampling(1.0, 8, 1))
    assert 0 < len(asked) < 500


def test_another_program_at_the_address_is_told(connect):
    with pytest.raises(UserError, match=r"answers 200 to /v1/models \(<html>.* start it with `VLLM_SERVER_DEV_MODE=1"):
        connect(lambda path: httpx.Response(200, text="<html>hello</html>"))


def test_an_answer_without_a_body_is_one(connect):
    """Some versions confirm the reset of the cache so."""
    engine = connect(lambda path: MODELS if path == "/v1/models" else httpx.Response(200))
    assert engine._ask("POST", "/reset_prefix_cache") is None


def test_nothing_else_in_the_exchange_folder_is_touched(connect, policy, tmp_path, monkeypatch):
    kept = tmp_path / "weights" / "mine.safetensors"
    kept.parent.mkdir()
    kept.write_text("mine")
    monkeypatch.setattr("sspo_cli.rollout.vllm_server.probe", lambda *_: {})
    connect(lambda path: MODELS if path == "/v1/models" else httpx.Response(200)).sync(policy)
    assert kept.read_text() == "mine"
    assert [path.name for path in (tmp_path / "sspo-weights").iterdir()] == ["model-0.safetensors"]
