"""Functions that a user names as `module:function`."""

import sys

import pytest

from sspo_cli.errors import UserError
from sspo_cli.plugins import load_function

BUILT_IN = {"length": len, "total": sum}


@pytest.fixture(autouse=True)
def _own_modules(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text("GOLD = 7\ndef brief(text):\n    return -len(text)\n")
    (tmp_path / "broken_rewards.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("own_rewards", "broken_rewards"):
        sys.modules.pop(name, None)


def test_a_built_in_by_its_name_and_a_function_of_a_module_in_the_current_directory():
    path = list(sys.path)
    assert load_function("reward", "total", BUILT_IN) is sum
    assert load_function("reward", "own_rewards:brief", BUILT_IN)("four") == -4
    assert sys.path == path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("totl", r"unknown reward 'totl'; did you mean total\?"),
        ("xyz", "unknown reward 'xyz'; choose from length, total, module:function"),
        (7, "unknown reward 7; choose from"),
        (["total"], "unknown reward"),
        ("own_rewards:", "unknown reward 'own_rewards:'"),
        ("nowhere:brief", "reward nowhere:brief cannot be imported: ModuleNotFoundError"),
        ("broken_rewards:brief", "reward broken_rewards:brief cannot be imported: ZeroDivisionError"),
        ("own_rewards:long", "reward own_rewards:long: .*own_rewards.py has no function long"),
        ("own_rewards:GOLD", "has no function GOLD"),
    ],
)
def test_refusals_name_the_kind_of_thing(name, message):
    with pytest.raises(UserError, match=message):
        load_function("reward", name, BUILT_IN)
