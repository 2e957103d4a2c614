"""Ten steps of every method reproduce the recorded numbers to 1e-6, and the same texts.

A recorded value is only as right as the code that produced it. This test guards moves and renames; other tests check
what the values should be. A change that is meant to change numbers renews the recording in a separate commit that says
why.
"""

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .cases import BASE, CASES, COLD_START, ENVIRONMENT, RECORDED, read

TOLERANCE = 1e-6
TOKEN_WEIGHT_TOLERANCE = 1e-3 + TOLERANCE  # `completions.jsonl` rounds weights to three digits
MOST_SHOWN = 8  # differences shown of each case
RENEW = "If the change means to change numbers, run `python -m tests.golden.record` and commit that on its own, with the reason."


@pytest.mark.slow
def test_ten_steps_of_every_method_are_the_recorded_ones(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.golden.record", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = []
    for name in (COLD_START, *CASES):
        unequal = list(differences(read(name), read(name, tmp_path)))
        if unequal:
            wrong += [f"{name}: {len(unequal)} values are not as recorded", *unequal[:MOST_SHOWN]]
    if wrong:
        changed = list(differences(read(ENVIRONMENT), read(ENVIRONMENT, tmp_path)))
        pytest.fail("\n".join([*wrong, *explanation(changed)]), pytrace=False)


def test_every_recorded_file_is_of_a_case_as_it_stands() -> None:
    assert {path.stem for path in RECORDED.iterdir()} == {*CASES, COLD_START, ENVIRONMENT}
    for name, options in {COLD_START: BASE, **CASES}.items():
        assert read(name)["options"] == options


@pytest.mark.parametrize(
    ("before", "now", "count"),
    [
        ({"loss": [0.5, None]}, {"loss": [0.5 + 9e-7, None]}, 0),
        ({"loss": [0.5, None]}, {"loss": [0.5 + 3e-6, 0.0]}, 2),
        ({"loss": 0.5}, {"loss": math.nan}, 1),
        ({"loss": 0.5}, {"kl": 0.5}, 2),
        ({"rows": [{"text": "a"}]}, {"rows": [{"text": "a"}, {"text": "b"}]}, 1),
        ({"rows": [{"text": "a"}]}, {"rows": [{"text": "b"}]}, 1),
        ({"weights": [0.5]}, {"weights": [0.501]}, 1),
        ({"completions": [{"weights": [0.5]}]}, {"completions": [{"weights": [0.501]}]}, 0),
        ({"truncated": True}, {"truncated": 1}, 1),
    ],
)
def test_every_difference_is_named(before: Any, now: Any, count: int) -> None:
    assert len(list(differences(before, now))) == count


def test_a_failure_says_whether_the_environment_differs() -> None:
    recorded = read(ENVIRONMENT)
    newer = {**recorded, "packages": {**recorded["packages"], "torch": "99.0"}}
    assert "are those of the recording" in " ".join(explanation(list(differences(recorded, recorded))))
    message = " ".join(explanation(list(differences(recorded, newer))))
    assert "for that reason alone" in message
    assert "now '99.0'" in message


def explanation(changed: list[str]) -> list[str]:
    """Return lines that explain a failure, given the differences from the recorded environment."""
    if not changed:
        return ["The packages and the machine type are those of the recording, so the code changed the result.", RENEW]
    return [
        "The packages or the machine type are not those of the recording:",
        *changed,
        "Floats may differ beyond 1e-6 for that reason alone. Run the last good commit here to see whether the code did it.",
        RENEW,
    ]


def differences(before: Any, now: Any, place: str = "") -> Iterator[str]:
    """Yield a line for each value that differs from the recorded one."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            inner = f"{place}/{key}" if place else key
            if key in before and key in now:
                yield from differences(before[key], now[key], inner)
            else:
                yield f"  {inner}: {'missing now' if key in before else 'not recorded'}"
    elif isinstance(before, list) and isinstance(now, list):
        if len(before) != len(now):
            yield f"  {place}: recorded {len(before)} items, now {len(now)}"
            return
        for index, (item, item_now) in enumerate(zip(before, now, strict=True)):
            yield from differences(item, item_now, f"{place}[{index}]")
    elif not equal(before, now, TOKEN_WEIGHT_TOLERANCE if is_token_weight(place) else TOLERANCE):
        yield f"  {place}: recorded {before!r}, now {now!r}"


def is_token_weight(place: str) -> bool:
    return place.startswith("completions[") and "/weights[" in place


def equal(before: Any, now: Any, tolerance: float) -> bool:
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in (before, now)):
        return math.isclose(before, now, rel_tol=tolerance, abs_tol=tolerance)
    return type(before) is type(now) and before == now
