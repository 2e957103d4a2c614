"""Credentials in addresses are neither stored nor printed, but the run uses them."""

import json
from pathlib import Path

import httpx
import pytest
from commands import assert_error, sspo

from sspo_cli.config import VllmOptions, differences, load_config
from sspo_cli.errors import UserError
from sspo_cli.redaction import redacted
from sspo_cli.rollout.vllm_server import VllmServer
from sspo_cli.tracking.run_folder import RunFolder

ADDRESS = "http://user:SECRET@node:8000"
KEPT = "http://***@node:8000"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http://user:SECRET@host:8000/x", "http://***@host:8000/x"),
        ("http://SECRET@host", "http://***@host"),
        ("http://user:SECRET/SECRET@host", "http://***@host"),
        ("http://user:SECRET@SECRET@host", "http://***@host"),
        (
            "'rollout.vllm.server=https://u:SECRET@h', and ftp://u:SECRET@h",
            "'rollout.vllm.server=https://***@h', and ftp://***@h",
        ),
        ("http://host?api_key=SECRET&x=1", "http://host?api_key=***&x=1"),
        ("http://host:8000/name@revision", "http://host:8000/name@revision"),
        ("https://host/name@main", "https://host/name@main"),
        ("user@host", "user@host"),
        ({"a": [ADDRESS, 1, None]}, {"a": [KEPT, 1, None]}),
    ],
)
def test_what_is_a_credential_and_what_is_not(text: object, said: object) -> None:
    assert redacted(text) == said


def test_a_run_keeps_and_prints_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the messages and all files of a run that fails to reach its server, and a resume that needs the credentials."""
    asked: list[str | None] = []

    def refuse(self: httpx.Client, request: httpx.Request, **_: object) -> httpx.Response:
        asked.append(request.headers.get("authorization"))
        raise httpx.ConnectError("refused by http://user:SECRET@node:8000")

    monkeypatch.setattr(httpx.Client, "_send_single_request", refuse)
    monkeypatch.delenv("SSPO_VLLM_CREDENTIALS", raising=False)
    options = {"cold_start__steps": 0, "evaluation__benchmarks": "[]", "rollout__vllm__server": ADDRESS}
    options["tasks"] = "[{name: arithmetic, limit: 50}]"
    command = ("train", "--runs-dir", tmp_path, "--run", "a")
    done = sspo(*command, "-s", f"rollout.vllm.exchange={tmp_path}", **options)
    assert_error(done, f"the vLLM server {KEPT} does not answer")
    assert not (tmp_path / "a").exists()
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in options.items()]
    config = load_config(overrides=[*overrides, f"rollout.vllm.exchange={tmp_path}"])
    RunFolder.create(tmp_path / "a", config, ["sspo", "train", *overrides]).close()
    again = sspo(*command, "--resume")
    assert_error(again, "set SSPO_VLLM_CREDENTIALS=user:password")
    monkeypatch.setenv("SSPO_VLLM_CREDENTIALS", "user:SECRET")
    third = sspo(*command, "--resume")
    assert_error(third, "the vLLM server http://***@node:8000 does not answer")
    assert asked[0] == httpx.BasicAuth("user", "SECRET")._auth_header
    assert asked == [asked[0]] * 2  # once from the address, once from the environment
    dry = sspo("train", "--dry-run", "-s", f"rollout.vllm.exchange={tmp_path}", **options)
    assert KEPT in dry.stdout
    assert dry.stderr == done.stderr
    for said in (done, again, third, dry):
        assert "SECRET" not in said.stdout + said.stderr
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"SECRET" not in path.read_bytes(), path
    about = json.loads((tmp_path / "a" / "config.json").read_text())
    assert about["options"]["rollout"]["vllm"]["server"] == KEPT


def test_the_same_address_is_no_other_option(tmp_path: Path) -> None:
    ours, theirs = (
        load_config(overrides=[f"rollout.vllm={{server: '{server}', exchange: {tmp_path}}}"])
        for server in (ADDRESS, KEPT)
    )
    assert differences(ours, theirs) == {}


def test_a_sweep_writes_none_to_a_file(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"seeds: [0]\noptions: {{rollout.vllm.server: '{ADDRESS}', rollout.vllm.exchange: {tmp_path}}}\n")
    done = sspo("sweep", "-c", sweep, "--runs-dir", tmp_path / "runs", "--dry-run")
    assert_error(done, "rollout.vllm.server holds credentials")
    assert "SECRET" not in done.stdout + done.stderr


def test_an_address_that_is_none(policy, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not an address such as") as raised:
        VllmServer(policy, VllmOptions(server="http://host:SECRET", exchange=str(tmp_path)), 8, 1.0)
    assert "Traceback" not in str(raised.value)
