"""Tests of requests to a vLLM server and of its answers, without vLLM."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from sspo_cli.config import VllmOptions
from sspo_cli.errors import UserError
from sspo_cli.rollout.engine import Request, Sampling
from sspo_cli.rollout.vllm_server import VllmServer

SERVED = {"data": [{"id": "served", "max_model_len": 100}]}
MODELS = httpx.Response(200, json=SERVED)


@pytest.fixture
def connect(policy, tmp_path, monkeypatch):
    """Return a function that connects an engine; `answer(path)` answers the engine's requests."""

    def connect(answer):
        monkeypatch.setattr(httpx.Client, "request", lambda client, method, path, json=None: answer(path))
        return VllmServer(policy, VllmOptions(server="http://node:8000", exchange=str(tmp_path)), 8, 1.0)

    return connect


def test_after_a_failure_no_further_request_is_made(connect):
    asked = []

    def answer(path):
        if path != "/v1/completions":
            return MODELS
        asked.append(path)
        time.sleep(0.001)
        return httpx.Response(500, text="out of memory")

    engine = connect(answer)
    with pytest.raises(UserError, match=r"http://node:8000 answers 500 to /v1/completions \(out of memory\)"):
        engine.generate(Request([[2, 10]] * 1000, 4, Sampling(1.0, 8, 1)))
    assert 0 < len(asked) < 500


def test_another_program_at_the_address_is_reported(connect):
    with pytest.raises(UserError, match=r"answers 200 to /v1/models \(<html>.* start it with `VLLM_SERVER_DEV_MODE=1"):
        connect(lambda path: httpx.Response(200, text="<html>hello</html>"))


@pytest.mark.parametrize("said", [{"models": []}, {"data": []}, ["served"]])
def test_another_program_that_speaks_json_is_reported(connect, said):
    with pytest.raises(UserError, match=r"http://node:8000 does not answer /v1/models like vLLM 0.24 or newer"):
        connect(lambda path: httpx.Response(200, json=said))


def test_a_server_too_old_to_send_token_ids_is_reported(connect):
    choice = {"index": 0, "text": "x", "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "length"}
    answers = {"/v1/completions": httpx.Response(200, json={"choices": [choice]})}
    with pytest.raises(UserError, match=r"does not answer /v1/completions like vLLM 0.24 or newer"):
        connect(lambda path: answers.get(path, MODELS)).generate(Request([[2, 10]], 1, Sampling(1.0, 8, 1)))


def test_a_server_that_is_not_in_dev_mode_is_reported_at_once_what_to_set(connect):
    """The first sync would report it only after the cold start."""
    missing = httpx.Response(404, json={"detail": "Not Found"})
    with pytest.raises(
        UserError,
        match=r"was started without VLLM_SERVER_DEV_MODE=1, or is not a vLLM server, .*; start it with `VLLM_SERVER",
    ):
        connect(lambda path: MODELS if path == "/v1/models" else missing)


def test_an_answer_without_a_body_is_one(connect):
    """Some versions of vLLM confirm the reset of the cache with an empty body."""
    engine = connect(lambda path: MODELS if path == "/v1/models" else httpx.Response(200))
    assert engine._ask("POST", "/reset_prefix_cache") is None


def test_nothing_else_in_the_exchange_folder_is_touched(connect, policy, tmp_path, monkeypatch):
    kept = tmp_path / "weights" / "mine.safetensors"
    kept.parent.mkdir()
    kept.write_text("mine")
    monkeypatch.setattr("sspo_cli.rollout.vllm_server.probe", lambda *_: {})
    connect(lambda path: MODELS if path == "/v1/models" else httpx.Response(200)).sync(policy)
    assert kept.read_text() == "mine"
    assert [path.name for path in (tmp_path / "sspo-weights").iterdir()] == ["model.safetensors"]


def test_a_server_that_is_still_sampling_keeps_what_the_weights_before_gave_and_that_is_reported(connect, policy):
    answers = {"/v1/models": MODELS, "/reset_prefix_cache": httpx.Response(200, json={"success": False})}
    with pytest.raises(UserError, match=r"http://node:8000 is still sampling.* no other program uses the server"):
        connect(lambda path: answers.get(path, httpx.Response(200))).sync(policy)


def test_sequences_longer_than_the_server_takes_are_reported_before_any_is_asked_for(connect):
    engine = connect(lambda path: MODELS)
    engine.check_capacity(100)
    with pytest.raises(
        UserError, match=r"accepts sequences of 100 tokens, but 101 may be needed; start the server with --max-m"
    ):
        engine.check_capacity(101)


def test_as_many_requests_go_out_at_a_time_as_there_are_rows_for(policy, tmp_path):
    """A real server on this machine answers no request before all of them have arrived."""
    prompts = 150
    together = threading.Barrier(prompts, timeout=20)
    choice = {"index": 0, "token_ids": [5], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "length"}

    class Answers(BaseHTTPRequestHandler):
        def answer(self, said):
            body = json.dumps(said).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.answer(SERVED)

        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path == "/v1/completions":
                together.wait()
            self.answer({"choices": [choice]})

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = prompts

    with Server(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = VllmOptions(server=f"http://127.0.0.1:{server.server_port}", exchange=str(tmp_path))
        groups = VllmServer(policy, options, prompts, 1.0).generate(
            Request([[2, 10]] * prompts, 1, Sampling(1.0, 1, 1))
        )
        server.shutdown()
    assert [len(group) for group in groups] == [1] * prompts
