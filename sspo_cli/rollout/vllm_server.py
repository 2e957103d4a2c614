"""Sampling with a `vllm serve` process on this machine or another.

The policy's weights are passed in a folder that both processes can access, because vLLM can reload weights from a folder on
any device. vLLM's own weight transfer (0.32) works only on GPUs (NCCL, CUDA IPC).
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from sspo_cli import ranks
from sspo_cli.config import VllmOptions
from sspo_cli.errors import UserError
from sspo_cli.policy.model import Policy
from sspo_cli.redaction import HIDDEN, redacted
from sspo_cli.rollout.engine import OnCompletion, Request, to_completion
from sspo_cli.rollout.probe import TOLERANCE, probe
from sspo_cli.rollout.weights import write_weights
from sspo_cli.types import Completion

# The server must compute logits in float32 like the policy: in bfloat16 they would be rounded to steps of a hundredth.
HOW_TO_START = (
    "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs "
    """--hf-overrides '{"head_dtype": "float32"}'"""
)
IN_DEV_MODE = ("/collective_rpc", "/reset_prefix_cache")  # paths that exist only with VLLM_SERVER_DEV_MODE=1
CREDENTIALS = "SSPO_VLLM_CREDENTIALS"  # user:password, in the environment
FOLDER = "sspo-weights"  # in the exchange folder; emptied at every sync, so no other program may use this name
# `max_rows` limits the requests, not the number of connections. The server closes idle connections after five seconds; the
# client closes them earlier, so that no request meets a connection that is being closed.
LIMITS = httpx.Limits(max_connections=None, keepalive_expiry=1.0)
# These override the sampling parameters that the model's folder recommends.
UNTRUNCATED = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}


def _connect(server: str) -> httpx.Client:
    """Create an HTTP client for a server, with the credentials from its address or from the environment.

    Raises UserError for an invalid address, or if the credentials were removed from the address in the run folder and the
    environment has none.
    """
    given = os.environ.get(CREDENTIALS)
    if f"{HIDDEN}@" in server and not given:
        raise UserError(
            f"the credentials of rollout.vllm.server = {server} are not stored in the run folder; set "
            f"{CREDENTIALS}=user:password, or pass the whole address again with -s rollout.vllm.server=..."
        )
    auth = None
    if given and (f"{HIDDEN}@" in server or "@" not in server):
        user, _, password = given.partition(":")
        auth, server = httpx.BasicAuth(user, password), server.replace(f"{HIDDEN}@", "")
    try:
        return httpx.Client(base_url=server, timeout=None, limits=LIMITS, auth=auth)
    except httpx.InvalidURL:
        raise UserError(
            f"rollout.vllm.server = {redacted(server)} is not an address such as http://node7:8000"
        ) from None


class VllmServer:
    """An engine that samples on a vLLM server.

    The server must serve the policy's model in the policy's dtype, and must have no other users.
    """

    def __init__(self, policy: Policy, options: VllmOptions, max_rows: int, temperature: float) -> None:
        """Connect to the server; `temperature` is for the probe.

        Raises UserError if no vLLM server answers, or if the server was started without VLLM_SERVER_DEV_MODE=1, which weight
        updates need.
        """
        assert options.exchange is not None
        self.name = f"vLLM at {redacted(options.server)}"
        self.policy = policy
        self.options = options.model_copy(update={"server": redacted(options.server)})  # for messages
        self.max_rows = max_rows
        self.temperature = temperature
        self.folder = Path(options.exchange).resolve() / FOLDER
        self.client = _connect(options.server or "")
        with self._understood("/v1/models"):
            served = self._ask("GET", "/v1/models")["data"][0]
            self.model, self.capacity = served["id"], served.get("max_model_len")
        # This request changes nothing, but fails before the cold start if the server cannot receive weights.
        ranks.on_first(lambda: self._ask("POST", "/reset_prefix_cache"))

    def check_capacity(self, tokens: int) -> None:
        """Raise UserError if the server accepts only sequences of fewer than `tokens` tokens."""
        if self.capacity is not None and tokens > self.capacity:
            raise UserError(
                f"the vLLM server {self.options.server} accepts sequences of {self.capacity} tokens, but {tokens} may be needed; "
                f"start the server with --max-model-len {tokens} or more, or lower max_new_tokens"
            )

    def sync(self, policy: Policy) -> dict[str, float]:
        self.policy = policy
        write_weights(policy, self.folder)
        ranks.on_first(self._reload)
        return probe(policy, self.generate, self.temperature, self.options.tolerance or TOLERANCE[policy.dtype])

    def _reload(self) -> None:
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(self.folder)}}
        self._ask("POST", "/collective_rpc", reload)
        emptied = self._ask("POST", "/reset_prefix_cache")  # its keys and values belong to the old weights
        if emptied and not emptied.get("success", True):  # older versions do not report success
            raise UserError(
                f"the vLLM server {self.options.server} is still sampling, so its cache still has keys and values of the old "
                "weights; make sure that no other program uses the server during the run"
            )

    def generate(self, request: Request, on_completion: OnCompletion | None = None) -> list[list[Completion]]:
        """Sample each prompt by a separate HTTP request.

        The concurrent requests of all ranks together sample at most `max_rows` completions, but each rank always has at least
        one request.
        """
        groups: list[list[Completion]] = [[] for _ in request.prompts]
        pool = ThreadPoolExecutor(max(1, self.max_rows // (request.group_size * ranks.size())))
        try:
            waiting = {pool.submit(self._sample, request, index): index for index in range(len(request.prompts))}
            for done in as_completed(waiting):
                index = waiting[done]
                groups[index] = done.result()
                for member, completion in enumerate(groups[index]):
                    if on_completion:
                        on_completion(index, member, completion)
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure or Ctrl-C, send no further requests
        return groups

    def _sample(self, request: Request, index: int) -> list[Completion]:
        """Sample the completions of prompt number `index` with its seed."""
        body = {
            "model": self.model,
            "prompt": request.prompts[index],
            "n": request.group_size,
            "temperature": request.sampling.temperature,
            "max_tokens": request.sampling.max_new_tokens,
            "seed": request.seed_of(index),
            "logprobs": 0,  # only of the chosen token
            "stop_token_ids": self.policy.end_ids,
            "return_token_ids": True,
            **UNTRUNCATED,
            "top_p": request.sampling.top_p,
            "top_k": request.sampling.top_k or 0,  # 0 is all tokens
        }
        if request.sampling.stop:  # searched in the text with special tokens, as in the torch engine
            body |= {
                "stop": list(request.sampling.stop),
                "include_stop_str_in_output": True,
                "skip_special_tokens": False,
            }
        with self._understood("/v1/completions"):
            choices = self._ask("POST", "/v1/completions", body)["choices"]
            return [self._completion(choice) for choice in sorted(choices, key=lambda choice: choice["index"])]

    def _completion(self, choice: dict[str, Any]) -> Completion:
        logprobs, ended = choice["logprobs"]["token_logprobs"], choice["finish_reason"] == "stop"
        return to_completion(self.policy, choice["token_ids"], logprobs, ended)

    def sleep(self) -> None:
        """Do nothing, because the server has its own memory."""

    @contextmanager
    def _understood(self, path: str) -> Iterator[None]:
        """Raise UserError if the block finds that the server's answer to `path` lacks a field that vLLM sends."""
        try:
            yield
        except (KeyError, IndexError, TypeError):
            raise UserError(
                f"the server {self.options.server} does not answer {path} like vLLM 0.24 or newer; start a vLLM server with "
                f"`{HOW_TO_START}`"
            ) from None

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            answer = self.client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise UserError(
                f"the vLLM server {self.options.server} does not answer ({type(error).__name__}); start it with "
                f"`{HOW_TO_START}`, or set rollout.engine=torch"
            ) from None
        if answer.is_success:
            with suppress(ValueError):  # the answer is not JSON, so the server is not vLLM
                return answer.json() if answer.content else None
        if answer.status_code == 404 and path in IN_DEV_MODE:
            raise UserError(
                f"the server {self.options.server} was started without VLLM_SERVER_DEV_MODE=1, or is not a vLLM server, so it "
                f"cannot receive the policy's weights; start it with `{HOW_TO_START}`"
            )
        remedy = f"start it with `{HOW_TO_START}`"
        if path == "/collective_rpc":  # the server could not load the weights
            remedy = f"it must serve the policy's model and be able to read {self.folder}"
        raise UserError(
            f"the vLLM server {self.options.server} answers {answer.status_code} to {path} ({answer.text[:200]}); "
            f"{remedy}; the server's log may explain the error"
        )
