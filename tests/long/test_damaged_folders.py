"""Run folders are damaged at random; report, eval and resume either work as before or fail with one sentence.

`SSPO_LONG_RUNS` is the number of folders in tens, `SSPO_LONG_SEED` the seed of the damage.
"""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash
from commands import Outcome, sspo
from small_runs import arguments, weights

pytestmark = pytest.mark.long

RUNS = int(os.environ.get("SSPO_LONG_RUNS", "6"))
SEED = int(os.environ.get("SSPO_LONG_SEED", "0"))
FOLDERS = 10  # per test
SECONDS = 900  # limit of one command, ample for a busy machine
MEMORY = 8 << 30  # bytes of address space that a command may add
VALUES: list[Any] = [None, True, -1, 0, 10**30, 2.5, -1e308, "", "x", "9" * 5000, "\ud800", [], [[]], {}, {"a": None}]
Damage = Callable[[Path, random.Random], None]


def cut(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size or 1))


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 1, 8])):
        if content:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def empty(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def remove(path: Path, draw: random.Random) -> None:
    path.unlink()


def double(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() * 2)


def turn_into_a_folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def change_a_value(path: Path, draw: random.Random) -> None:
    """Replace or delete a random value of a JSON file, or of one line of a JSON-lines file."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    number = draw.randrange(len(lines)) if lines else None
    if number is None:
        return
    value: Any = {"root": json.loads(lines[number])}
    place, key = value, "root"
    while isinstance(place[key], dict | list) and place[key] and draw.random() < 0.9:
        place = place[key]
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
    if draw.random() < 0.2 and key != "root":
        del place[key]
    else:
        place[key] = draw.choice(VALUES)
    lines[number] = json.dumps(value["root"])
    path.write_text("\n".join(lines) + "\n")


OF_ANY: list[Damage] = [cut, flip, empty, remove, double, turn_into_a_folder]
OF_JSON: list[Damage] = [change_a_value] * len(OF_ANY)


def seal(checkpoint: Path) -> None:
    """Rewrite the manifest so that its checksums match the damaged files."""
    files = {path.name: path for path in checkpoint.iterdir() if path.is_file() and path.name != "manifest.json"}
    sums = {name: xxhash.xxh3_128(path.read_bytes()).hexdigest() for name, path in files.items()}
    (checkpoint / "manifest.json").write_text(json.dumps(sums))


@pytest.fixture(scope="module")
def stopped(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs whose run was killed in its last step, after a checkpoint."""
    runs = tmp_path_factory.mktemp("stopped")
    shutil.copytree(undisturbed.parent / "cold-starts", runs / "cold-starts")
    shutil.copytree(undisturbed, runs / "a")
    shutil.rmtree(runs / "a" / "checkpoints" / "step-10")
    status = json.loads((runs / "a" / "status.json").read_text())
    (runs / "a" / "status.json").write_text(json.dumps({**status, "state": "running", "step": 9}))
    return runs


@pytest.fixture(autouse=True)
def _limits() -> Iterator[None]:
    """Limit the address space, so that a size read from a damaged file fails the test and does not exhaust the machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def limit_of_time() -> Iterator[None]:
    def hang(number: int, frame: object) -> None:
        raise AssertionError(f"the command did not end within {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def outcome_of(what: str, *words: object) -> Outcome:
    """Run a command and check that it succeeds or fails with one sentence; `what` describes the damage."""
    try:
        with limit_of_time():
            done = sspo(*words)
    except Exception as error:
        raise AssertionError(f"{words[0]} ended in a traceback: {what}") from error
    if done.returncode:
        said = f"{what}: {done.stderr}"
        assert done.returncode == 1, said
        assert done.stderr.startswith("sspo: "), said
        assert done.stderr.count("\n") == 1, said
        assert len(done.stderr) < 2000, said
    return done


def damaged_copy(stopped: Path, to: Path, draw: random.Random) -> tuple[str, bool]:
    """Copy the runs and damage files of the run; return a description, and whether its results may differ now."""
    shutil.copytree(stopped, to)
    what, changed = [], False
    for _ in range(draw.choice([1, 1, 2, 4])):
        files = sorted(path for path in (to / "a").rglob("*") if path.is_file() and not path.name.startswith("."))
        loose = [path for path in files if path.parent.parent.name != "checkpoints"]
        path = draw.choice(draw.choice([files, loose]) or files)
        damage = draw.choice([*OF_ANY, *OF_JSON] if path.suffix in (".json", ".jsonl") else OF_ANY)
        with contextlib.suppress(ValueError):  # the JSON file is already damaged
            damage(path, draw)
        sealed = path.parent.name.startswith("step-") and path.name != "manifest.json" and draw.random() < 0.5
        if sealed:
            seal(path.parent)
        changed |= sealed or path.name == "config.json"
        what.append(f"{damage.__name__} {path.relative_to(to)}{', sealed' if sealed else ''}")
    return "; ".join(what), changed


@pytest.mark.parametrize("number", range(RUNS))
def test_a_damaged_run_is_reported_measured_and_resumed_or_refused_in_one_sentence(
    undisturbed: Path, stopped: Path, tmp_path: Path, number: int
) -> None:
    draw = random.Random(f"damage {SEED} {number}")
    counts: Counter[str] = Counter()
    for folder in range(FOLDERS):
        runs = tmp_path / str(folder)
        what, changed = damaged_copy(stopped, runs, draw)
        done = outcome_of(what, "eval", "a", "--runs-dir", runs, "-b", "arithmetic", "--limit", "3")
        counts[f"eval {done.returncode}"] += 1
        if folder % 3 == 0:  # the figures take most of the time
            done = outcome_of(what, "report", runs / "a", "--out", tmp_path / f"report-{folder}")
            counts[f"report {done.returncode}"] += 1
        done = outcome_of(what, *arguments(runs, "--run", "a", "--resume"))
        counts[f"resume {done.returncode}"] += 1
        if done.returncode == 0 and not changed:
            assert weights(runs / "a") == weights(undisturbed), what
        shutil.rmtree(runs)
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())))
