"""Hostile programs run among innocent ones: none escapes, harms another program, or forges a result."""

import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import pytest
from hostile_programs import PRELUDE, PROGRAMS

from sspo_cli.environments.sandbox import Result, Sandbox

SECRET = "s3cr3t-3141592653"


@dataclass
class Attack:
    """Results of all programs and the state of what they attack."""

    results: dict[str, list[Result]]
    innocent: list[list[Result]]
    secret: str
    left_behind: list[str]
    received: int
    failures: int


@pytest.fixture(scope="module")
def attack(sandbox: Sandbox) -> Iterator[Attack]:
    """Run every program turn by turn, with an innocent episode between any two."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as tcp:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        secret = Path(folder) / "gold.jsonl"
        secret.write_text(SECRET)
        os.environ["SSPO_SECRET"] = SECRET
        gold = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", SECRET])
        facts = {
            "secret": str(secret),
            "folder": folder,
            "tcp": tcp.getsockname()[1],
            "udp": udp.getsockname()[1],
            "trainer": os.getpid(),
            "gold": gold.pid,
            "column": ["x86_64", "aarch64"].index(platform.machine()),
        }
        before, failures = _everything(folder), sandbox.failures
        try:
            results, innocent = _play(sandbox, "".join(f"{name} = {value!r}\n" for name, value in facts.items()))
            assert gold.poll() is None
            left_behind = sorted(_everything(folder) - before)
            yield Attack(results, innocent, secret.read_text(), left_behind, _received(tcp, udp), failures)
        finally:
            gold.kill()
            gold.wait()
            udp.close()
            del os.environ["SSPO_SECRET"]


def _play(sandbox: Sandbox, facts: str) -> tuple[dict[str, list[Result]], list[list[Result]]]:
    hostile = {name: sandbox.open(None, 0) for name in PROGRAMS}
    innocent = [sandbox.open("x = 1", seed) for seed in range(len(PROGRAMS))]
    results: dict[str, list[Result]] = {name: [] for name in PROGRAMS}
    friendly: list[list[Result]] = []
    for turn, codes in enumerate(zip_longest(*PROGRAMS.values())):
        calls = []
        for name, code, friend in zip(PROGRAMS, codes, innocent, strict=True):
            if code is not None:
                calls.append((hostile[name], PRELUDE + facts + code if turn == 0 else code))
            calls.append((friend, f"x += 1\nimport math\nmath.sqrt(x - {turn + 1})"))
        answers = dict(zip([id(who) for who, _ in calls], sandbox.run(calls), strict=True))
        friendly.append([answers[id(friend)] for friend in innocent])
        for name, interpreter in hostile.items():
            if id(interpreter) in answers:
                results[name].append(answers[id(interpreter)])
    sandbox.close([*hostile.values(), *innocent])
    return results, friendly


def _everything(folder: str) -> set[str]:
    """Return everything that a program might leave behind."""
    places = (folder, "/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue")
    names = {str(path) for place in places for path in Path(place).glob("*")}
    system_v = {
        line for name in ("shm", "sem", "msg") for line in Path(f"/proc/sysvipc/{name}").read_text().splitlines()
    }
    return {name for name in names if "sspo-hostile" in name or name.startswith(folder)} | system_v


def _received(tcp: socket.socket, udp: socket.socket) -> int:
    count = 0
    for waiting in (tcp, udp):
        waiting.settimeout(0.05)
        try:
            count += bool(waiting.accept() if waiting is tcp else waiting.recv(10))
        except TimeoutError:
            continue
    return count


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_hostile_program_gets_nowhere(attack: Attack, name: str):
    for result in attack.results[name]:
        assert "ESCAPED" not in result.text
        assert SECRET not in result.text


def test_there_are_enough_of_them():
    assert len(PROGRAMS) >= 25


def test_every_program_ran_its_attempts(attack: Attack):
    """A program that fails before its first attempt would prove nothing."""
    for name, results in attack.results.items():
        assert results[0].status != "ok" or "NameError" not in results[0].text, (name, results[0].text)
        assert "SyntaxError" not in results[0].text, (name, results[0].text)


def test_innocent_neighbours_notice_nothing(attack: Attack):
    for turn, results in enumerate(attack.innocent):
        assert {(result.status, result.text) for result in results} == {("ok", f"Out[{turn + 1}]: 1.0")}


def test_nothing_is_read_written_or_sent(attack: Attack):
    assert attack.secret == SECRET
    assert attack.left_behind == []
    assert attack.received == 0


def test_the_server_has_no_children_left(sandbox: Sandbox, attack: Attack):
    deadline = time.monotonic() + 30
    while _children(sandbox.server_process_id) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _children(sandbox.server_process_id) == []
    assert sandbox.failures == attack.failures


def _children(process_id: int) -> list[str]:
    return Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()
